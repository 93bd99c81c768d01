"""How much work something is, counted and not timed: the same number on a machine that is busy.

A unit is one bytecode instruction of Python. C functions run none, so those whose time a client can decide are charged
where they are called: JSON by its length, Unicode's normal forms by the marks that are to be sorted, validation by the
errors that are built. ``tracemalloc`` sees the memory of all of them.
"""

from __future__ import annotations

import json
import re
import sys
import threading
import tracemalloc
import unicodedata
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

import pytest
from pydantic import ValidationError

from naru import wire

_CHARS_PER_UNIT = 16
_ERROR_UNITS = 100
_MARKS = re.compile("[\u0300-\u036f\u0591-\u05c7\u3099\u309a]+")


@dataclass(slots=True)
class Work:
    """What has been counted."""

    units: int = 0
    peak_bytes: int = 0


@contextmanager
def counted() -> Iterator[Work]:
    """Counts the work of this thread until the context is left."""
    work = Work()
    instructions = _monitored if sys.version_info >= (3, 12) else _traced
    with pytest.MonkeyPatch.context() as patch, instructions(work):
        _charge(patch, work)
        yield work


@contextmanager
def _traced(work: Work) -> Iterator[None]:
    def trace(frame: FrameType, event: str, _: Any) -> Any:
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        if event == "opcode":
            work.units += 1
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)


@contextmanager
def _monitored(work: Work) -> Iterator[None]:
    """The same from Python 3.12 on, where a trace misses the instructions of code that it meets for the first time."""
    monitoring: Any = getattr(sys, "monitoring")  # noqa: B009 - the types are those of Python 3.11
    here, tool = threading.get_ident(), monitoring.PROFILER_ID

    def count(*_: Any) -> None:
        if threading.get_ident() == here:
            work.units += 1

    monitoring.use_tool_id(tool, "work")
    monitoring.register_callback(tool, monitoring.events.INSTRUCTION, count)
    monitoring.set_events(tool, monitoring.events.INSTRUCTION)
    try:
        yield
    finally:
        monitoring.set_events(tool, 0)
        monitoring.register_callback(tool, monitoring.events.INSTRUCTION, None)
        monitoring.free_tool_id(tool)


@contextmanager
def measured() -> Iterator[Work]:
    """Sees how much memory there is at most at a time, beside what there was before."""
    work = Work()
    tracemalloc.start()
    try:
        yield work
    finally:
        work.peak_bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()


def _charge(patch: pytest.MonkeyPatch, work: Work) -> None:
    loads, dumps, validate = json.loads, json.dumps, wire._CHAT_REQUEST.validate_python
    normalize, is_normalized, inflater = unicodedata.normalize, unicodedata.is_normalized, zlib.decompressobj

    def charged_loads(text: str | bytes, **options: Any) -> Any:
        work.units += len(text) // _CHARS_PER_UNIT
        return loads(text, **options)

    def charged_dumps(value: Any, **options: Any) -> str:
        text = dumps(value, **options)
        work.units += len(text) // _CHARS_PER_UNIT
        return text

    def charged_normalize(form: Any, text: str) -> str:
        work.units += _sorting(text)
        return normalize(form, text)

    def charged_is_normalized(form: Any, text: str) -> bool:
        work.units += _sorting(text)
        return is_normalized(form, text)

    def charged_validate(value: Any, **options: Any) -> Any:
        try:
            return validate(value, **options)
        except ValidationError as error:
            work.units += error.error_count() * _ERROR_UNITS
            raise

    def charged_inflater(*args: Any) -> Any:
        work.units += 1_000
        return inflater(*args)

    patch.setattr(json, "loads", charged_loads)
    patch.setattr(json, "dumps", charged_dumps)
    patch.setattr(unicodedata, "normalize", charged_normalize)
    patch.setattr(unicodedata, "is_normalized", charged_is_normalized)
    patch.setattr(wire._CHAT_REQUEST, "validate_python", charged_validate)
    patch.setattr(zlib, "decompressobj", charged_inflater)


def _sorting(text: str) -> int:
    """CPython sorts each run of marks by insertion: a quarter of the square of its length."""
    return len(text) // _CHARS_PER_UNIT + sum(len(run) ** 2 // 4 for run in _MARKS.findall(text)) // _CHARS_PER_UNIT
