# distutils: language = c++
"""llama.cpp as Inferno sees it: the function table, models and vocabularies.

`load_library()` takes the shared library that llama_cpp has loaded, resolves each function by name and checks version,
struct sizes, field offsets and known defaults; anything else than the pinned llama.cpp is refused. Models load from
open descriptors, never from a path that a client could name. Runs in the engine process and in tests; knows nothing
of requests, sockets or settings.
"""

import os
from array import array

from cpython cimport array as c_array
from libc.errno cimport errno
from libc.limits cimport INT_MAX
from libc.stdio cimport fclose, fdopen
from libc.stdlib cimport free, malloc
from libc.string cimport memset, strlen
from posix.unistd cimport close, dup, lseek

LLAMA_VERSION = "0.5.0"  # llama.h of commit 0c1e570

ATTR_UNKNOWN = 1 << 0  # enum llama_token_attr
ATTR_UNUSED = 1 << 1
ATTR_NORMAL = 1 << 2
ATTR_CONTROL = 1 << 3
ATTR_USER_DEFINED = 1 << 4
ATTR_BYTE = 1 << 5

_LOG_LEVELS = ("debug", "debug", "info", "warning", "error")  # by ggml_log_level
_MAX_TEXT = INT_MAX - 1
cdef int32_t _MMAP = 1  # LLAMA_LOAD_MODE_MMAP
cdef int32_t _READ = 0  # LLAMA_LOAD_MODE_NONE

cdef LlamaApi api
cdef inferno_log_ring *_log = NULL
_loaded = None


class LlamaError(Exception):
    """llama.cpp refused, is missing, or is not the version that this build was made for."""


def load_library():
    """Fill the function table from the installed llama_cpp's library; idempotent. Raises LlamaError."""
    global _loaded, _log
    if _loaded is not None:
        return _loaded
    try:
        # It prints a debugger's backtrace of an abort by forking, which a confined process cannot.
        os.environ.setdefault("GGML_NO_BACKTRACE", "1")
        import ctypes

        import llama_cpp
        from llama_cpp import llama_cpp as binding
    except (ImportError, OSError, RuntimeError) as error:
        raise LlamaError(f"llama-cpp-python cannot be loaded: {error}") from None
    library = binding._lib
    cdef size_t i
    cdef size_t address
    for i in range(inferno_num_symbols):
        name = inferno_symbols[i].name.decode("ascii")
        try:
            address = ctypes.cast(library[name], ctypes.c_void_p).value
        except AttributeError:
            raise LlamaError(f"the installed llama.cpp has no {name}; {LLAMA_VERSION} is expected") from None
        inferno_set_symbol(&api, inferno_symbols[i].offset, <void *> address)
    version = (<bytes> api.llama_version()).decode("ascii", "replace")
    if version.partition("-")[0] != LLAMA_VERSION:
        raise LlamaError(f"llama.cpp {version} is installed; {LLAMA_VERSION} is expected")
    _check_struct("llama_model_params", binding.llama_model_params, sizeof(llama_model_params),
                  inferno_model_fields, inferno_num_model_fields)
    _check_struct("llama_context_params", binding.llama_context_params, sizeof(llama_context_params),
                  inferno_context_fields, inferno_num_context_fields)
    _check_struct("llama_batch", binding.llama_batch, sizeof(llama_batch),
                  inferno_batch_fields, inferno_num_batch_fields)
    _check_struct("llama_token_data_array", binding.llama_token_data_array, sizeof(llama_token_data_array),
                  inferno_array_fields, inferno_num_array_fields)
    _check_defaults()
    if _log is NULL:
        _log = new inferno_log_ring()
    inferno_log_capture(&api, _log)
    with nogil:
        api.llama_backend_init()
    if api.ggml_backend_reg_count() == 0:
        directory = os.fsencode(os.path.join(os.path.dirname(llama_cpp.__file__), "lib"))
        api.ggml_backend_load_all_from_path(<const char *> directory)
    _loaded = Library(version, llama_cpp.__version__)
    return _loaded


cdef _check_struct(str name, object twin, size_t size, const inferno_field *fields, size_t count):
    import ctypes
    if ctypes.sizeof(twin) != size:
        raise LlamaError(f"{name} has {ctypes.sizeof(twin)} bytes in the installed llama.cpp, {size} are expected")
    cdef size_t i
    for i in range(count):
        field = fields[i].name.decode("ascii")
        theirs = getattr(twin, field, None)
        if theirs is None or theirs.offset != fields[i].offset or theirs.size != fields[i].size:
            raise LlamaError(f"{name}.{field} lies elsewhere in the installed llama.cpp")


