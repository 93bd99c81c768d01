"""The dashboard's page. It calls the API with a key that a person types in."""

from __future__ import annotations

from typing import Any

from naru.openapi.operations import Operation

OPERATIONS = (
    Operation(
        method="GET",
        path="/dashboard",
        id="dashboard",
        tag="dashboard",
        summary="The page.",
        key="none",
        answers={200: {"text/html": {"type": "string"}}, 308: {}},
    ),
    Operation(
        method="GET",
        path="/dashboard/{version}/{file}",
        id="dashboardFile",
        tag="dashboard",
        summary="A script or a style sheet of the page.",
        key="none",
        answers={200: {"text/javascript": {"type": "string"}, "text/css": {"type": "string"}}},
        errors=(404,),
    ),
)


def schemas() -> dict[str, Any]:
    """None."""
    return {}
