"""Which route of a REST API a request takes."""

from __future__ import annotations

import re
from collections.abc import Sequence

from local.template import Route


class GatewayError(Exception):
    """API Gateway answers by itself; `kind` is the name of the gateway response."""

    def __init__(self, kind: str) -> None:
        super().__init__(kind)
        self.kind = kind


class Router:
    """Finds the route of a path: fixed segments go before parameters, parameters before ``{proxy+}``."""

    def __init__(self, routes: Sequence[Route]) -> None:
        ordered = sorted(routes, key=lambda route: [_rank(segment) for segment in _segments(route.resource)])
        self._routes = [(_pattern(route.resource), route) for route in ordered]

    def match(self, method: str, path: str) -> tuple[Route, dict[str, str]]:
        """The route, and its path parameters as sent. Raises GatewayError."""
        path = path.rstrip("/") or "/"
        matches = [(route, found) for pattern, route in self._routes if (found := pattern.fullmatch(path))]
        # The resource is chosen first: a method that it has not is not looked for in one that is less specific.
        chosen = [(route, found) for route, found in matches if route.resource == matches[0][0].resource]
        for wanted in (method, "ANY"):
            for route, found in chosen:
                if route.method == wanted:
                    names = [name.rstrip("+") for name in re.findall(r"\{([^}]+)\}", route.resource)]
                    return route, dict(zip(names, found.groups(), strict=True))
        raise GatewayError("MISSING_AUTHENTICATION_TOKEN")


def _segments(resource: str) -> list[str]:
    return resource.strip("/").split("/")


def _rank(segment: str) -> int:
    return 2 if segment.endswith("+}") else 1 if segment.startswith("{") else 0


def _pattern(resource: str) -> re.Pattern[str]:
    parts = [
        "(.+)" if _rank(part) == 2 else "([^/]+)" if _rank(part) else re.escape(part) for part in _segments(resource)
    ]
    return re.compile("/" + "/".join(parts))
