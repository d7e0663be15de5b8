"""The text guards as the front asks them: what clients wrote on its way in, what models wrote on its way out.

In: lengths, refusals and cleaned texts with the path of the field, each finding told to audit and metrics. Out: one
streaming redactor per choice; log probabilities wait until their text is decided, and those that overlap a covered span
are withheld. A fault of the redactor ends the answer (OUT-5). The guards themselves are inferno.security.screening and
inferno_native.redactor; without them texts pass unchanged. Front workers.
"""

from __future__ import annotations

import codecs
import re
import urllib.parse
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

from ..errors import ApiError
from ..messages import TokenLogprob
from ..security.principal import Principal
from .http import Context, Header

# Headers in which clients name themselves or a request: nothing here reads them, but proxies, logs and traces around
# this server do. Host, Origin, credentials, forwarding, content and trace headers are held to forms of their own.
SCREENED_HEADERS = frozenset(
    (
        b"user-agent", b"x-request-id", b"x-client-request-id", b"x-correlation-id", b"idempotency-key",
        b"openai-organization", b"openai-project", b"openai-beta", b"anthropic-version", b"anthropic-beta",
        b"accept", b"accept-language",
    )
)  # fmt: skip
_HEX_ID = re.compile(rb"[0-9A-Fa-f-]{1,64}")  # a UUID, a trace's id: new with each request, and nothing a rule looks for
MAX_CLEAN_HEADERS = 512


class Verdict(Protocol):
    """What the screener says of texts."""

    @property
    def texts(self) -> tuple[str, ...]: ...
    @property
    def action(self) -> str: ...
    @property
    def categories(self) -> tuple[str, ...]: ...
    @property
    def code(self) -> str | None: ...
    @property
    def findings(self) -> tuple[Any, ...]: ...
    def raise_if_refused(self, param: str | None = None) -> None: ...


class Screener(Protocol):
    """inferno.security.screening.Screener."""

    max_input_length: int | None
    enabled: bool

    def load_rules(self, extra: Iterable[Path]) -> None: ...
    def content(self, texts: Sequence[str], *, max_input_length: int | None = None) -> Verdict: ...
    def identifier(self, name: str, value: str) -> Verdict: ...
    def header_value(self, name: str, value: str) -> Verdict: ...
    def url_value(self, name: str, value: str) -> Verdict: ...


class StreamRedactor(Protocol):
    """inferno_native.redactor.Redactor: any split of a text gives the same result."""

    counts: dict[str, int]
    spans: list[tuple[int, int, str]]

    @property
    def decided(self) -> int: ...
    def feed(self, text: str) -> str: ...
    def finish(self) -> str: ...


class RedactorMaker(Protocol):
    """Makes the redactor of one choice. `faults` are what it may raise."""

    faults: tuple[type[Exception], ...]

    def make(self, profile: str, allowed: frozenset[str]) -> StreamRedactor: ...
    def personal_values(self, texts: Iterable[str]) -> frozenset[str]: ...


class GuardEvents(Protocol):
    """Who is told: audit and metrics. Never waits or raises; never gets the text."""

    def screened(self, context: Context, categories: Sequence[str], action: str) -> None: ...
    def redacted(self, context: Context, counts: dict[str, int]) -> None: ...
    def fault(self, context: Context) -> None: ...


class NoEvents:
    def screened(self, context: Context, categories: Sequence[str], action: str) -> None:
        pass

    def redacted(self, context: Context, counts: dict[str, int]) -> None:
        pass

    def fault(self, context: Context) -> None:
        pass


Take = Callable[[str, str], str]  # (param, text) → the text that goes on


class TextCollector:
    """A Take that notes what passes and changes nothing."""

    def __init__(self) -> None:
        self.texts: list[tuple[str, str]] = []

    def __call__(self, param: str, text: str) -> str:
        self.texts.append((param, text))
        return text


def replay(texts: Iterable[str]) -> Take:
    """Return a Take that hands out these texts in the order in which a collector noted them."""
    remaining = iter(texts)
    return lambda param, text: next(remaining)


