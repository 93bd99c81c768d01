"""What went wrong and where, without the words of the exception: those may be a user's."""

from __future__ import annotations

import traceback
from pathlib import Path

_FRAMES = 20
_CHAIN = 8


def without_texts(error: BaseException) -> list[dict[str, object]]:
    """An exception and what led to it, the last one first: ``error`` (its type) and ``at`` (``file:line function``, the
    innermost frame last). No message, no source line, no value.
    """
    found: list[dict[str, object]] = []
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and len(found) < _CHAIN and id(current) not in seen:
        seen.add(id(current))
        frames = traceback.extract_tb(current.__traceback__)[-_FRAMES:]
        found.append(
            {
                "error": f"{type(current).__module__}.{type(current).__qualname__}".removeprefix("builtins."),
                "at": [f"{_short(frame.filename)}:{frame.lineno} {frame.name}" for frame in frames],
            }
        )
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)
    return found


def _short(filename: str) -> str:
    return "/".join(Path(filename).parts[-2:])
