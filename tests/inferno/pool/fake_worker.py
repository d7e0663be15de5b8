"""A front worker for supervisor tests: a real process that keeps the protocol and reports what it is told by Ask.

Its behaviour follows security.max_input_length, the one number of its settings that tests vary: 11 ends before it is
ready, 12 never answers pings, 13 ignores Drain.
"""

import os
import socket
import sys

from inferno import config
from inferno.ipc import BlockingChannel
from inferno.messages import (
    MAX_CONTROL_FRAME,
    Answer,
    Ask,
    AuditAppend,
    Drain,
    EngineGone,
    EngineUp,
    Ping,
    Pong,
    Reload,
    SupervisorToWorker,
    WorkerReady,
    WorkerSettings,
)


def main() -> None:
    channel = BlockingChannel(
        socket.socket(fileno=int(sys.argv[1])), SupervisorToWorker, max_frame_bytes=MAX_CONTROL_FRAME
    )
    first = channel.receive()
    assert first is not None
    settings, descriptors = first
    assert isinstance(settings, WorkerSettings)
    behaviour = config.decode(settings.settings).security.max_input_length
    if behaviour == 11:
        sys.exit(3)
    serial = 0

    def report(what: str, **fields: object) -> None:
        nonlocal serial
        serial += 1
        channel.send(
            Ask(
                serial=serial,
                what="test.report",
                arguments={"what": what, "worker": settings.worker, **fields},
            )
        )

    names = [*settings.listeners, *settings.shared]
    assert len(names) == len(descriptors)
    channel.send(WorkerReady(worker=settings.worker, pid=os.getpid()))
    report(
        "settings",
        pid=os.getpid(),
        models=settings.models,
        secrets=sorted(settings.secrets),
        names=names,
        table_arguments=settings.table_arguments,
        listens=socket.socket(fileno=os.dup(descriptors[0])).getsockname()[1],
        contents=[os.pread(number, 64, 0) for number in descriptors[len(settings.listeners) :]],
        environ=sorted(os.environ),
        own_group=os.getpgrp() == os.getpid(),
        open_files=sorted(int(name) for name in os.listdir("/proc/self/fd")),
    )
    while (received := channel.receive()) is not None:
        message, descriptors = received
        match message:
            case Ping():
                if behaviour != 12:
                    channel.send(Pong(serial=message.serial))
            case EngineUp():
                with socket.socket(fileno=descriptors[0]) as engine:
                    engine.settimeout(60)
                    heard = engine.recv(100).decode()
                report("engine_up", model=message.model, generation=message.generation, heard=heard)
            case EngineGone():
                report("engine_gone", model=message.model, state=message.state, detail=message.detail)
            case Reload():
                length = config.decode(message.settings).security.max_input_length
                report("reload", max_input_length=length)
                channel.send(
                    AuditAppend(serial=1000 + length, records=[{"event": "input.flagged"}], durable=True)
                )
            case Answer():
                if message.serial >= 1000:
                    report("appended", error=message.error)
            case Drain():
                report("drain", grace=message.grace_seconds)
                if behaviour != 13:
                    sys.exit(0)


if __name__ == "__main__":
    main()
