"""llama.cpp's own sampler chain over a row of logits, through llama_cpp's low-level binding: the sampler's peer."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
from llama_cpp import llama_cpp as binding


class Chain:
    """The stages in the default order. `vocab` is a llama_vocab pointer, needed for DRY only."""

    def __init__(self, n_vocab: int, *, seed: int = 1, draw: bool = True, vocab: Any = None, **p: Any) -> None:
        self._n_vocab = n_vocab
        self._chain = binding.llama_sampler_chain_init(binding.llama_sampler_chain_default_params())
        bias = p.get("logit_bias", {})
        if bias:
            items = (binding.llama_logit_bias * len(bias))()
            for item, (token, value) in zip(items, bias.items(), strict=True):
                item.token, item.bias = token, -np.inf if value <= -100 else value
            self._add(binding.llama_sampler_init_logit_bias(n_vocab, len(bias), items))
        penalties = [p.get("repeat_penalty", 1.0), p.get("frequency_penalty", 0.0), p.get("presence_penalty", 0.0)]
        if penalties != [1.0, 0.0, 0.0]:
            self._add(binding.llama_sampler_init_penalties(n_vocab, p.get("repeat_last_n", 64), *penalties))
        if p.get("dry_multiplier", 0.0) > 0:
            texts = [text.encode() for text in p.get("dry_texts", [])]
            array = (ctypes.c_char_p * max(len(texts), 1))(*texts)
            self._add(
                binding.llama_sampler_init_dry(
                    vocab, p["dry_multiplier"], p.get("dry_base", 1.75), p.get("dry_allowed_length", 2),
                    p.get("dry_penalty_last_n", 4096), array, len(texts),
                )
            )  # fmt: skip
        if p.get("temperature", 1.0) <= 0:
            self._add(binding.llama_sampler_init_greedy())
            return
        if p.get("mirostat"):
            self._add(binding.llama_sampler_init_temp(p.get("temperature", 1.0)))
            tau, eta = p.get("mirostat_tau", 5.0), p.get("mirostat_eta", 0.1)
            if p["mirostat"] == 1:
                self._add(binding.llama_sampler_init_mirostat(n_vocab, seed, tau, eta, 100))
            else:
                self._add(binding.llama_sampler_init_mirostat_v2(seed, tau, eta))
            return
        if p.get("top_k", 0):
            self._add(binding.llama_sampler_init_top_k(p["top_k"]))
        if p.get("typical_p", 1.0) < 1:
            self._add(binding.llama_sampler_init_typical(p["typical_p"], 1))
        if p.get("top_p", 1.0) < 1:
            self._add(binding.llama_sampler_init_top_p(p["top_p"], 1))
        if p.get("min_p", 0.0) > 0:
            self._add(binding.llama_sampler_init_min_p(p["min_p"], 1))
        if p.get("xtc_probability", 0.0) > 0:
            self._add(binding.llama_sampler_init_xtc(p["xtc_probability"], p.get("xtc_threshold", 0.1), 1, seed + 1))
        if p.get("temperature", 1.0) != 1:
            self._add(binding.llama_sampler_init_temp(p["temperature"]))
        if draw:
            self._add(binding.llama_sampler_init_dist(seed))

    def _add(self, sampler: Any) -> None:
        binding.llama_sampler_chain_add(self._chain, sampler)

    def __del__(self) -> None:
        binding.llama_sampler_free(self._chain)

    def accept(self, tokens: Sequence[int]) -> None:
        for token in tokens:
            binding.llama_sampler_accept(self._chain, token)

    def rows(self, logits: np.ndarray) -> np.ndarray:
        """Return the row as an array of llama_token_data, ready to be copied."""
        data = np.zeros(self._n_vocab, dtype=[("id", np.int32), ("logit", np.float32), ("p", np.float32)])
        data["id"] = np.arange(self._n_vocab)
        data["logit"] = logits
        return data

    def apply(self, data: np.ndarray) -> tuple[np.ndarray, int]:
        """Apply the chain to `data`, which is changed; return what is left of it and the selected index."""
        array = binding.llama_token_data_array()
        array.data = ctypes.cast(data.ctypes.data, type(array.data))
        array.size = len(data)
        array.selected = -1
        array.sorted = False
        binding.llama_sampler_apply(self._chain, ctypes.byref(array))
        offset = (ctypes.addressof(array.data.contents) - data.ctypes.data) // data.itemsize
        return data[offset : offset + array.size], array.selected

    def distribution(self, logits: np.ndarray) -> dict[int, float]:
        """Return {token: probability} of what is left (made with draw=False, or by mirostat)."""
        left, _ = self.apply(self.rows(logits))
        weights = np.exp(left["logit"].astype(np.float64) - float(left["logit"].max()))
        weights /= weights.sum()
        return {int(t): float(w) for t, w in zip(left["id"], weights, strict=True) if w > 0}

    def sample(self, logits: np.ndarray) -> int:
        left, selected = self.apply(self.rows(logits))
        return int(left["id"][selected])
