"""``GET /models``: the catalog as OpenAI's list of models."""

from __future__ import annotations

from typing import Any

from naru.catalog import Catalog


def listing(catalog: Catalog) -> dict[str, Any]:
    """All models, in the catalog's order."""
    return {"object": "list", "data": [describe(catalog, name) for name in catalog.model_names], "has_more": False}


def describe(catalog: Catalog, name: str) -> dict[str, Any]:
    """One model.

    Raises :class:`~naru.errors.ModelNotFoundError`.
    """
    model = catalog.model(name)
    return {"id": name, "object": "model", "created": model.created, "owned_by": model.owned_by}
