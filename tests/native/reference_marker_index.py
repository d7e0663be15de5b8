"""Plain-Python twin of inferno_native.marker_index."""


def find(texts: list[str], text: str) -> list[tuple[int, int, int]]:
    """Return (start, end, index) of every occurrence, by start, then by length."""
    found = []
    for number, needle in enumerate(texts):
        start = text.find(needle)
        while start >= 0:
            found.append((start, start + len(needle), number))
            start = text.find(needle, start + 1)
    return sorted(found)
