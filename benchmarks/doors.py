"""What a request costs before it is answered: a megabyte of each hostile body, beside a megabyte of text.

Each is sent by a stranger and by a key that has no budget left, so that it is refused after everything is known about it
and before a provider is called. CPU time is the least of three; memory is the most at a time beside what there was.
"""

from __future__ import annotations

import asyncio
import random
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

from benchmarks.figures import table
from benchmarks.in_process import SEOUL, Secret, Tables
from naru.catalog_source import CatalogSource
from naru.completions import PROOF_CHARS, Call, Completions
from naru.errors import NaruError
from naru.health import Health
from naru.keys import new_key_id, new_secret
from naru.ledger import Ledger
from naru.meter import Meters
from naru.meter_state import Limits
from naru.provider_keys import ProviderKeys
from naru.request_ids import new_request_id
from naru.retry import RetryPolicy
from naru.upstream import Upstream, new_http_client
from tests.hostile import HOSTILE, plain
from tests.meters import put_key

_BYTES = 2**20
_TRIES = 3


def run() -> dict[str, Any]:
    """Measures and prints."""
    return asyncio.run(_run())


async def _run() -> dict[str, Any]:
    tables: Any = Tables()
    _, poor = put_key(tables, limits=Limits(budget_pico_usd=1))
    stranger = new_secret(new_key_id())
    async with new_http_client() as http:
        completions = Completions(
            catalogs=CatalogSource("", lambda: None),  # type: ignore[arg-type,return-value]
            meters=Meters(tables, "MeterTable", SEOUL, organisation_budget_pico_usd=10**18),
            upstream=Upstream(http, ProviderKeys(Secret({}), "keys"), {}),  # type: ignore[arg-type]
            health=Health(tables, "HealthTable"),
            ledger=Ledger(tables, "LedgerTable", SEOUL),
            retry=RetryPolicy(),
            json_deadline_s=60,
            stream_deadline_s=60,
            rng=random.Random(1),
        )
        await _seconds(completions, stranger, plain(100))
        bodies: dict[str, Callable[[int], str]] = {"plain text": plain, **HOSTILE}
        results: dict[str, Any] = {}
        for name, make in bodies.items():
            body, short = make(_BYTES), make(PROOF_CHARS - 200)
            results[name] = {
                "stranger_ms": 1_000 * await _seconds(completions, stranger, body),
                "stranger_short_ms": 1_000 * await _seconds(completions, stranger, short),
                "key_ms": 1_000 * await _seconds(completions, poor, body),
                "key_mb": await _megabytes(completions, poor, body),
            }
    print(_report(results))
    return results


async def _ask(completions: Completions, secret: str, body: str) -> None:
    request_id = new_request_id(at_ms=time.time_ns() // 10**6)
    try:
        await completions.create(Call(request_id, f"Bearer {secret}", body, patience_s=60))
    except NaruError:
        return
    raise RuntimeError("a body that was to be refused was answered")


async def _seconds(completions: Completions, secret: str, body: str) -> float:
    """CPU seconds of this process."""
    took: list[float] = []
    for _ in range(_TRIES):
        began_s = time.process_time()
        await _ask(completions, secret, body)
        took.append(time.process_time() - began_s)
    return min(took)


async def _megabytes(completions: Completions, secret: str, body: str) -> float:
    tracemalloc.start()
    await _ask(completions, secret, body)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak_bytes / 2**20


def _report(results: dict[str, Any]) -> str:
    usual = results["plain text"]
    rows = [
        [
            name,
            f"{found['stranger_ms']:.1f}",
            f"{found['stranger_short_ms']:.1f}",
            f"{found['key_ms']:.1f}",
            f"{found['key_ms'] / usual['key_ms']:.1f}",
            f"{found['key_mb']:.0f}",
        ]
        for name, found in results.items()
    ]
    headings = ["1 MB of", "a stranger, ms", f"a stranger, {PROOF_CHARS - 200} bytes, ms", "a key, ms", "times plain text", "MB of memory"]  # fmt: skip
    return table(headings, rows)
