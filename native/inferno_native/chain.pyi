from collections.abc import Iterable, Mapping, Sequence

from typing_extensions import Buffer

from .llama import Vocab

MAX_GRAMMAR_BYTES: int
MAX_GRAMMAR_DEPTH: int
MAX_GRAMMAR_RULES: int
MAX_REPETITIONS: int

class GrammarError(ValueError): ...

class Sampler:
    history: int
    def __init__(
        self,
        vocab: Vocab,
        *,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        typical_p: float = 1.0,
        repeat_penalty: float = 1.0,
        repeat_last_n: int = 64,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        dry_multiplier: float = 0.0,
        dry_base: float = 1.75,
        dry_allowed_length: int = 2,
        dry_penalty_last_n: int = 4096,
        dry_sequence_breakers: Sequence[str] = (),
        xtc_probability: float = 0.0,
        xtc_threshold: float = 0.1,
        mirostat: int = 0,
        mirostat_tau: float = 5.0,
        mirostat_eta: float = 0.1,
        logit_bias: Mapping[int, float] | None = None,
        grammar: str | None = None,
        seed: int = 0,
        top_logprobs: int | None = None,
        dry_breakers: Iterable[Iterable[int]] = (),
        chain: bool = False,
    ) -> None: ...
    def see(self, tokens: Iterable[int]) -> None: ...
    def draw(self, logits: Buffer) -> int: ...

def check_grammar(text: Buffer) -> None: ...
