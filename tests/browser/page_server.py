"""The page's real handler behind a plain HTTP server, and beside it an API that answers what a test wants."""

from __future__ import annotations

import importlib.util
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

from tests.waiting import PATIENCE_S

ROOT = Path(__file__).parent.parent.parent
ADMIN_KEY = "sk-naru-0testadmin0-0123456789012345678901234567890123456789012"


def load_handler() -> ModuleType:
    """functions/dashboard/app.py, as Lambda imports it: from its file."""
    spec = importlib.util.spec_from_file_location("dashboard_app", ROOT / "functions/dashboard/app.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@dataclass
class PageServer:
    """Where the page is, and what GET /usage/summary says."""

    url: str = ""
    status: int = 200
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    gate: threading.Event = field(default_factory=threading.Event)
    """An answer waits for it."""
    asked: list[str | None] = field(default_factory=list)
    """The Authorization header of every call."""

    def __post_init__(self) -> None:
        self.gate.set()

    def answer(self, body: Any, status: int = 200, **headers: str) -> None:
        self.status, self.body, self.headers = status, body, headers


@contextmanager
def page_server() -> Iterator[PageServer]:
    """A server on a free port of this machine."""
    served, handler = PageServer(), load_handler()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if path == "/v1/usage/summary":
                served.asked.append(self.headers["Authorization"])
                served.gate.wait(PATIENCE_S)
                if self.headers["Authorization"] == f"Bearer {ADMIN_KEY}":
                    self._send(
                        served.status, {"Content-Type": "application/json", **served.headers}, json.dumps(served.body)
                    )
                else:
                    self._send(401, {"Content-Type": "application/json"}, "{}")
                return
            parts = path.removeprefix("/v1/dashboard").strip("/").split("/")
            names = {"version": parts[0], "file": parts[1]} if len(parts) == 2 else None
            resource = "/dashboard/{version}/{file}" if names else "/dashboard"
            event = {
                "httpMethod": "GET",
                "resource": resource,
                "path": path,
                "pathParameters": names,
                "requestContext": {"path": path},
            }
            result = handler.lambda_handler(event, None)
            self._send(result["statusCode"], result["headers"], result["body"])

        def _send(self, status: int, headers: dict[str, str], body: str) -> None:
            content = body.encode()
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class calls it so
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        served.url = f"http://127.0.0.1:{server.server_port}/v1/dashboard"
        try:
            yield served
        finally:
            served.gate.set()
            server.shutdown()
            thread.join()
