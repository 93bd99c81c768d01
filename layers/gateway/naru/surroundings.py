"""What the dashboard shows beside usage: batches and the health of providers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any

from naru.batch_progress import Progress
from naru.batch_store import Batch, BatchStore
from naru.file_store import Page
from naru.health_state import State

_OPEN, _ENDED, _KEYS = 20, 5, 10


def batches(
    store: BatchStore, progress: Progress, key_ids: Iterable[str], *, only: str | None = None
) -> list[dict[str, Any]]:
    """Those that run, then the newest of those that ended; ``key_ids`` are the keys to ask about, of which the
    first ten are, ``only`` the one to show. Blocks.
    """
    running = [
        batch
        for key_id, batch_id in store.open_batches()
        if only is None or key_id == only
        for batch in [store.get(key_id, batch_id, consistent=False)]
        if batch is not None
    ]
    running.sort(key=lambda batch: batch.batch_id, reverse=True)
    ended: list[Batch] = []
    for key_id in islice([only] if only is not None else key_ids, _KEYS):
        found, _ = store.page(key_id, Page(after=None, limit=_ENDED))
        ended += [batch for batch in found if batch.has_ended]
    ended.sort(key=lambda batch: batch.batch_id, reverse=True)
    return [_batch(batch, progress) for batch in (*running[:_OPEN], *ended[:_ENDED])]


def health(states: Mapping[str, State], *, now_ms: int) -> list[dict[str, Any]]:
    """Each deployment of the catalog. One of which nothing is known is healthy: only trouble is written down."""
    return [_health(state, now_ms) for _, state in sorted(states.items())]


def _health(state: State, now_ms: int) -> dict[str, Any]:
    is_open = state.breaker != "closed"
    return {
        "deployment": state.deployment,
        "state": state.breaker,
        "retry_at": state.retry_ms // 1000 if is_open and state.retry_ms > now_ms else None,
    }


def _batch(batch: Batch, progress: Progress) -> dict[str, Any]:
    values = batch.values
    completed, failed = values.get("completed", 0), values.get("failed", 0)
    if not batch.has_ended:
        # Lines that are done count before their range is.
        states = [state for state in progress.range_states(batch.batch_id).values() if not state.ended]
        completed += sum(state.completed for state in states)
        failed += sum(state.failed for state in states)
    return {
        "id": batch.batch_id,
        "status": batch.phase,
        "created_at": values["created_at"],
        "key_id": batch.key_id,
        "model": values.get("model"),
        "request_counts": {"total": values.get("lines", 0), "completed": completed, "failed": failed},
    }
