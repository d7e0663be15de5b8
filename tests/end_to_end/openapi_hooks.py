"""Loaded by the generator of requests in tests/end_to_end/test_openapi.py (not by pytest): keeps the model's work small.

Nothing here changes what is asserted about an answer: one token instead of a whole context, one credential instead of
two (two are refused by contract, which test_identity.py shows), and no unloading of the only model.
"""

import schemathesis

GENERATION = ("/v1/chat/completions", "/v1/completions")


@schemathesis.hook
def before_call(context, case, kwargs):
    """Change a request before it is sent."""
    is_valid = case.meta is None or case.meta.generation.mode.is_positive
    if case.operation.path in GENERATION and is_valid and isinstance(case.body, dict):
        case.body["max_tokens"] = 1
        case.body.pop("max_completion_tokens", None)
        if isinstance(case.body.get("n"), int):
            case.body["n"] = min(case.body["n"], 2)
    if case.headers:
        case.headers.pop("X-API-Key", None)
    if case.path_parameters and case.operation.path.endswith("/unload"):
        case.path_parameters["name"] = "no-such-model"
