"""Loaded by the generator of requests in tests/end_to_end/test_openapi.py (not by pytest): keeps the model's work small.

Nothing here changes what is asserted about an answer: one token instead of a whole context, one credential instead of
two (two are refused by contract, which test_identity.py shows), no unloading of the only model, and no revoking or limiting
of the account and key (PROTECTED_IDS) that ask.
"""

import os

import schemathesis

PROTECTED = os.environ.get("PROTECTED_IDS", "").split()
GENERATION = ("/v1/chat/completions", "/v1/completions")


def is_valid_count(value):
    return value is None or (isinstance(value, int) and not isinstance(value, bool) and 1 <= value < 1 << 31)


@schemathesis.hook
def before_call(context, case, kwargs):
    """Change a request before it is sent."""
    if case.operation.path in GENERATION and isinstance(case.body, dict):
        for name in ("max_tokens", "max_completion_tokens"):
            if is_valid_count(case.body.get(name)):  # what is wrong stays wrong
                case.body[name] = 1
        if "n" in case.body and is_valid_count(case.body["n"]) and (case.body["n"] or 1) <= 16:
            case.body["n"] = 1
    if case.headers:
        case.headers.pop("X-API-Key", None)
    for name, value in (case.path_parameters or {}).items():
        if value in PROTECTED or case.operation.path.endswith("/unload"):
            case.path_parameters[name] = "no-such-thing"
