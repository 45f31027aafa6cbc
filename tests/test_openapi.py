"""The OpenAPI page: complete enough to work from, and true of what the server answers."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest

import app
from tests.conftest import Serve
from tests.harness import Client, Json, Server, an_order

METHODS: Final = {"get", "put", "post", "delete", "patch", "options", "head", "trace"}
PROBLEM: Final = "application/problem+json"


class Operation(NamedTuple):
    """One operation of the page."""

    method: str
    path: str
    about: Json

    def __str__(self) -> str:
        return f"{self.method.upper()} {self.path}"


@pytest.fixture(scope="module")
def page(server: Server) -> Json:
    """The page as the server serves it."""
    with closing(server.client()) as client:
        served: Json = client.get("/openapi.json").json
    return served


@pytest.fixture(scope="module")
def operations(page: Json) -> list[Operation]:
    return [
        Operation(method, path, about)
        for path, methods in page["paths"].items()
        for method, about in methods.items()
        if method in METHODS
    ]


def resolve(page: Json, schema: Json) -> Json:
    """A schema of which references to the page's components are followed."""
    while "$ref" in schema:
        schema = page["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    return schema


def test_every_endpoint_of_the_contract_is_on_the_page(operations: list[Operation]) -> None:
    """What DESIGN.md names is documented."""
    assert {
        "POST /api/order",
        "GET /api/order/{order_id}",
        "PATCH /api/order/{order_id}",
        "DELETE /api/order/{order_id}",
        "POST /api/order/{order_id}/items",
        "PATCH /api/order/{order_id}/items/{line}",
        "POST /api/order/{order_id}/cancel",
        "GET /api/order/{order_id}/events",
        "GET /api/orders",
        "GET /api/stats",
        "GET /api/changes",
        "GET /api/events",
        "GET /healthz",
        "GET /readyz",
        "GET /metrics",
    } <= {str(operation) for operation in operations}


def test_every_operation_is_described(operations: list[Operation]) -> None:
    """Every operation has an id of its own, a tag, a summary, a description and an answer that means success."""
    for operation in operations:
        for name in ("operationId", "tags", "summary", "description"):
            assert operation.about.get(name), f"{operation} has no {name}"
        assert any(status.startswith("2") for status in operation.about["responses"]), operation
        assert all(each.get("description") for each in operation.about["responses"].values()), operation
    ids = [operation.about["operationId"] for operation in operations]
    assert len(set(ids)) == len(ids)


def test_every_success_has_a_schema(page: Json, operations: list[Operation]) -> None:
    """What a successful answer looks like is told for every operation that answers with JSON."""
    for operation in operations:
        for status, response in operation.about["responses"].items():
            if status.startswith("2") and "application/json" in response.get("content", {}):
                assert resolve(page, response["content"]["application/json"]["schema"]), f"{operation} {status}"


def faults_of(page: Json, status: str, response: Json) -> list[str]:
    """What is wrong with how an error is documented."""
    if list(response["content"]) != [PROBLEM]:
        return [f"is documented as {', '.join(response['content'])}"]
    schema = resolve(page, response["content"][PROBLEM]["schema"])
    if set(schema.get("required", [])) != {"type", "title", "status", "detail", "code", "instance"}:
        return [f"is documented as {schema['title']}"]
    codes = codes_of(response)
    return [f"names {code}" for code in codes or ["no code"] if app.CODES.get(code, (0,))[0] != int(status)]


def codes_of(response: Json) -> list[str]:
    """The codes that a documented error names in its description."""
    return re.findall(r"`([a-z_]+)`", response["description"])


def test_every_refusal_is_documented_as_a_problem(page: Json, operations: list[Operation]) -> None:
    """Every documented error is a problem document that names its codes, each with the status that it has."""
    errors = [
        (operation, status, response)
        for operation in operations
        for status, response in operation.about["responses"].items()
        if status >= "400"
    ]
    found = [
        f"{operation}: {status} {fault}"
        for operation, status, each in errors
        for fault in faults_of(page, status, each)
    ]
    assert not found, "\n".join(found)
    assert {str(operation) for operation, *_ in errors} == {*map(str, operations)}, "an operation documents no errors"
    named = {code for *_, response in errors for code in codes_of(response)}
    assert set(app.CODES) - named <= {"not_found", "method_not_allowed"}, "codes that no operation documents"


def test_every_write_documents_its_key_and_condition(operations: list[Operation]) -> None:
    """Writes of orders document Idempotency-Key, and those of an order that is there If-Match; reads neither."""
    for operation in operations:
        if "orders" in operation.about["tags"]:
            headers = {each["name"] for each in operation.about.get("parameters", []) if each["in"] == "header"}
            expected = set() if operation.method == "get" else {"Idempotency-Key"}
            if expected and "{" in operation.path:
                expected.add("If-Match")
            assert headers == expected, operation


def examples_of(page: Json, operation: Operation) -> list[Any]:
    """The example bodies of an operation, wherever OpenAPI lets them stand."""
    media = operation.about["requestBody"]["content"]["application/json"]
    schema = media["schema"]
    places = [media, schema, *(resolve(page, each) for each in [schema, *schema.get("anyOf", [])])]
    found = []
    for place in places:
        examples = place.get("examples", [])
        values = [each["value"] for each in examples.values()] if isinstance(examples, dict) else examples
        found += [*values, *([place["example"]] if "example" in place else [])]
    return found


def test_every_request_body_has_an_example(page: Json, operations: list[Operation]) -> None:
    """Whoever tries an operation out from /docs finds a body that makes sense."""
    without = [each for each in operations if "requestBody" in each.about and not examples_of(page, each)]
    assert not without, f"no example: {', '.join(map(str, without))}"


def test_examples_of_order_requests_are_accepted(client: Client, page: Json, operations: list[Operation]) -> None:
    """An example of a body is one that the server takes."""
    for operation in operations:
        if "requestBody" in operation.about and "orders" in operation.about["tags"]:
            for example in examples_of(page, operation):
                order = client.place(an_order(fire_at="2901-01-01T00:00:00Z"))
                path = operation.path.format(order_id=order["id"], line=1)
                reply = client.request(operation.method.upper(), path, example)
                assert reply.status in {200, 201}, f"{operation} {example}: {reply.body!r}"


# ---------------------------------------------------------------------------------------------------------------------
# The server as the page says
# ---------------------------------------------------------------------------------------------------------------------

CONFIG: Final = """
seed = 92
request-timeout = 20.0
continue-on-failure = true
checks.negative_data_rejection.expected-statuses = [400, 401, 403, 404, 405, 409, 410, 412, 413, 422, 429]

# A poll that waits is tested with the feed; here it would only take time.
[[operations]]
include-name = "GET /api/changes"
parameters = { "query.wait" = 0 }
"""

EVERY_PHASE: Final = "examples,coverage,fuzzing,stateful"
NOT_PROMISED: Final = (
    "positive_data_acceptance",  # what is well-formed may still be stale, or not fit the order's state
    "use_after_free",  # an order that was deleted is cancelled: it stays readable
    "ignored_auth",  # without an account nobody needs a token; the accounts' own tests say who may do what
)


@pytest.fixture
def fuzzed(serve: Serve) -> Server:
    return serve().start()


def explore(server: Server, folder: Path, *options: str, phases: str = EVERY_PHASE, examples: int = 15) -> None:
    """Let schemathesis try a server, the same way every time, and fail with its report of what it found."""
    config = folder / "schemathesis.toml"
    config.write_text(CONFIG)
    finished = subprocess.run(
        [
            *(sys.executable, "-m", "schemathesis.cli", "--config-file", str(config)),
            *("run", f"http://127.0.0.1:{server.port}/openapi.json"),
            *("--phases", phases),
            *("--max-examples", str(examples)),
            *("--exclude-path", "/api/events"),  # never ends
            *("--exclude-checks", ",".join(NOT_PROMISED)),
            *options,
        ],
        cwd=folder,
        env={**os.environ, "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert finished.returncode == 0, finished.stdout[-20_000:] + finished.stderr[-2_000:]
    assert " 500 " not in server.log, server.log[-5_000:]
    assert "Traceback" not in server.log, server.log[-5_000:]


def test_schemathesis_against_orders_feed_and_service(fuzzed: Server, tmp_path: Path) -> None:
    """Whatever a client sends, alone or in sequence: no 5xx, and no answer that the page doesn't tell."""
    explore(fuzzed, tmp_path, "--exclude-tag", "accounts")


def signed_in(server: Server) -> str:
    """The token of a manager, who is the server's first account."""
    owner = {"username": "owner", "password": "correct horse battery"}
    with closing(server.client()) as client:
        assert client.request("POST", "/api/register", {**owner, "role": "manager"}).status == 201
        token: str = client.request("POST", "/api/login", owner).json["token"]
    return token


def test_schemathesis_against_accounts(fuzzed: Server, tmp_path: Path) -> None:
    """The operations on accounts and tokens, tried by a manager, answer as the page says too."""
    own = ("--exclude-path", "/api/logout", "--exclude-path", "/api/tokens/{token_id}")  # these end its own session
    token = signed_in(fuzzed)
    explore(fuzzed, tmp_path, "--include-tag", "accounts", *own, "-H", f"Authorization: Bearer {token}", examples=5)


def test_schemathesis_without_a_token(fuzzed: Server, tmp_path: Path) -> None:
    """A stranger is refused by every operation as the page says, whatever is sent."""
    signed_in(fuzzed)
    explore(fuzzed, tmp_path, phases="fuzzing", examples=3)
    with closing(fuzzed.client()) as client:
        assert json.loads(client.get("/api/orders").body)["code"] == "unauthenticated"
