"""How fast does `audit verify` walk a log, beside plain hashing of the same bytes?

Measured: inferno.security.audit_log.verify over a rotated log of 200,000 ordinary records, and hashlib.sha256 over the
same files in the same run. Not measured: a cold disk. One warm-up, median of five. Last line: JSON.
"""

from __future__ import annotations

import hashlib
import json
import platform
import statistics
import tempfile
import time
from pathlib import Path

from inferno.security import audit_log
from inferno.security.audit import AuditWriter
from inferno.security.audit_format import record

KEY = bytes(range(32))
NUM_RECORDS = 200_000


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path, head_path = Path(folder) / "audit" / "audit.jsonl", Path(folder) / "audit.head"
        writer = AuditWriter(path, head_path, KEY, max_file_bytes=16 << 20)
        writer.open()
        for start in range(0, NUM_RECORDS, 5000):
            writer.commit(
                record("auth.key", actor=f"acct_{i % 997:026d}", actor_type="key", ip="203.0.113.0",
                       target=f"k{i % 37:011d}", reason="first_use count=12", request_id=f"req_{i:032x}")
                for i in range(start, start + 5000)
            )  # fmt: skip
        writer.close()
        head = audit_log.read_head(head_path, KEY)
        size = sum(file.stat().st_size for file in audit_log.files(path))

        def plain() -> None:
            for file in audit_log.files(path):
                hashlib.sha256(file.read_bytes()).digest()

        def ours() -> None:
            found = audit_log.verify(path, KEY, head)
            if found.status != audit_log.INTACT or found.records != NUM_RECORDS:
                raise SystemExit(f"the log does not verify: {found}")

        times = {name: [] for name in ("verify", "sha256")}
        for _ in range(6):
            for name, run in (("verify", ours), ("sha256", plain)):
                begin = time.perf_counter()
                run()
                times[name].append(time.perf_counter() - begin)
        rates = {name: size / statistics.median(values[1:]) / 1e6 for name, values in times.items()}
    print(f"verify {rates['verify']:.0f} MB/s, plain SHA-256 {rates['sha256']:.0f} MB/s")
    print(json.dumps({"benchmark": "audit_verify", "megabytes_per_second": rates, "bytes": size,
                      "records": NUM_RECORDS, "machine": platform.machine()}))  # fmt: skip


if __name__ == "__main__":
    main()
