"""What happens around a snapshot of a function's memory."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType

import pytest

from naru import snapshot


class Runtime(ModuleType):
    """The module that Lambda's runtime has."""

    def __init__(self) -> None:
        super().__init__("snapshot_restore_py")
        self.before: list[Callable[[], object]] = []
        self.after: list[Callable[[], object]] = []

    def register_before_snapshot(self, hook: Callable[[], object]) -> None:
        self.before.append(hook)

    def register_after_restore(self, hook: Callable[[], object]) -> None:
        self.after.append(hook)


def test_hooks_are_registered_where_there_are_snapshots(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime, done = Runtime(), list[str]()
    monkeypatch.setitem(sys.modules, "snapshot_restore_py", runtime)
    snapshot.around(before=lambda: done.append("before"), after=lambda: done.append("after"))
    for hook in [*runtime.before, *runtime.after, *runtime.after]:
        hook()
    assert done == ["before", "after", "after"]


def test_elsewhere_there_is_nothing_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "snapshot_restore_py", None)
    snapshot.around(before=lambda: 1 / 0, after=lambda: 1 / 0)
