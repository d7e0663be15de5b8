"""The check of a model's files that nobody loads now: an engine process that ends after it.

A file comes from strangers, so it is read where no secret is, here as at a load. Knows nothing of HTTP. Runs in the
supervisor.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from typing import Any

from msgspec.structs import replace

from ..errors import ApiError
from ..messages import EngineSettings, EngineToSupervisor, LogLine, ModelRefused, ModelVerified
from .process import ENGINE_DEFAULTS, Timing, child_environment, spawn

CHECK_SECONDS = 590.0  # whoever asked waits for 600
_log = logging.getLogger("inferno.pool")


async def check_model(settings: EngineSettings, *, program: str, timing: Timing) -> dict[str, Any]:
    """Verify the files, digests included, and return the verdict as fields. Raises ApiError when there is none."""
    found: list[ModelVerified | ModelRefused] = []

    def received(message: Any, descriptors: list[int]) -> None:
        for number in descriptors:  # none is ever expected
            os.close(number)
        if isinstance(message, ModelVerified | ModelRefused):
            found.append(message)
        elif isinstance(message, LogLine) and message.level in ("warning", "error"):
            printed(message.text)

    def printed(line: str) -> None:
        _log.warning("check of model %s: %s", settings.name, line)

    began = time.monotonic()
    try:
        child = await spawn(
            f"check of model {settings.name}",
            program,
            kind=EngineToSupervisor,
            environment=ENGINE_DEFAULTS | child_environment(os.environ),
            on_message=received,
            on_line=printed,
            timing=timing,
        )
    except OSError as error:
        _log.error("check of model %s: cannot be started: %s", settings.name, error.strerror)
        raise ApiError("engine_failed", "The check could not be started.", retry_after=5.0) from None
    try:
        # Read from the file itself, whatever a load does: nothing is kept, so no copy is needed.
        child.send(replace(settings, only_verify=True, source="direct", known_files={}))
        async with asyncio.timeout(CHECK_SECONDS):
            await child.wait()
    except TimeoutError:
        raise ApiError("deadline_exceeded", "The check took too long.", retry_after=60.0) from None
    finally:
        child.kill()
        await child.wait()
    if not found:
        raise ApiError("engine_failed", "The check ended without a verdict; the log says why.", retry_after=5.0)
    return _shown(settings.name, found[0], time.monotonic() - began)


def _shown(name: str, verdict: ModelVerified | ModelRefused, seconds: float) -> dict[str, Any]:
    """The fields of `inferno models verify --json`, with the name in place of the path."""
    shown: dict[str, Any] = {"name": name, "verdict": "valid", "reason": None, "offset": None, "detail": None}
    if isinstance(verdict, ModelRefused):
        shown |= {"verdict": "invalid", "reason": verdict.reason, "offset": verdict.offset, "detail": verdict.detail}
        return shown | {"policy": [], "sha256": [], "seconds": round(seconds, 3)}
    return shown | {"policy": verdict.policy, "sha256": verdict.sha256, "seconds": round(seconds, 3)}