cdef _check_defaults():
    """The library's own answer must make sense through our structs: a last check of the layout."""
    cdef llama_model_params model = api.llama_model_default_params()
    cdef llama_context_params context = api.llama_context_default_params()
    if (model.n_gpu_layers != -1 or model.vocab_only or not model.use_extra_bufts or model.check_tensors
            or context.n_ctx != 512 or context.n_batch != 2048 or context.n_ubatch != 512 or context.n_seq_max != 1
            or context.flash_attn_type != -1 or context.type_k != 1 or context.type_v != 1
            or not context.offload_kqv or context.embeddings or context.abort_callback is not NULL):
        raise LlamaError("llama.cpp's default parameters do not look as expected: another struct layout")


class Library:
    """What is known of the loaded llama.cpp: `version`, `package_version`; devices and CPU features on demand."""

    def __init__(self, version, package_version):
        self.version = version
        self.package_version = package_version

    def system_info(self):
        """Return llama.cpp's line of CPU features, e.g. 'CPU : AVX2 = 1 | …'."""
        return (<bytes> api.llama_print_system_info()).decode("utf-8", "replace").strip()

    def devices(self):
        """Return (name, description, kind, free bytes, total bytes) of each device; kind 0 is the CPU."""
        cdef size_t i, free_bytes, total_bytes
        cdef ggml_backend_device *device
        found = []
        for i in range(api.ggml_backend_dev_count()):
            device = api.ggml_backend_dev_get(i)
            free_bytes = total_bytes = 0
            api.ggml_backend_dev_memory(device, &free_bytes, &total_bytes)
            found.append(((<bytes> api.ggml_backend_dev_name(device)).decode("utf-8", "replace"),
                          (<bytes> api.ggml_backend_dev_description(device)).decode("utf-8", "replace"),
                          api.ggml_backend_dev_type(device), free_bytes, total_bytes))
        return found

    def supports_gpu_offload(self):
        return api.llama_supports_gpu_offload()

    def max_sequences(self):
        return api.llama_max_parallel_sequences()


def take_log_lines():
    """Return the library's finished log lines since the last call as (level name, text) pairs, oldest first."""
    cdef char line[512]
    cdef int level
    found = []
    if _log is NULL:
        return found
    while True:
        level = inferno_log_take(_log, line, sizeof(line))
        if level < 0:
            return found
        text = (<bytes> line).decode("utf-8", "replace").strip()
        if text:
            found.append((_LOG_LEVELS[level] if level < 5 else "info", text))


cdef class LoadState:
    @property
    def fraction(self):
        return self._fraction

    def cancel(self):
        """Ask the load to stop; it then fails."""
        self._cancelled = True


cdef bool _on_progress(float fraction, void *state) noexcept nogil:
    (<LoadState> state)._fraction = fraction
    return not (<LoadState> state)._cancelled


cdef class Model:
    def __init__(self):
        raise TypeError("use load_model")

    def __dealloc__(self):
        if self.ptr is not NULL:
            api.llama_model_free(self.ptr)
            self.ptr = NULL

    @property
    def vocab(self):
        cdef Vocab vocab = Vocab.__new__(Vocab)
        vocab._model = self
        vocab.ptr = api.llama_model_get_vocab(self.ptr)
        vocab.n_tokens = api.llama_vocab_n_tokens(vocab.ptr)
        return vocab

    @property
    def n_ctx_train(self):
        return api.llama_model_n_ctx_train(self.ptr)

    @property
    def n_embd(self):
        return api.llama_model_n_embd(self.ptr)

    @property
    def n_layer(self):
        return api.llama_model_n_layer(self.ptr)

    @property
    def n_head(self):
        return api.llama_model_n_head(self.ptr)

    @property
    def n_head_kv(self):
        return api.llama_model_n_head_kv(self.ptr)

    @property
    def n_swa(self):
        """Width of the sliding attention window; 0: none."""
        return api.llama_model_n_swa(self.ptr)

    @property
    def n_params(self):
        return api.llama_model_n_params(self.ptr)

    @property
    def size_bytes(self):
        return api.llama_model_size(self.ptr)

    @property
    def quantization(self):
        cdef const char *name = api.llama_ftype_name(api.llama_model_ftype(self.ptr))
        return (<bytes> name).decode("utf-8", "replace") if name is not NULL else ""

    @property
    def has_encoder(self):
        return api.llama_model_has_encoder(self.ptr)

    @property
    def has_decoder(self):
        return api.llama_model_has_decoder(self.ptr)

    @property
    def is_recurrent(self):
        return api.llama_model_is_recurrent(self.ptr)

    @property
    def is_hybrid(self):
        return api.llama_model_is_hybrid(self.ptr)

    @property
    def is_diffusion(self):
        return api.llama_model_is_diffusion(self.ptr)

    def chat_template(self, str name=None):
        """Return the model's chat template as bytes, or None."""
        cdef const char *template
        cdef bytes encoded
        if name is None:
            template = api.llama_model_chat_template(self.ptr, NULL)
        else:
            encoded = name.encode("utf-8")
            template = api.llama_model_chat_template(self.ptr, <const char *> encoded)
        return <bytes> template if template is not NULL else None

    def metadata(self, str key):
        """Return the value of a scalar or string metadata key as bytes, or None."""
        cdef bytes encoded = key.encode("utf-8")
        cdef char small[256]
        cdef int32_t size = api.llama_model_meta_val_str(self.ptr, <const char *> encoded, small, sizeof(small))
        if size < 0:
            return None
        if size < <int32_t> sizeof(small):
            return small[:size]
        cdef char *large = <char *> malloc(<size_t> size + 1)
        if large is NULL:
            raise MemoryError
        try:
            size = api.llama_model_meta_val_str(self.ptr, <const char *> encoded, large, <size_t> size + 1)
            return large[:size] if size >= 0 else None
        finally:
            free(large)


