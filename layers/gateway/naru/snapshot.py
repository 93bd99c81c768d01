"""What a function does around a snapshot of its memory (Lambda SnapStart). Elsewhere nothing happens.

A snapshot is restored many times, minutes or weeks later, in other places: connections are dead by then, and whatever
was drawn at random is the same in all of them (the gateway draws from the system, which is not).
"""

from __future__ import annotations

from collections.abc import Callable


def around(*, before: Callable[[], object], after: Callable[[], object]) -> None:
    """``before`` runs before the snapshot is taken, ``after`` whenever it has been restored."""
    try:
        import snapshot_restore_py  # type: ignore[import-untyped]  # of Lambda's own runtime, and only there
    except ImportError:
        return
    snapshot_restore_py.register_before_snapshot(before)
    snapshot_restore_py.register_after_restore(after)
