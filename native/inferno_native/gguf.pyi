"""Types of the compiled model verifier; see gguf.pyx."""

import ctypes
from collections.abc import Collection, Sequence

from inferno_native.gguf_report import Facts as Facts
from inferno_native.gguf_report import GgufError as GgufError
from inferno_native.gguf_report import Report as Report
from inferno_native.gguf_report import SplitKeys as SplitKeys

VERIFIER_VERSION: int
MAX_TEMPLATE_BYTES: int
MAX_TEMPLATES: int
FILE_TYPES: dict[int, str]
SLUGS: dict[int, str]
TYPE_NAMES: list[str]

def verify_fd(
    fd: int, *, profile: str = "model", max_bytes: int | None = None, allow: Collection[str] = ...
) -> Report: ...
def verify_fds(
    fds: Sequence[int], *, profile: str = "model", max_bytes: int | None = None, allow: Collection[str] = ...
) -> Report: ...
def split_keys(fd: int) -> SplitKeys: ...
def block_sizes() -> dict[int, tuple[int, int]]: ...
def check_block_sizes(lib: ctypes.CDLL) -> None: ...
