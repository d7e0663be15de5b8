"""An engine process that repeats the last message (tests.fakes.FakeEngine behind the supervisor's protocol)."""

import socket
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from inferno.ipc import BlockingChannel
from inferno.messages import (
    MAX_CONTROL_FRAME,
    AttachWorker,
    Drain,
    EngineReady,
    EngineSettings,
    ModelRefused,
    Ping,
    Pong,
    SupervisorToEngine,
)
from tests.fakes import FakeEngine, fake_info


def main() -> None:
    channel = BlockingChannel(
        socket.socket(fileno=int(sys.argv[1])), SupervisorToEngine, max_frame_bytes=MAX_CONTROL_FRAME
    )
    first = channel.receive()
    assert first is not None
    settings = first[0]
    assert isinstance(settings, EngineSettings)
    if Path(settings.paths[0]).read_bytes()[:4] != b"GGUF":
        channel.send(ModelRefused(reason="bad-magic", detail="not a GGUF file"))
        return
    info = fake_info(settings.name)
    channel.send(EngineReady(model=info))
    connections = []
    while (received := channel.receive()) is not None:
        message, descriptors = received
        match message:
            case Ping():
                channel.send(Pong(serial=message.serial))
            case AttachWorker():
                connections.append(FakeEngine(socket.socket(fileno=descriptors[0]), info))
            case Drain():
                break


if __name__ == "__main__":
    main()
