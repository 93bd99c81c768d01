"""Paths and methods that there are not: an error in OpenAI's shape that names what serves instead."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from local import template
from local.routing import GatewayError, Router
from naru.plain_text import is_unseen
from naru.unknown_paths import SERVED, refusal

CHAT = "POST /v1/chat/completions"
FUNCTION = Path(__file__).parents[2] / "functions" / "dashboard" / "app.py"
API = template.load().api


@pytest.fixture(scope="module")
def function() -> ModuleType:
    spec = importlib.util.spec_from_file_location("dashboard_of_unknown_paths", FUNCTION)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def ask(function: ModuleType, method: str, path: str, headers: dict[str, str] | None = None) -> dict[str, Any]:
    """What API Gateway's answer is, of the function that the template's routes choose."""
    route, parameters = Router(API.routes).match(method, path)
    assert route.function == "DashboardFunction", route
    event = {
        "resource": route.resource,
        "path": f"/base{path}",  # as behind a domain of one's own
        "httpMethod": method,
        "pathParameters": parameters or None,
        "headers": headers,
        "requestContext": {"path": f"/v1{path}", "requestId": "0f1e2d3c"},
    }
    answer: dict[str, Any] = function.lambda_handler(event, None)
    return answer


def error_of(answer: dict[str, Any]) -> dict[str, Any]:
    error: dict[str, Any] = json.loads(answer["body"])["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["type"], error["param"]) == ("invalid_request_error", None)
    assert answer["headers"]["x-request-id"] == "0f1e2d3c"
    assert answer["headers"]["Access-Control-Allow-Origin"] == "*"
    assert answer["headers"]["x-should-retry"] == "false"
    return error


@pytest.mark.parametrize(
    ("method", "path", "named"),
    [
        ("POST", "/responses", CHAT),
        ("POST", "/responses/", CHAT),
        ("GET", "/responses/resp_1", CHAT),
        ("POST", "/responses/resp_1/cancel", CHAT),
        ("DELETE", "/responses/resp_1", CHAT),
        ("POST", "/Responses", CHAT),
        ("POST", "/v1/responses", CHAT),
        ("POST", "/completions", CHAT),
        ("POST", "/engines/davinci/completions", CHAT),
        ("POST", "/messages", CHAT),
        ("POST", "/messages/count_tokens", CHAT),
        ("POST", "/v1/messages", CHAT),
        ("POST", "/embeddings", "provider"),
        ("POST", "/images/generations", "provider"),
        ("POST", "/audio/transcriptions", "provider"),
        ("POST", "/audio/speech", "provider"),
        ("POST", "/moderations", "provider"),
        ("POST", "/fine_tuning/jobs", "provider"),
        ("GET", "/realtime", "provider"),
        ("POST", "/assistants", CHAT),
        ("POST", "/threads/thread_1/runs", CHAT),
        ("POST", "/conversations", CHAT),
        ("POST", "/vector_stores", CHAT),
        ("POST", "/chat/completion", f"Did you mean {CHAT}?"),
        ("POST", "/chat/completions/", None),
        ("POST", "/chat/compeltions", f"Did you mean {CHAT}?"),
        ("POST", "/Chat/Completions", CHAT),
        ("POST", "/chat", "/v1/openapi.json"),
        ("GET", "/model", "Did you mean GET /v1/models?"),
        ("GET", "/batch", "Did you mean GET or POST /v1/batches?"),
        ("GET", "/file", "Did you mean GET or POST /v1/files?"),
        ("POST", "/v1/chat/completions", f"The base URL has /v1 twice: it is {CHAT}."),
        ("POST", "/v1/v1/chat/completions", f"The base URL has /v1 twice: it is {CHAT}."),
        ("GET", "/v1/models", "The base URL has /v1 twice: it is GET /v1/models."),
        ("POST", "/openai/deployments/gpt/chat/completions", CHAT),
        ("POST", "/uploads", "POST /v1/uploads/presigned"),
        ("POST", "/uploads/upload_1/parts", "POST /v1/uploads/presigned"),
        ("GET", "/organization/usage/embeddings", "Did you mean GET /v1/organization/usage/completions?"),
        ("GET", "/", "openapi.json"),
        ("GET", "/v1", "openapi.json"),
        ("GET", "/favicon.ico", "openapi.json"),
        ("GET", "/.env", "openapi.json"),
        ("GET", "/a/b/c/d/e/f/g", "openapi.json"),
        ("PROPFIND", "/responses", CHAT),
        ("PUT", "/nothing", "openapi.json"),
    ],
)
def test_an_absent_path_names_what_serves_instead(function: ModuleType, method: str, path: str, named: str | None) -> None:  # fmt: skip
    if named is None:
        # API Gateway does not tell a slash at the end apart.
        assert Router(API.routes).match(method, path)[0].function == "ChatFunction"
        return
    answer = ask(function, method, path)
    error = error_of(answer)
    assert (answer["statusCode"], error["code"]) == (404, "unknown_url")
    assert named in error["message"]
    assert "/base" not in error["message"]


@pytest.mark.parametrize(("resource", "methods"), SERVED.items())
def test_a_method_that_a_path_has_not_is_a_405_with_those_it_has(
    function: ModuleType, resource: str, methods: tuple[str, ...]
) -> None:
    path = resource.replace("{key}", "key_1").replace("{", "").replace("}", "")
    for method in {"GET", "POST", "PUT", "PATCH", "DELETE", "TRACE"} - {*methods}:
        answer = ask(function, method, path)
        assert (answer["statusCode"], error_of(answer)["code"]) == (405, "method_not_allowed")
        assert answer["headers"]["Allow"] == ", ".join((*methods, "OPTIONS"))
        assert methods[0] in error_of(answer)["message"]
    head = ask(function, "HEAD", path)
    assert (head["statusCode"], head["body"], head["headers"]["Allow"]) == (405, "", ", ".join((*methods, "OPTIONS")))


@pytest.mark.parametrize("path", ["/responses", "/v1/chat/completions", "/nothing", "/", "/health"])
def test_a_browser_may_ask_and_is_told(function: ModuleType, path: str) -> None:
    """Else it shows a CORS failure in place of the error."""
    asked = {"Access-Control-Request-Headers": "authorization,x-stainless-lang", "Origin": "https://app.example"}
    answer = ask(function, "OPTIONS", path, asked)
    assert (answer["statusCode"], answer["body"]) == (204, "")
    assert answer["headers"]["Access-Control-Allow-Headers"] == "authorization,x-stainless-lang"
    assert "POST" in answer["headers"]["Access-Control-Allow-Methods"]
    hostile = ask(function, "OPTIONS", path, {"access-control-request-headers": "a\r\nSet-Cookie: x=1"})
    assert hostile["headers"]["Access-Control-Allow-Headers"] == "authorization, content-type"


@pytest.mark.parametrize("method", ["GET", "POST", "HEAD"])
def test_a_head_has_no_body(function: ModuleType, method: str) -> None:
    assert (ask(function, method, "/responses")["body"] == "") == (method == "HEAD")


@pytest.mark.parametrize("path", ["/" + "a" * 100_000, "/" * 50_000 + "x", "/\x1b[2J\u202e\n", "/v1" * 30_000, "/" + "é" * 5000, "/a%2Fb", "/<script>", "/ "])  # fmt: skip
def test_whatever_the_path_the_answer_is_short_and_plain(path: str) -> None:
    for method in ("GET", "\x1b" * 10_000):
        message = refusal(method, path).message
        assert len(message) < 600
        assert not any(map(is_unseen, message))


def test_a_path_that_only_looks_like_one_is_not_there() -> None:
    """A function says so of an id that holds what no id does."""
    error = refusal("GET", "/admin/keys/admin#0123")
    assert (error.http_status, error.code) == (404, "unknown_url")


def test_the_paths_are_those_of_the_template() -> None:
    routes: dict[str, set[str]] = {}
    for route in API.routes:
        if route.method not in {"ANY", "OPTIONS"}:
            routes.setdefault(route.resource, set()).add(route.method)
    assert {path: {*methods} for path, methods in SERVED.items()} == routes
    # Each has what answers to the other methods, and nothing else does.
    others = {route.resource for route in API.routes if route.method == "ANY"}
    assert others == {*SERVED, "/{proxy+}", "/"}
    assert {route.function for route in API.routes if route.method == "ANY"} == {"DashboardFunction"}


def test_a_resource_is_chosen_before_its_method() -> None:
    """As API Gateway does: without an ANY of its own a path does not fall through to {proxy+}."""
    routes = [route for route in API.routes if route.resource != "/models" or route.method == "GET"]
    with pytest.raises(GatewayError, match="MISSING_AUTHENTICATION_TOKEN"):
        Router(routes).match("POST", "/models")