class Guards:
    """Both guards of one worker. None: that guard is off."""

    def __init__(
        self,
        *,
        screener: Screener | None = None,
        redactors: RedactorMaker | None = None,
        profile: str = "default",
        events: GuardEvents | None = None,
    ) -> None:
        self._screener = screener
        self._redactors = redactors
        self._profile = profile
        self._events: GuardEvents = events or NoEvents()
        self._clean_headers: set[bytes] = set()  # values in which nothing was found; clients repeat theirs

    def reload(self, max_input_length: int, rules: Iterable[Path] = ()) -> None:
        """Take over what may change while the server runs. Raises ConfigError for bad rules; then the old ones stay."""
        if self._screener is not None:
            self._screener.max_input_length = max_input_length
            self._screener.load_rules(rules)
            self._clean_headers.clear()

    def headers(self, context: Context, headers: Iterable[Header]) -> None:
        """Refuse a header by which a client names itself or the request when something is found in it. Raises ApiError."""
        screener = self._screener
        if screener is None:
            return
        clean = self._clean_headers
        for name, value in headers:
            if name not in SCREENED_HEADERS or value in clean or _HEX_ID.fullmatch(value):
                continue
            header = name.decode("ascii")
            verdict = screener.header_value(header, value.decode("latin-1"))
            if verdict.findings:
                self._events.screened(context, verdict.categories, verdict.action)
                verdict.raise_if_refused(header)
                continue
            if len(clean) >= MAX_CLEAN_HEADERS:
                clean.clear()
            if len(value) <= 256:
                clean.add(value)

    def path(self, context: Context, parameters: dict[str, str]) -> None:
        """Refuse a parameter of a path in which something is found. Raises ApiError."""
        for name, value in parameters.items():
            self._url_value(context, urllib.parse.quote(value, safe=""), name)

    def query(self, context: Context, query: bytes) -> None:
        """Refuse the part of a URL behind the question mark in which something is found. Raises ApiError."""
        # Names and values one by one: `user=` in front of a value is the form of a query, and no finding.
        for part in query.decode("latin-1").split("&"):
            for text in part.split("=", 1):
                self._url_value(context, text, None)

    def _url_value(self, context: Context, value: str, param: str | None) -> None:
        if self._screener is None or not value:
            return
        verdict = self._screener.url_value(param or "query", value)
        if verdict.findings:
            self._events.screened(context, verdict.categories, verdict.action)
        verdict.raise_if_refused(param)

    def identifiers(self, context: Context, values: Iterable[tuple[str, str]]) -> None:
        """Refuse (param, value) pairs that can be no names. Raises ApiError."""
        if self._screener is None:
            return
        for param, value in values:
            # Names of functions may start with what no model's name may.
            verdict = self._screener.identifier(param, value.lstrip("_-") or value)
            if verdict.findings:
                self._events.screened(context, verdict.categories, verdict.action)
            verdict.raise_if_refused(param)

    def content(
        self, context: Context, principal: Principal, texts: Sequence[tuple[str, str]]
    ) -> Sequence[str] | None:
        """Screen (param, text) pairs; return the texts in order as they may go on, None when all are unchanged."""
        screener = self._screener
        if screener is None or not screener.enabled:
            return None
        limit = _input_length(principal, screener.max_input_length)
        if limit is not None:
            for param, text in texts:
                if len(text) > limit:
                    message = (
                        f"A string of {len(text)} characters; at most {limit} are allowed (max_input_length)."
                    )
                    raise ApiError("input_too_long", message, param=param)
        verdict = screener.content([text for _, text in texts], max_input_length=limit)
        if verdict.findings:
            self._events.screened(context, verdict.categories, verdict.action)
        if verdict.code is not None:
            verdict.raise_if_refused(texts[verdict.findings[-1].index][0] if verdict.findings else None)
        return verdict.texts if any(a != b for a, (_, b) in zip(verdict.texts, texts, strict=True)) else None

    def output(self, context: Context, principal: Principal, texts: Iterable[str]) -> OutputGuard | None:
        """Return the guard of one answer; `texts` are the request's own, whose personal values may come back."""
        if self._redactors is None:
            return None
        profile = principal.redact_profile or self._profile
        allowed = self._redactors.personal_values(texts)
        makers = self._redactors
        return OutputGuard(lambda: makers.make(profile, allowed), makers.faults, self._events, context)


class OutputGuard:
    """The redactors of one answer, one per choice."""

    def __init__(
        self,
        make: Callable[[], StreamRedactor],
        faults: tuple[type[Exception], ...],
        events: GuardEvents,
        context: Context,
    ) -> None:
        self._make = make
        self._faults = faults
        self._events = events
        self._context = context
        self._choices: dict[int, _Choice] = {}
        self._counts: dict[str, int] = {}

    def pass_on(
        self, choice: int, text: str, logprobs: list[TokenLogprob] | None, *, is_last: bool
    ) -> tuple[str, list[TokenLogprob] | None]:
        """Return what may be shown now of a choice. Raises ApiError(redaction_failed); then nothing more may leave."""
        found = self._choices.get(choice)
        if found is None:
            found = self._choices[choice] = _Choice(self._make())
        try:
            shown, decided = found.pass_on(text, logprobs, is_last=is_last)
        except self._faults:
            self._events.fault(self._context)
            raise ApiError("redaction_failed", "The output guard failed; nothing more is sent.") from None
        if is_last:
            for kind, count in found.redactor.counts.items():
                self._counts[kind] = self._counts.get(kind, 0) + count
        return shown, decided

    def close(self) -> None:
        """Tell what was covered; call once at the end of the answer."""
        counts, self._counts = self._counts, {}
        if counts:
            self._events.redacted(self._context, counts)


class _Choice:
    """One redactor and the log probabilities whose text it has not decided yet."""

    def __init__(self, redactor: StreamRedactor) -> None:
        self.redactor = redactor
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._num_characters = 0
        self._is_partial = False
        self._waiting: list[tuple[int, int, TokenLogprob]] = []

    def pass_on(
        self, text: str, logprobs: list[TokenLogprob] | None, *, is_last: bool
    ) -> tuple[str, list[TokenLogprob] | None]:
        shown = self.redactor.feed(text) if text else ""
        if is_last:
            shown += self.redactor.finish()
        if logprobs is None and not self._waiting:
            return shown, None
        self._waiting.extend(self._placed(item) for item in logprobs or ())
        decided = self.redactor.decided
        spans = self.redactor.spans
        ready: list[TokenLogprob] = []
        waiting: list[tuple[int, int, TokenLogprob]] = []
        for start, end, item in self._waiting:
            if end > decided and not is_last:
                waiting.append((start, end, item))
            elif not any(first < end and start < last for first, last, _ in reversed(spans)):
                ready.append(item)
        self._waiting = waiting
        return shown, ready

    def _placed(self, item: TokenLogprob) -> tuple[int, int, TokenLogprob]:
        """Return where in the choice's characters a token stands; a part of one counts as the whole."""
        start = self._num_characters
        self._num_characters += len(self._decoder.decode(item.token))
        self._is_partial = bool(self._decoder.getstate()[0])
        return start, self._num_characters + self._is_partial, item


def _input_length(principal: Principal, configured: int | None) -> int | None:
    """The key's own limit, else the account's, else the configured one."""
    for limits in (principal.key_limits, principal.account_limits):
        if limits is not None and limits.max_input_length is not None:
            return limits.max_input_length
    return configured