def load_model(descriptors, *, int gpu_layers=-1, bint vocab_only=False, bint mapped=True, LoadState state=None):
    """Load from open descriptors: one file, or all shards in order. They stay the caller's.

    `mapped` maps the file instead of reading it (a file whose data is not 32-byte aligned, such as a vocabulary alone,
    can only be read). `state` shows the progress to other threads. Raises LlamaError with
    llama.cpp's last words; the descriptors must have been verified before.
    """
    load_library()
    if not descriptors:
        raise ValueError("no descriptor")
    cdef llama_model_params params = api.llama_model_default_params()
    params.n_gpu_layers = gpu_layers
    params.vocab_only = vocab_only
    params.load_mode = _MMAP if mapped and not vocab_only else _READ
    if state is not None:
        params.progress_callback = _on_progress
        params.progress_callback_user_data = <void *> state
    cdef char why[256]
    memset(why, 0, sizeof(why))
    cdef llama_model *model = NULL
    cdef FILE *file = NULL
    cdef const char **paths = NULL
    cdef size_t i, count = len(descriptors)
    cdef int number
    if count == 1:
        number = dup(descriptors[0])
        if number < 0:
            raise OSError(errno, os.strerror(errno))
        file = fdopen(number, "rb")
        if file is NULL:
            close(number)
            raise OSError(errno, os.strerror(errno))
        lseek(number, 0, 0)
        with nogil:
            model = inferno_load_file(&api, file, params, why, sizeof(why))
            fclose(file)
    else:
        names = [f"/proc/self/fd/{int(number)}".encode("ascii") for number in descriptors]
        paths = <const char **> malloc(count * sizeof(const char *))
        if paths is NULL:
            raise MemoryError
        for i in range(count):
            paths[i] = <const char *> (<bytes> names[i])
        with nogil:
            model = inferno_load_splits(&api, paths, count, params, why, sizeof(why))
        free(paths)
    if model is NULL:
        said = [text for level, text in take_log_lines() if level == "error"]
        reason = why[:strlen(why)].decode("utf-8", "replace") or (said[0] if said else "no reason given")
        raise LlamaError(f"llama.cpp refused the model: {reason}")
    cdef Model loaded = Model.__new__(Model)
    loaded.ptr = model
    loaded.vocab_only = vocab_only
    return loaded


