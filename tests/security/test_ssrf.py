"""The gateway calls the providers of its catalog and nobody else, whatever a client or a provider names."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

import pytest

from tests.security.handlers import OMNI, Handlers


class _Trap(BaseHTTPRequestHandler):
    seen: ClassVar[list[str]] = []

    def _caught(self) -> None:
        self.seen.append(f"{self.command} {self.path}")
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_POST = do_HEAD = do_PUT = _caught  # noqa: N815 - the standard library's names

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def trap_url() -> Iterator[str]:
    """Something inside the network that nobody should be led to."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Trap)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def trap(trap_url: str) -> str:
    _Trap.seen.clear()
    return trap_url


@pytest.mark.parametrize("model", [OMNI, "HCX-005", "HCX-007", "gpt-4.1", "claude-sonnet-4-5", "gemini-2.5-flash"])
@pytest.mark.parametrize("stream", [False, True])
def test_urls_in_a_request_are_passed_on_and_never_fetched(
    gateway: Handlers, trap: str, model: str, stream: bool
) -> None:
    """Images by URL are the provider's to fetch, from its network. Not here, not to count tokens, not to translate."""
    url = f"{trap}/latest/meta-data/iam"
    for part in (
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "image_url", "image_url": {"url": url, "detail": "low"}},
        {"type": "image_url", "image_url": {"url": f"file:///etc/passwd#{url}"}},
        {"type": "input_audio", "input_audio": {"data": url, "format": "wav"}},
        {"type": "file", "file": {"file_data": url}},
        {"type": "video_url", "video_url": {"url": url}},
    ):
        content = [{"type": "text", "text": f"{url} [[sim tokens=3]]"}, part]
        body = {"model": model, "messages": [{"role": "user", "content": content}], "stream": stream}
        reply = gateway.send("chat", "POST", "/chat/completions", body)
        assert reply.status in {200, 400}, reply.body
    assert _Trap.seen == []


@pytest.mark.parametrize(
    "field", ["base_url", "api_base", "url", "webhook", "callback_url", "web_search_options", "store"]
)
def test_no_field_says_where_to_call(gateway: Handlers, trap: str, field: str) -> None:
    value: Any = {"url": trap} if field == "web_search_options" else trap
    gateway.chat("안녕 [[sim tokens=3]]", **{field: value})
    assert _Trap.seen == []


@pytest.mark.parametrize(
    "header", ["x-naru-deployment", "Host", "X-Forwarded-Host", "Forwarded", "X-Base-Url", "Referer"]
)
def test_no_header_says_where_to_call(gateway: Handlers, trap: str, header: str) -> None:
    gateway.chat("안녕 [[sim tokens=3]]", headers={header: trap})
    assert _Trap.seen == []


def test_a_model_is_a_name_of_the_catalog_and_not_a_path(gateway: Handlers) -> None:
    for name in ("../../admin", f"{OMNI}/../gpt-4.1", f"{OMNI}?x=1", f"{OMNI}#", "http://127.0.0.1/", ""):
        assert gateway.chat("안녕", model=name).status in {400, 404}
    assert gateway.model.stats()["requests"] == 0


@pytest.mark.parametrize("status", [301, 302, 307, 308])
@pytest.mark.parametrize("stream", [False, True])
def test_a_provider_cannot_lead_the_gateway_elsewhere(gateway: Handlers, trap: str, status: int, stream: bool) -> None:
    """A redirect that was followed would carry the prompt, and with some clients the provider's key."""
    fault = {"name": "status", "status": status, "headers": {"Location": f"{trap}/stolen"}}
    gateway.model.control({"rules": [{"fault": fault}]})
    reply = gateway.chat("안녕 [[sim tokens=3]]", stream=stream)
    assert (reply.status, reply.code) == (502, "upstream_misconfigured")
    assert _Trap.seen == []
