from collections.abc import Buffer, Iterable, Mapping, Sequence

MAX_VOCAB: int
MAX_HISTORY: int

class Sampler:
    n_vocab: int
    history: int
    def __init__(
        self,
        n_vocab: int,
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
        dry_breakers: Iterable[Sequence[int]] = (),
        xtc_probability: float = 0.0,
        xtc_threshold: float = 0.1,
        mirostat: int = 0,
        mirostat_tau: float = 5.0,
        mirostat_eta: float = 0.1,
        logit_bias: Mapping[int, float] | None = None,
        seed: int = 0,
        max_history: int = ...,
    ) -> None: ...
    @property
    def mu(self) -> float: ...
    @property
    def draws(self) -> int: ...
    def accept(self, tokens: Iterable[int]) -> None: ...
    def sample(self, logits: Buffer, forbidden: Buffer | None = None) -> int: ...
    def distribution(self, logits: Buffer) -> dict[int, float]: ...
    def logprobs(self, logits: Buffer, token: int, top: int = 0) -> tuple[float, list[tuple[int, float]]]: ...

def bench_rows(sampler: Sampler, rows: Buffer) -> int: ...
