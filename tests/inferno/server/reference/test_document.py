"""The API description: every route and nothing else, valid OpenAPI 3.1, the structs that validate, a page without loads."""

import re
from html.parser import HTMLParser

import jsonschema
import msgspec
import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from inferno.errors import CODES
from inferno.server import schemas
from inferno.server.admin import schemas as admin
from inferno.server.reference import document, page
from inferno.server.reference.operations import OPERATIONS
from tests.route_table import all_routes, operations

BUILT = document.build(all_routes())


def described():
    return {
        (method.upper(), path): operation
        for path, item in BUILT["paths"].items()
        for method, operation in item.items()
        if method != "parameters"
    }


def test_every_route_is_described_and_every_description_has_a_route():
    routed = {(method, path): policy for method, path, policy in operations() if method != "HEAD"}
    assert set(described()) == set(routed) == set(OPERATIONS)
    for key, policy in routed.items():
        operation = described()[key]
        assert operation["x-permissions"] == list(policy.permissions)
        assert operation["security"] == ([] if policy.public else [{"bearer": []}, {"apiKey": []}])
        assert all(permission in operation["description"] for permission in policy.permissions)
        assert ("401" in operation["responses"]) == (not policy.public or "login" in key[1])
        assert ("403" in operation["responses"]) >= bool(policy.permissions)
        assert ("429" in operation["responses"]) >= policy.buckets


def test_the_document_is_valid_openapi_3_1():
    OpenAPIV31SpecValidator(BUILT).validate()
    identifiers = [operation["operationId"] for operation in described().values()]
    assert len(identifiers) == len(set(identifiers))


def test_every_error_is_the_envelope_and_names_its_codes():
    for operation in described().values():
        for status, answer in operation["responses"].items():
            assert "x-request-id" in answer["headers"]
            if int(status) < 400 or "Not now" in answer["description"]:
                continue
            assert "#/components/schemas/Error" in str(answer["content"]["application/json"]["schema"])
            codes = re.findall(r"`(\w+)`:", answer["description"])
            assert codes
            assert all(CODES[code].status == int(status) for code in codes)


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ({"messages": [{"role": "user", "content": "hi"}]}, schemas.ChatRequest),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}]}], "n": 16}, schemas.ChatRequest),
        ({"messages": []}, schemas.ChatRequest),
        ({"messages": [{"role": "nobody", "content": "hi"}]}, schemas.ChatRequest),
        ({"messages": [{"role": "user", "content": "hi"}], "temperature": 2.1}, schemas.ChatRequest),
        ({"messages": [{"role": "user", "content": "hi"}], "unheard_of": 1}, schemas.ChatRequest),
        ({"prompt": "x", "logit_bias": {"7": -100}}, schemas.CompletionRequest),
        ({"prompt": "x", "logit_bias": {"seven": 1}}, schemas.CompletionRequest),
        ({"prompt": "x", "stop": ["a", "b", "c", "d", "e"]}, schemas.CompletionRequest),
        ({"tokens": [-1]}, schemas.DetokenizeRequest),
        ({"username": "x", "password": "y" * 20, "role": "owner"}, admin.UserRequest),
        ({"name": "k", "limits": {"max_requests_per_minute": 0}}, admin.ManagedKeyRequest),
        ({"name": "k", "limits": {"max_requests_per_minute": 1}}, admin.ManagedKeyRequest),
    ],
)
def test_the_published_schemas_and_the_validating_structs_agree(body, kind):
    schema = {"$ref": f"#/components/schemas/{kind.__name__}", "components": BUILT["components"]}
    try:
        msgspec.convert(body, kind)
        accepted = True
    except msgspec.ValidationError:
        accepted = False
    assert jsonschema.Draft202012Validator(schema).is_valid(body) == accepted


def test_null_is_absent_for_every_optional_field_of_a_body():
    schema = {"$ref": "#/components/schemas/ChatRequest", "components": BUILT["components"]}
    fields = BUILT["components"]["schemas"]["ChatRequest"]["properties"]
    body = dict.fromkeys(fields) | {"messages": [{"role": "user", "content": "hi"}]}
    jsonschema.Draft202012Validator(schema).validate(body)


def test_content_that_is_always_refused_is_not_offered():
    assert "ImagePart" not in str(BUILT)
    assert "TextPart" in BUILT["components"]["schemas"]


def test_without_authentication_no_operation_asks_for_a_credential():
    built = document.build(all_routes(), is_open=True)
    assert all(item[method]["security"] == [] for item in built["paths"].values() for method in item if method != "parameters")


class _Loads(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.targets, self.anchors, self.identifiers = set(), [], set(), set()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        for name, value in attrs:
            if name in {"src", "href", "action", "data", "srcset"}:
                self.targets.append(value)
            if name == "id":
                self.identifiers.add(value)


def test_the_page_is_whole_in_itself():
    """No script, nothing loaded from anywhere, links only into the page, a policy that forbids the rest."""
    html = page.render(BUILT).decode()
    found = _Loads()
    found.feed(html)
    assert not found.tags & {"script", "link", "img", "iframe", "object", "embed", "form", "base"}
    assert {target[:1] for target in found.targets} == {"#"}
    assert {target[1:] for target in found.targets} <= found.identifiers
    assert "http://" not in html
    assert "https://" not in html
    assert page.POLICY.startswith("default-src 'none'; style-src 'sha256-")
    for path in BUILT["paths"]:
        assert path in html
    assert "<script" not in page.render({**BUILT, "info": {**BUILT["info"], "title": "<script>"}}).decode()
