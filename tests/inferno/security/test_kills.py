"""kill -9 at every step of making a key: no key or a whole one, a store that opens, a log that verifies."""

import asyncio
import signal
import subprocess
import sys

import pytest

from inferno.errors import ApiError
from tests.identity_kit import host_on, make_user, x_api_key

MAX_STEPS = 80
# Every function named here is a step before and after it; the child kills itself at the step it is told.
CHILD = """
import asyncio, os, signal, sys
from pathlib import Path
from sqlalchemy import event
from inferno.security import accounts as accounts_module
from inferno.security.audit import AuditWriter
from inferno.storage import identities
from inferno.storage.store import Store
from tests.identity_kit import Host, make_key

url, folder, target = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
count = 0

def step():
    global count
    count += 1
    if count == target:
        os.kill(os.getpid(), signal.SIGKILL)

def wrap(owner, name):
    real = getattr(owner, name)
    if asyncio.iscoroutinefunction(real):
        async def stepped(*a, **k):
            step(); result = await real(*a, **k); step(); return result
    else:
        def stepped(*a, **k):
            step(); result = real(*a, **k); step(); return result
    setattr(owner, name, stepped)

class Epochs:
    def __init__(self, real): self.real = real
    def bump(self, identity): step(); self.real.bump(identity); step()

async def main():
    host = Host(url, folder)
    host.audit._writer.open()
    host.audit.start()
    worker = host.worker()
    await worker.store.open()
    ann = await worker.accounts.account_named("ann")
    worker.accounts._epochs = Epochs(worker.table)
    for name in ("account_by_id", "num_live_keys", "insert_key", "note_change"):
        wrap(identities, name)
    wrap(AuditWriter, "commit")
    for name in ("write", "fsync", "pwrite"):
        wrap(os, name)
    engine = worker.store._writer.sync_engine
    event.listen(engine, "begin", lambda connection: step())
    event.listen(engine, "commit", lambda connection: step())
    _, secret = await make_key(worker, ann)
    step()
    sys.stdout.write(secret); sys.stdout.flush()
    step()
    await worker.close()
    await host.audit.close()
    sys.stdout.write(f" {count}"); sys.stdout.flush()

asyncio.run(main())
"""


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_kill_9_at_every_step_of_making_a_key(tmp_path):
    url = f"sqlite:///{tmp_path}/inferno.db"

    async def prepare():
        async with host_on(url, tmp_path) as host:
            return await make_user(host.worker())

    async def look(secret):
        """Return how many keys there are, after proving store, log and the key that was shown."""
        async with host_on(url, tmp_path) as host:
            worker = host.worker()
            found = await worker.accounts.list_keys(ann.id, num_rows=1000)
            for key in found:
                assert len(key.digest) == 32
                assert key.permissions == '["read_models","run_inference","use_streaming"]'
            if secret:
                assert (await worker.auth.authenticate(x_api_key(secret), b"", "10.0.0.1")).id == ann.id
            recorded = {row["target"] for row in await host.records("key.create", result="success")}
            assert {key.id for key in found} <= recorded  # none without its record
            assert host.verify().status == 0
            with pytest.raises(ApiError):
                await worker.auth.authenticate(x_api_key("inf_" + "0" * 12 + "_" + "0" * 49), b"", "10.0.0.1")
            return len(found)

    ann = asyncio.run(prepare())
    num_keys, num_kills, made_before_answer = 0, 0, 0
    for target in range(1, MAX_STEPS):
        child = subprocess.run(
            [sys.executable, "-c", CHILD, url, str(tmp_path), str(target)], capture_output=True, text=True, timeout=300
        )
        secret, _, total = child.stdout.partition(" ")
        now = asyncio.run(look(secret))
        assert now in (num_keys, num_keys + 1)
        if secret:
            assert now == num_keys + 1  # what was shown exists
        elif now > num_keys:
            made_before_answer += 1
        num_keys = now
        if child.returncode == 0:
            assert int(total) < target
            break
        assert child.returncode == -signal.SIGKILL, child.stderr
        num_kills += 1
    else:
        raise AssertionError("the steps did not end")
    assert num_kills > 20
    assert made_before_answer > 0  # killed between commit and answer: a whole key that nobody saw
