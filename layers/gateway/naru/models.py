"""``GET /models``: the catalog as OpenAI's list of models."""

from __future__ import annotations

from typing import Any

from naru.catalog import Catalog


def listing(catalog: Catalog) -> dict[str, Any]:
    """All models, in the catalog's order."""
    return {"object": "list", "data": [describe(catalog, name) for name in catalog.model_names], "has_more": False}


def describe(catalog: Catalog, name: str) -> dict[str, Any]:
    """One model; besides OpenAI's fields, how long a prompt may be, how long an answer, and how long it may get if the
    request states no limit.

    Raises :class:`~naru.errors.ModelNotFoundError`.
    """
    model = catalog.model(name)
    return {
        "id": name,
        "object": "model",
        "created": model.created,
        "owned_by": model.owned_by,
        "context_tokens": model.context_tokens,
        "max_output_tokens": model.max_output_tokens,
        "default_output_tokens": model.default_output_tokens,
    }
