"""GET /dashboard and its files: a page that asks /usage with the key that the operator types in. And what is answered
where the API has no such path or method.

It holds no data and no permission, so anybody may ask it; everything that the page shows comes from the API.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from naru.unknown_paths import refusal

STATIC = Path(__file__).parent / "static"
CONTENT_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
# Nothing inline, nothing from elsewhere, nowhere to send anything to, and no way to make a script out of a string.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
HEADER_LIST = re.compile(r"[A-Za-z0-9-]+(, ?[A-Za-z0-9-]+)*")
HEADERS = {
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}

# All of it is about 150 KB: read once, so that no name from a URL ever meets the file system.
files = {
    path.name: path.read_text(encoding="utf-8") for path in sorted(STATIC.rglob("*")) if path.suffix in CONTENT_TYPES
}
# In the path of every file, also of those that one module imports from another: each deploy has addresses of its own.
version = hashlib.sha256("".join(f"{name}\0{text}\0" for name, text in files.items()).encode()).hexdigest()[:16]
page = files.pop("index.html").replace("{version}", version)


def lambda_handler(event: dict[str, Any], _context: Any) -> dict[str, Any]:
    asked: dict[str, str] = event.get("pathParameters") or {}
    match event["httpMethod"], event["resource"]:
        case "GET", "/dashboard":
            answer = send_page(event)
        case "GET", "/dashboard/{version}/{file}":
            answer = send_file(asked["file"], asked.get("version"))
        case method, resource:
            # Behind a domain of one's own the event's path has its base path, too; what the resource says has not.
            path = f"/{asked['proxy']}" if "proxy" in asked else resource
            answer = refuse(method, path, event)
    print(json.dumps({"message": "dashboard", "path": event.get("path"), "status": answer["statusCode"]}))  # noqa: T201
    return answer


def send_page(event: dict[str, Any]) -> dict[str, Any]:
    """The page; always the newest, since it names the version of everything else."""
    if event["requestContext"]["path"].endswith("/"):
        # The page's addresses are relative, because the part before them is the stage's or a domain's own.
        return respond(308, "", "text/plain", {"Location": "../dashboard", "Cache-Control": "no-store"})
    return respond(200, page, CONTENT_TYPES[".html"], {"Cache-Control": "no-cache"})


def send_file(name: str, asked_version: str | None) -> dict[str, Any]:
    """A file of the page. A browser may keep it for ever under the address of its own version."""
    if (text := files.get(name)) is None:
        error = {"message": "There is no such file.", "type": "invalid_request_error", "param": None, "code": None}
        return respond(404, json.dumps({"error": error}), "application/json", {"Cache-Control": "no-store"})
    kept = "public, max-age=31536000, immutable" if asked_version == version else "no-store"
    return respond(200, text, CONTENT_TYPES[Path(name).suffix], {"Cache-Control": kept})


def refuse(method: str, path: str, event: dict[str, Any]) -> dict[str, Any]:
    """Says what serves instead; to a browser's preflight, that it may ask and read the answer."""
    shared = {"Access-Control-Allow-Origin": "*", "Cache-Control": "no-store"}
    if method == "OPTIONS":
        sent = {name.lower(): value for name, value in (event.get("headers") or {}).items()}
        headers = sent.get("access-control-request-headers", "")
        allowed = headers if HEADER_LIST.fullmatch(headers) else "authorization, content-type"
        shared |= {"Access-Control-Allow-Methods": "GET, POST, PUT, PATCH, DELETE", "Access-Control-Allow-Headers": allowed}  # fmt: skip
        return respond(204, "", "text/plain", shared)
    error = refusal(method, path)
    told = {"x-request-id": event["requestContext"]["requestId"], "x-should-retry": "false", **error.headers}
    shown = {"Access-Control-Expose-Headers": "x-request-id, x-should-retry, allow"}
    body = "" if method == "HEAD" else json.dumps(error.body())
    return respond(error.http_status, body, "application/json", {**shared, **shown, **told})


def respond(status: int, body: str, content_type: str, headers: dict[str, str]) -> dict[str, Any]:
    return {"statusCode": status, "headers": {**HEADERS, **headers, "Content-Type": content_type}, "body": body}
