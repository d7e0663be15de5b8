from collections.abc import Sequence

from typing_extensions import Buffer

MAX_STOPS: int
MAX_STOP_BYTES: int

class TextStream:
    num_received: int
    num_emitted: int
    stopped: bool
    stop_offset: int
    def __init__(self, stops: Sequence[bytes] = ()) -> None: ...
    def push(self, data: Buffer, match_stops: bool = True) -> str: ...
    def finish(self) -> str: ...
