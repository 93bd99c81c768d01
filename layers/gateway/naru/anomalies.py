"""What is out of the ordinary about a day, as facts; :mod:`naru.report_words` says them in words.

The thresholds are meant for people who read a report a day: rather nothing than something every day.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from itertools import pairwise
from typing import Any

from naru.projection import expected_pico_usd
from naru.tally import Tally
from naru.usage import Bucket

_DEAR, _CHEAP = 1.8, 0.4
_ERROR_RATE, _TIMES_ERRORS = 0.05, 3.0
_OUTAGE_RATE, _OUTAGE_CALLS = 0.5, 10
_TIMES_SLOW = 2.0
_ESTIMATED = 0.1
_NEW_SHARE, _JUMP, _JUMP_SHARE = 0.05, 3.0, 0.1
_TIMES_SPIKE, _SPIKE_DEVIATIONS = 3.0, 4.0
_FEW_DAYS = 7


@dataclass(frozen=True, slots=True)
class Anomaly:
    """``code`` says which kind, ``facts`` what happened: amounts in pico-USD, times in Unix milliseconds."""

    code: str
    facts: Mapping[str, Any] = field(default_factory=dict)


def find(day: Bucket, hours: Sequence[Bucket], before: Sequence[Bucket]) -> list[Anomaly]:
    """What is out of the ordinary about a day; ``before`` are the days before it, oldest first."""
    known = [bucket for bucket in before if bucket.tally.requests]
    found = [*_unknown(day.tally), *_outages(hours)]
    if len(known) >= _FEW_DAYS:
        found += [*_cost(day, before), *_errors(day.tally, known), *_slow(day.tally, known), *_newcomers(day, known)]
        found += _jumps(day, before)
    return [*found, *_estimated(day.tally)]


def spike(cost_pico_usd: int, usual: Sequence[int]) -> float | None:
    """How many times the usual an hour's cost is, if that is far above it; None if not.

    ``usual`` is what the same hour of other days cost. Far is three times the mean and four standard deviations.
    """
    if len(usual) < _FEW_DAYS or not (mean := statistics.fmean(usual)):
        return None
    if cost_pico_usd <= max(_TIMES_SPIKE * mean, mean + _SPIKE_DEVIATIONS * statistics.pstdev(usual)):
        return None
    return cost_pico_usd / mean


def _costs(before: Sequence[Bucket]) -> dict[date, int]:
    return {bucket.day: bucket.tally.cost_pico_usd for bucket in before}


def _cost(day: Bucket, before: Sequence[Bucket]) -> Iterator[Anomaly]:
    cost, expected = day.tally.cost_pico_usd, expected_pico_usd(_costs(before), day.day)
    if expected and not _CHEAP <= cost / expected <= _DEAR:
        code = "cost_high" if cost > expected else "cost_low"
        yield Anomaly(code, {"cost_pico_usd": cost, "expected_pico_usd": expected})


def _errors(tally: Tally, known: Sequence[Bucket]) -> Iterator[Anomaly]:
    if not tally.requests:
        return
    rate = tally.errors / tally.requests
    usual = statistics.median(bucket.tally.errors / bucket.tally.requests for bucket in known)
    if rate >= _ERROR_RATE and rate >= _TIMES_ERRORS * usual:
        yield Anomaly("errors_high", {"errors": tally.errors, "rate": rate, "usual_rate": usual})


def _outages(hours: Sequence[Bucket]) -> Iterator[Anomaly]:
    """Hours in a row in which half of the calls of a deployment failed."""
    bad: defaultdict[str, list[Bucket]] = defaultdict(list)
    for hour in hours:
        made: defaultdict[str, int] = defaultdict(int)
        failed: defaultdict[str, int] = defaultdict(int)
        for call, count in hour.tally.calls.items():
            made[call.deployment] += count
            failed[call.deployment] += count if call.result != "ok" else 0
        for deployment, calls in made.items():
            if calls >= _OUTAGE_CALLS and failed[deployment] >= _OUTAGE_RATE * calls:
                bad[deployment].append(hour)
    for deployment, ill in sorted(bad.items()):
        starts = [ill[0]] + [later for earlier, later in pairwise(ill) if earlier.end_ms != later.start_ms]
        ends = [earlier for earlier, later in pairwise(ill) if earlier.end_ms != later.start_ms] + [ill[-1]]
        for first, last in zip(starts, ends, strict=True):
            yield Anomaly("outage", {"deployment": deployment, "from_ms": first.start_ms, "to_ms": last.end_ms})


def _slow(tally: Tally, known: Sequence[Bucket]) -> Iterator[Anomaly]:
    now_ms = tally.durations(tally.latency).percentile(95)
    usual = [bucket.tally.durations(bucket.tally.latency).percentile(95) for bucket in known]
    usual_ms = statistics.median([each for each in usual if each is not None] or [0])
    if now_ms and usual_ms and now_ms >= _TIMES_SLOW * usual_ms:
        yield Anomaly("slow", {"p95_ms": now_ms, "usual_p95_ms": round(usual_ms)})


def _newcomers(day: Bucket, known: Sequence[Bucket]) -> Iterator[Anomaly]:
    whole = day.tally.cost_pico_usd
    for code, name in (("new_key", "key_id"), ("new_model", "model")):
        seen = {getattr(cell, name) for bucket in known for cell in bucket.tally.cells}
        for who, sums in day.tally.by(lambda cell, name=name: getattr(cell, name)).items():  # type: ignore[misc]
            if who not in seen and sums.cost_pico_usd and sums.cost_pico_usd >= _NEW_SHARE * whole:
                yield Anomaly(code, {name: who, "cost_pico_usd": sums.cost_pico_usd})


def _jumps(day: Bucket, before: Sequence[Bucket]) -> Iterator[Anomaly]:
    """Keys that spend far more than they usually do."""
    costs = {bucket.day: bucket.tally.by(lambda cell: cell.key_id) for bucket in before}
    for key_id, sums in day.tally.by(lambda cell: cell.key_id).items():
        if not sums.cost_pico_usd or sums.cost_pico_usd < _JUMP_SHARE * day.tally.cost_pico_usd:
            continue
        of_key = {each: keys[key_id].cost_pico_usd if key_id in keys else 0 for each, keys in costs.items()}
        expected = expected_pico_usd(of_key, day.day)
        if expected and sums.cost_pico_usd >= _JUMP * expected:
            yield Anomaly("key_jump", {"key_id": key_id, "cost_pico_usd": sums.cost_pico_usd, "expected_pico_usd": expected})  # fmt: skip


def _unknown(tally: Tally) -> Iterator[Anomaly]:
    if unknown := tally.outcomes()["unknown"]:
        cost = tally.sums(lambda cell: cell.outcome == "unknown").cost_pico_usd
        yield Anomaly("unknown", {"requests": unknown, "cost_pico_usd": cost})


def _estimated(tally: Tally) -> Iterator[Anomaly]:
    requests, estimated = tally.requests, tally.sums().estimated
    if requests and estimated >= _ESTIMATED * requests:
        yield Anomaly("estimated", {"requests": estimated, "rate": estimated / requests})
