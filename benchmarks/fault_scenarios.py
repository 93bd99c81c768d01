"""Faults that take several requests to tell: an outage and the way back, a key that is revoked and replaced."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from benchmarks.fault_cases import OUTAGE_REFUSED
from benchmarks.fault_client import Seen
from benchmarks.fault_trial import Gateway, Result, Trial
from naru.ledger import Row

REQUESTS = 20
_OUTAGE_PERIODS = 15
_BACK_PERIODS = 2.5
"""Ten seconds of requests that come every four."""
_PATIENT_REQUESTS = 100
"""Where nobody looks at the clock, as many may be needed until the primary serves again."""
_NEXT_LOOK_S = 5.5
"""The gateway looks for another key when one is refused, at most every five seconds."""


@dataclass
class _Sent:
    """A request of a scenario; ``at_s`` is when it began, from the scenario's start."""

    at_s: float
    seen: Seen
    row: Row | None

    def served_by(self, deployment: str) -> bool:
        return self.row is not None and self.row.deployment == deployment


async def outage(trial: Trial, gateway: Gateway, expected: str) -> Result:
    """Twenty requests, one every four seconds, around an outage of a minute.

    All of them must be served; the primary must be called at most once for each request that comes while it is out,
    and must serve again within ten seconds of its recovery.
    """
    period_s = trial.timings.every_s
    began_s = time.monotonic()
    refused = trial.case is OUTAGE_REFUSED

    async def break_down() -> None:
        if refused:
            await trial.primary.stop()
        else:
            trial.primary.fail(({"fault": {"name": "status", "status": 503}},))

    async def recover() -> None:
        if refused:
            await trial.primary.start()
        else:
            trial.primary.model.clear_control()

    async def later(periods: float, do: Callable[[], Awaitable[None]]) -> float:
        await asyncio.sleep(periods * period_s)
        await do()
        return time.monotonic() - began_s

    async def request(number: int) -> _Sent:
        await asyncio.sleep(number * period_s)
        return await _send(trial, gateway, began_s)

    broken, recovered, *sent = await asyncio.gather(
        later(0.5, break_down),
        later(0.5 + _OUTAGE_PERIODS, recover),
        *(request(number) for number in range(REQUESTS)),
    )
    assert isinstance(broken, float)  # noqa: S101 - for mypy, which knows no mixed gather
    assert isinstance(recovered, float)  # noqa: S101
    requests = [each for each in sent if isinstance(each, _Sent)]
    problems: list[str] = []
    during = [each for each in requests if broken <= each.at_s < recovered]
    into, _ = trial.calls([each.row for each in during if each.row is not None])
    timed = trial.within_s is not None

    def back() -> list[float]:
        return [each.at_s - recovered for each in requests if each.at_s > recovered and each.served_by(trial.model)]

    while not timed and not back() and len(requests) < _PATIENT_REQUESTS:
        await asyncio.sleep(period_s)
        requests.append(await _send(trial, gateway, began_s))
    if timed and into > len(during):
        problems.append(f"{into} calls to the primary while it was out, for {len(during)} requests")
    back_s = min(back(), default=math.inf)
    if back_s > (_BACK_PERIODS * period_s if timed else math.inf):
        problems.append(f"back on the primary only after {back_s:.1f} s")
    late = [each for each in requests if each.at_s > recovered + back_s and not each.served_by(trial.model)]
    if back_s == math.inf:
        problems.append("the primary was not used again")
    if timed and late:
        problems.append(f"{len(late)} requests did not go to the primary after it was well")
    saw = f"{into} calls into the outage for {len(during)} requests; back {back_s:.1f} s after it"
    return await _result(trial, gateway, requests, expected=expected, saw=saw, problems=problems)


async def revoked(
    trial: Trial, gateway: Gateway, expected: str, *, replace_key: Callable[[str], Awaitable[None]]
) -> Result:
    """A request, then the provider revokes the key; four more, then the operator stores a new key; four more.

    All of them must be served: those of the middle by the fallback, those with the new key by the primary again.
    """
    began_s = time.monotonic()
    before = [await _send(trial, gateway, began_s)]
    fault = {"name": "status", "status": 401}
    trial.primary.fail(({"match": {"key": "old"}, "fault": fault},))
    middle = [await _send(trial, gateway, began_s) for _ in range(4)]
    await replace_key("new")
    await asyncio.sleep(_NEXT_LOOK_S)
    after = [await _send(trial, gateway, began_s) for _ in range(4)]
    problems = []
    if any(each.served_by(trial.model) for each in middle):
        problems.append("served by the primary with a revoked key")
    back = sum(each.served_by(trial.model) for each in after)
    if back < len(after):
        problems.append(f"the new key was not used by {len(after) - back} requests")
    saw = f"with the new key {back} of {len(after)} from the primary"
    return await _result(trial, gateway, before + middle + after, expected=expected, saw=saw, problems=problems)


async def _send(trial: Trial, gateway: Gateway, began_s: float) -> _Sent:
    at_s = time.monotonic() - began_s
    seen = await trial.send(gateway)
    return _Sent(at_s, seen, await gateway.row(seen.request_id) if seen.request_id else None)


async def _result(
    trial: Trial, gateway: Gateway, requests: list[_Sent], *, expected: str, saw: str, problems: list[str]
) -> Result:
    whole = sum(each.seen.whole(expected) for each in requests)
    if whole < len(requests):
        told = {each.seen.describe() for each in requests if not each.seen.whole(expected)}
        problems.append(f"{len(requests) - whole} requests were not served: {', '.join(sorted(told))}")
    books = {await trial.books(gateway, each.seen, each.row, problems) for each in requests}
    primary, fallback = trial.calls([each.row for each in requests if each.row is not None])
    return Result(
        slug=trial.case.slug,
        name=trial.case.name,
        mode=trial.mode,
        verdict="FAIL" if problems else "rescued",
        saw=f"{whole} of {len(requests)} whole answers; {saw}",
        primary=primary,
        fallback=fallback,
        first_token_s=max(each.seen.first_token_s or 0.0 for each in requests) if trial.mode == "stream" else None,
        total_s=max(each.seen.total_s for each in requests),
        ledger=", ".join(sorted(books)),
        problems=list(dict.fromkeys(problems)),
    )
