"""One host in a test: store, audit log, shared table, and any number of workers that share them."""

import asyncio
import json
import os
from contextlib import asynccontextmanager

from inferno_native.epochs import EpochTable

from inferno.security import audit_log, keys
from inferno.security.accounts import SERVER, Accounts, Actor, KeyPolicy, KeySpec
from inferno.security.audit import AuditLog, AuditWriter
from inferno.security.auth import Authenticator
from inferno.security.keys import KeyHasher
from inferno.security.login import Login
from inferno.security.passwords import Hasher, HashQueue
from inferno.security.permissions import ROLES
from inferno.security.sessions import SessionTokens
from inferno.security.throttle import LoginThrottle
from inferno.storage.store import Store

AUDIT_KEY = bytes(range(32))
PEPPER = b"pepper of the tests, 32 bytes...."
JWT_SECRET = b"a signing secret of the tests, long enough"
PASSWORD = "plum-orbit-Yonder7"
CHEAP = Hasher(memory_kib=64, passes=1)


class Clock:
    """Wall and monotonic time that only a test moves."""

    def __init__(self, now=1_800_000_000.0):
        self.now = now

    def __call__(self):
        return self.now


class Worker:
    """What one front worker holds."""

    def __init__(self, host, *, policy=None, keys_enabled=True, previous=None, secret=JWT_SECRET, clock=None):
        clock = clock or host.clock
        self.store = Store(host.url)
        self.table = EpochTable.attach(os.dup(host.table.fd))
        self.passwords = HashQueue(CHEAP, lock_fd=self.table.fd)
        hasher = KeyHasher(PEPPER)
        self.tokens = SessionTokens(secret, previous)
        self.accounts = Accounts(
            self.store, host.audit, self.table, hasher, self.passwords, policy=policy or KeyPolicy(), clock=clock
        )
        self.login = Login(
            self.store, self.accounts, host.audit, self.tokens, self.passwords,
            LoginThrottle(self.table, PEPPER, clock=clock), clock=clock,
        )  # fmt: skip
        self.auth = Authenticator(
            self.store, host.audit, self.table, hasher, self.tokens,
            fingerprint_key=keys.fingerprint_key(PEPPER), keys_enabled=keys_enabled, clock=clock, monotonic=clock,
        )  # fmt: skip

    async def close(self):
        await self.auth.close()
        self.passwords.close()
        await self.store.close()
        self.table.close()


class Host:
    """The supervisor's side and its workers."""

    def __init__(self, url, folder):
        self.url = url
        self.folder = folder
        self.clock = Clock()
        self.table = EpochTable.create()
        self.audit_path = folder / "audit" / "audit.jsonl"
        self.head_path = folder / "audit.head"
        self.audit = AuditLog(AuditWriter(self.audit_path, self.head_path, AUDIT_KEY, clock=self.clock), clock=self.clock)
        self.workers = []

    def worker(self, **options):
        made = Worker(self, **options)
        self.workers.append(made)
        return made

    async def records(self, event=None, **wanted):
        """All records so far, after what waits was written."""
        await self.audit.append([], durable=True)
        found = [json.loads(line) for path in audit_log.files(self.audit_path) for line in path.read_bytes().splitlines()]
        return [
            values for values in found
            if event in (None, values["event"]) and all(values[name] == value for name, value in wanted.items())
        ]  # fmt: skip

    def verify(self):
        return audit_log.verify(self.audit_path, AUDIT_KEY, audit_log.read_head(self.head_path, AUDIT_KEY))


@asynccontextmanager
async def host_on(url, folder):
    host = Host(url, folder)
    store = Store(url)
    await store.open(migrate=True)
    await store.close()
    host.audit._writer.open()
    host.audit.start()
    try:
        yield host
    finally:
        for worker in host.workers:
            await worker.close()
        await host.audit.close()
        host.table.close()


async def make_user(worker, name="ann", role="user"):
    return await worker.accounts.create_account(SERVER, username=name, password=PASSWORD, role=role)


def actor(account, *, role=None):
    return Actor(id=account.id, actor_type="user", permissions=ROLES[role or account.role], ip="10.0.0.1", request_id="r1")


async def make_key(worker, account, name="k", **spec):
    return await worker.accounts.create_key(actor(account), account.id, KeySpec(name=name, **spec))


def bearer(credential):
    return [(b"host", b"x"), (b"authorization", b"Bearer " + credential.encode())]


def x_api_key(credential):
    return [(b"x-api-key", credential.encode())]


def run(body):
    return asyncio.run(body)
