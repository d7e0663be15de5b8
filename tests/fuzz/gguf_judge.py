"""The reference's judgement of a file, given in a process of its own because the reference may die of it.

`python tests/fuzz/gguf_judge.py FD`: for each byte on the socket FD, look at the file behind descriptor 3 and answer with
one byte. "p": libggml's gguf_init_from_file (no_alloc). "v": a load of the vocabulary and one sentence tokenized. "r": a
full load, one sentence, one decode. Answers: "a" accepted, "r" refused. A death is seen by the caller.
"""

from __future__ import annotations

import ctypes
import os
import resource
import socket
import sys
from pathlib import Path
from typing import Any


class InitParams(ctypes.Structure):
    """gguf_init_params of gguf.h."""

    _fields_ = (("no_alloc", ctypes.c_bool), ("ctx", ctypes.c_void_p))


class Judge:
    def __init__(self) -> None:
        import llama_cpp

        self.llama: Any = llama_cpp
        folder = Path(llama_cpp.__file__).parent / "lib"
        self.ggml = ctypes.CDLL(str(next(path for path in folder.iterdir() if "ggml-base" in path.name)))
        self.ggml.gguf_init_from_file.restype = ctypes.c_void_p
        self.ggml.gguf_init_from_file.argtypes = [ctypes.c_char_p, InitParams]
        self.ggml.gguf_free.argtypes = [ctypes.c_void_p]
        llama_cpp.llama_backend_init()
        self.quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)
        llama_cpp.llama_log_set(self.quiet, ctypes.c_void_p(0))

    def parse(self, path: bytes) -> bool:
        context = self.ggml.gguf_init_from_file(path, InitParams(True, None))
        if context:
            self.ggml.gguf_free(context)
        return bool(context)

    def load(self, path: bytes, vocab_only: bool) -> bool:
        llama = self.llama
        params = llama.llama_model_default_params()
        params.vocab_only = vocab_only
        params.n_gpu_layers = 0
        model = llama.llama_model_load_from_file(path, params)
        if not model:
            return False
        vocab = llama.llama_model_get_vocab(model)
        if llama.llama_vocab_type(vocab) == 0:  # LLAMA_VOCAB_TYPE_NONE: the engine refuses it, tokenizing would abort
            llama.llama_model_free(model)
            return True
        tokens = (llama.llama_token * 256)()
        sentence = "Hello wörld, 你好 \x01 <|im_end|>".encode()
        count = llama.llama_tokenize(vocab, sentence, len(sentence), tokens, 256, True, True)
        if not vocab_only and count > 0:
            self.decode(model, tokens, min(count, 16))
        llama.llama_model_free(model)
        return True

    def decode(self, model: Any, tokens: Any, count: int) -> None:
        llama = self.llama
        params = llama.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_threads, params.n_threads_batch = 64, 64, 1, 1
        context = llama.llama_init_from_model(model, params)
        if not context:
            return
        llama.llama_decode(context, llama.llama_batch_get_one(tokens, count))
        llama.llama_free(context)


def main() -> None:
    sock = socket.socket(fileno=int(sys.argv[1]))
    judge = Judge()
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    path = b"/proc/self/fd/3"
    sock.sendall(b"!")
    while True:
        what = sock.recv(1)
        if not what:
            return
        verdict = judge.parse(path) if what == b"p" else judge.load(path, what == b"v")
        sock.sendall(b"a" if verdict else b"r")


if __name__ == "__main__":
    main()
