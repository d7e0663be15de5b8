"""A front worker's end of its control socket: questions to the supervisor, audit records, and their answers.

Owns serial numbers and waiting futures. What comes from the supervisor otherwise is handed to the worker. Front workers.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any

from ..errors import CODES, ApiError, ProtocolError
from ..ipc import AsyncChannel
from ..messages import MAX_CONTROL_FRAME, Answer, Ask, AuditAppend, SupervisorToWorker, WorkerToSupervisor


class Control:
    """The control socket. `on_message(message, descriptors)` gets all but answers; `on_close` is called once."""

    def __init__(
        self, sock: socket.socket, on_message: Callable[[Any, list[int]], None], on_close: Callable[[], None]
    ) -> None:
        self._channel = AsyncChannel(sock, SupervisorToWorker, max_frame_bytes=MAX_CONTROL_FRAME)
        self._on_message = on_message
        self._on_close = on_close
        self._waiting: dict[int, asyncio.Future[Answer]] = {}
        self._next_serial = 1

    def start(self) -> None:
        self._channel.start(self._message, self._closed)

    def send(self, message: WorkerToSupervisor) -> None:
        self._channel.send(message)

    def close(self) -> None:
        self._channel.close()

    async def ask(
        self, what: str, arguments: dict[str, Any] | None = None, *, timeout_seconds: float = 30.0
    ) -> Any:
        """Return the supervisor's answer to a question. Raises ApiError with the code that it answered."""
        serial = self._serial()
        return await self._answered(
            serial, Ask(serial=serial, what=what, arguments=arguments or {}), timeout_seconds
        )

    async def audit(
        self, records: list[dict[str, Any]], *, durable: bool, timeout_seconds: float = 10.0
    ) -> None:
        """Hand over audit records; with `durable` wait until they are on disk. Raises ApiError audit_unavailable."""
        serial = self._serial()
        message = AuditAppend(serial=serial, records=records, durable=durable)
        if not durable:
            try:
                self.send(message)
            except ProtocolError:
                raise ApiError(
                    "audit_unavailable", "The audit log cannot be written.", retry_after=5.0
                ) from None
            return
        try:
            await self._answered(serial, message, timeout_seconds)
        except TimeoutError:
            raise ApiError("audit_unavailable", "The audit log cannot be written.", retry_after=5.0) from None

    async def _answered(self, serial: int, message: Ask | AuditAppend, timeout_seconds: float) -> Any:
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting[serial] = future
        try:
            self.send(message)
            async with asyncio.timeout(timeout_seconds):
                answer = await future
        except ProtocolError:
            raise ApiError("shutting_down", "The server is stopping.", retry_after=5.0) from None
        finally:
            self._waiting.pop(serial, None)
        if answer.error is not None:
            code = answer.error if answer.error in CODES else "internal_error"
            details = answer.result if isinstance(answer.result, dict) else {}
            raise ApiError(
                code,
                str(details.get("message") or CODES[code].meaning),
                param=details.get("param"),
                retry_after=5.0 if CODES[code].status == 503 else None,
            )
        return answer.result

    def _serial(self) -> int:
        serial = self._next_serial
        self._next_serial += 1
        return serial

    def _message(self, message: Any, descriptors: list[int]) -> None:
        if isinstance(message, Answer):
            future = self._waiting.get(message.serial)
            if future is not None and not future.done():
                future.set_result(message)
            return
        self._on_message(message, descriptors)

    def _closed(self, error: BaseException | None) -> None:
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(ProtocolError("the control socket is closed"))
        self._on_close()