cdef class Vocab:
    def __init__(self):
        raise TypeError("use Model.vocab")

    cdef int _check(self, long long token) except -1:
        if token < 0 or token >= self.n_tokens:
            raise ValueError(f"token {token} is outside of the vocabulary of {self.n_tokens}")
        return 0

    def text(self, long long token):
        """Return the token's text as the vocabulary stores it (escaped for BPE), as bytes."""
        self._check(token)
        cdef const char *text = api.llama_vocab_get_text(self.ptr, <llama_token> token)
        return <bytes> text if text is not NULL else b""

    def attr(self, long long token):
        """Return the token's attribute bits (ATTR_…)."""
        self._check(token)
        return api.llama_vocab_get_attr(self.ptr, <llama_token> token)

    def score(self, long long token):
        self._check(token)
        return api.llama_vocab_get_score(self.ptr, <llama_token> token)

    def is_control(self, long long token):
        self._check(token)
        return api.llama_vocab_is_control(self.ptr, <llama_token> token)

    def is_user_defined(self, long long token):
        self._check(token)
        return (api.llama_vocab_get_attr(self.ptr, <llama_token> token) & (1 << 4)) != 0

    def is_eog(self, long long token):
        """Whether the token ends a generation."""
        self._check(token)
        return api.llama_vocab_is_eog(self.ptr, <llama_token> token)

    @property
    def vocab_type(self):
        """llama.h's vocabulary type: 1 SPM, 2 BPE, 3 WPM, 4 UGM, 5 RWKV, 6 PLaMo-2."""
        return api.llama_vocab_type(self.ptr)

    @property
    def bos(self):
        return _token_or_none(api.llama_vocab_bos(self.ptr))

    @property
    def eos(self):
        return _token_or_none(api.llama_vocab_eos(self.ptr))

    @property
    def eot(self):
        return _token_or_none(api.llama_vocab_eot(self.ptr))

    @property
    def sep(self):
        return _token_or_none(api.llama_vocab_sep(self.ptr))

    @property
    def nl(self):
        return _token_or_none(api.llama_vocab_nl(self.ptr))

    @property
    def pad(self):
        return _token_or_none(api.llama_vocab_pad(self.ptr))

    @property
    def add_bos(self):
        return api.llama_vocab_get_add_bos(self.ptr)

    @property
    def add_eos(self):
        return api.llama_vocab_get_add_eos(self.ptr)

    def suppressed(self):
        """Return the ids that the model says must never be generated."""
        cdef int32_t count = 0
        cdef const llama_token *tokens = api.llama_vocab_get_suppress_tokens(self.ptr, &count)
        return [tokens[i] for i in range(count)] if tokens is not NULL else []

    def tokenize(self, const uint8_t[::1] text not None, bint add_special, bint parse_special):
        """Return the ids of UTF-8 `text` as array('i'). Releases the GIL; thread-safe.

        `parse_special` lets control tokens in `text` become tokens; user-defined ones always do. Raises LlamaError
        when llama.cpp fails, ValueError when the text is too long to count.
        """
        cdef Py_ssize_t size = text.shape[0]
        if size > _MAX_TEXT:
            raise ValueError(f"a text of {size} bytes; at most {_MAX_TEXT}")
        cdef const char *start = ""
        if size:
            start = <const char *> &text[0]
        cdef Py_ssize_t capacity = size // 3 + 16
        cdef c_array.array found
        cdef llama_token *out
        cdef int count
        cdef int32_t room
        while True:
            found = c_array.clone(_INTS, capacity, False)
            out = <llama_token *> found.data.as_ints
            room = <int32_t> capacity
            with nogil:
                count = inferno_tokenize(&api, self.ptr, start, <int32_t> size, out, room,
                                         add_special, parse_special)
            if count >= 0:
                c_array.resize(found, count)
                return found
            if count <= INFERNO_THREW:
                raise LlamaError("llama.cpp could not tokenize the text")
            capacity = -count

    def piece(self, long long token, bint special=False):
        """Return the bytes that the token stands for; a control token gives b"" unless `special`."""
        self._check(token)
        cdef char small[128]
        cdef int size = inferno_piece(&api, self.ptr, <llama_token> token, small, sizeof(small), special)
        if size >= 0:
            return small[:size]
        if size <= INFERNO_THREW:
            raise LlamaError("llama.cpp could not render the token")
        cdef int capacity = -size
        cdef char *large = <char *> malloc(capacity)
        if large is NULL:
            raise MemoryError
        try:
            size = inferno_piece(&api, self.ptr, <llama_token> token, large, capacity, special)
            if size < 0:
                raise LlamaError("llama.cpp could not render the token")
            return large[:size]
        finally:
            free(large)

    def detokenize(self, tokens, bint special=False):
        """Return the bytes of a sequence of ids; each is checked against the vocabulary."""
        cdef c_array.array ids = array("i", tokens)
        cdef Py_ssize_t count = len(ids)
        cdef int token
        for token in ids:
            self._check(token)
        if count > INT_MAX // 8:
            raise ValueError(f"{count} tokens are too many")
        cdef int32_t capacity = <int32_t> (count * 8 + 64)
        cdef char *out
        cdef int size
        while True:
            out = <char *> malloc(capacity)
            if out is NULL:
                raise MemoryError
            try:
                with nogil:
                    size = inferno_detokenize(&api, self.ptr, <llama_token *> ids.data.as_ints, <int32_t> count,
                                              out, capacity, special)
                if size >= 0:
                    return out[:size]
            finally:
                free(out)
            if size <= INFERNO_THREW:
                raise LlamaError("llama.cpp could not render the tokens")
            capacity = -size


cdef c_array.array _INTS = array("i")


cdef object _token_or_none(llama_token token):
    return token if token >= 0 else None
