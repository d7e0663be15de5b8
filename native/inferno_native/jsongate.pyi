MAX_SIZE: int
REASONS: dict[int, str]

def check(
    data: bytes | bytearray | memoryview,
    max_depth: int = 64,
    max_members: int = 4096,
    max_total_members: int = 262144,
    max_items: int = 1048576,
) -> tuple[str, int] | None: ...
