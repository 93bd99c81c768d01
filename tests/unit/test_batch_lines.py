"""One line: what each failure means, and that a paid answer is stored."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from naru.batch_lines import MAX_LOSSES, MAX_TRIES, Line, Lines, Ran
from naru.batch_progress import LineState
from naru.batch_results import unpack
from naru.batch_store import Batch
from naru.completions import Answer, Call
from naru.errors import (
    AuthenticationError,
    InvalidRequestError,
    NaruError,
    PermissionDeniedError,
    ProviderRejectedError,
    QuotaExceededError,
    RateLimitedError,
    StoreUnavailableError,
    UpstreamMisconfiguredError,
    UpstreamRefusedKeyError,
    UpstreamTimeoutError,
    UpstreamUnavailableError,
)
from naru.failures import fault_failure
from naru.fault_rules import PARTY_OF, FaultKind
from naru.keys import Proven
from naru.wire import parse_json_object
from tests.accounts import CATALOG
from tests.batch_world import KEY, OMNI, World, batch_world
from tests.unit.fault_bodies import BODIES
from tests.unit.test_faults import fault_of


class Scripted:
    """A use case that does as it is told."""

    def __init__(self, *outcomes: Exception | None) -> None:
        self.outcomes = list(outcomes)
        self.calls: list[Call] = []

    async def create(self, call: Call) -> Answer:
        self.calls.append(call)
        outcome = self.outcomes.pop(0) if self.outcomes else None
        if outcome is not None:
            raise outcome
        usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
        return Answer(json.dumps({"id": "x", "usage": usage}).encode(), {"x-naru-attempts": "1"})


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with batch_world() as world:
        yield world


@pytest.fixture
def batch(world: World) -> Batch:
    return world.started(1)


def line_of(world: World, batch: Batch, state: LineState | None = None) -> Line:
    (first,) = world.reader.plan(batch)
    ((_, content),) = world.reader.input_lines(batch, first)
    return Line(content, state or LineState(0, None))


def run(world: World, batch: Batch, line: Line, completions: Scripted, *, worker: str = "w") -> Ran:
    lines = Lines(completions, world.progress, world.objects)  # type: ignore[arg-type]
    return asyncio.run(lines.run(batch, line, worker=worker, patience_s=lambda: 30.0))


def stored(world: World, batch: Batch) -> Any:
    """The line of a file that the result is; None if there is none."""
    found = list(world.progress.results(batch.batch_id, world.reader.plan(batch)[0]))
    return json.loads(unpack(found[0]["content"])) if found else None


def state(world: World, batch: Batch) -> LineState:
    return world.progress.line_states(batch.batch_id, world.reader.plan(batch)[0])[0]


def test_an_answer_is_stored_under_the_id_of_its_request(world: World, batch: Batch) -> None:
    completions = Scripted()
    assert run(world, batch, line_of(world, batch), completions).end == "stored"
    (call,) = completions.calls
    assert (call.authorization, call.batch_id) == (Proven(KEY), batch.batch_id)
    result = stored(world, batch)
    assert (result["custom_id"], result["error"]) == ("c0", None)
    assert result["response"]["request_id"] == call.request_id
    assert result["response"]["body"]["id"] == "x"
    # It came again: there is a result, and nobody is called.
    assert run(world, batch, line_of(world, batch), completions).end == "stored"
    assert len(completions.calls) == 1


def operators(error: NaruError) -> NaruError:
    error.waits_for = "operator"
    return error


@pytest.mark.slow
@pytest.mark.parametrize(
    ("error", "end"),
    [
        (QuotaExceededError("others hold it", retry_after_s=5.0), "short"),
        (UpstreamRefusedKeyError("the operator's"), "blocked"),
        (UpstreamMisconfiguredError("the operator's"), "blocked"),
        (operators(UpstreamUnavailableError("no credit")), "blocked"),
        (RateLimitedError("no", retry_after_s=7.0), "limited"),
        (AuthenticationError("no"), "barred"),
        (PermissionDeniedError("no", code="api_key_disabled"), "barred"),
        (StoreUnavailableError("no"), "later"),
        (UpstreamUnavailableError("no"), "later"),
        (UpstreamTimeoutError("no"), "later"),
        (RuntimeError("a defect"), "later"),
    ],
)
def test_what_is_not_the_lines_fault_lets_it_wait(world: World, batch: Batch, error: Exception, end: str) -> None:
    """It is nobody's then, and the next one who takes it counts no loss."""
    ran = run(world, batch, line_of(world, batch), Scripted(error))
    assert ran.end == end
    assert ran.wait_s == {"limited": 7.0, "short": 5.0, "blocked": 30.0}.get(end, pytest.approx(0, abs=10))
    found = state(world, batch)
    assert (found.outcome, found.worker, found.losses) == (None, None, 0)
    counted = end == "later" and not isinstance(error, StoreUnavailableError)
    assert found.tries == (1 if counted else 0)
    assert run(world, batch, line_of(world, batch, found), Scripted(), worker="other").end == "stored"


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (InvalidRequestError("bad", param="temperature"), 400),
        (ProviderRejectedError("refused by the filter", status=422, code="content_filter"), 422),
        (PermissionDeniedError("not this model", code="model_not_allowed"), 403),
        (RateLimitedError("more tokens than a minute has", hopeless=True), 429),
    ],
)
def test_what_is_the_lines_fault_is_its_result(world: World, batch: Batch, error: NaruError, status: int) -> None:
    assert run(world, batch, line_of(world, batch), Scripted(error)).end == "stored"
    result = stored(world, batch)
    assert (result["response"]["status_code"], result["error"]) == (status, None)
    assert result["response"]["body"]["error"]["message"] == error.message
    assert state(world, batch).outcome == "failed"


DAY_S = 86_400.0


@pytest.mark.parametrize(
    ("retry_after_s", "end"),
    [
        pytest.param(5.0, "short", id="requests in flight hold what is missing"),
        pytest.param(DAY_S / 2, "short", id="a month begins before the batch must have ended"),
        pytest.param(2 * DAY_S, "stored", id="it begins after that"),
        pytest.param(None, "stored", id="no month's budget is enough"),
    ],
)
def test_a_line_without_a_budget_waits_while_that_can_help(
    world: World, batch: Batch, retry_after_s: float | None, end: str
) -> None:
    ran = run(world, batch, line_of(world, batch), Scripted(QuotaExceededError("no", retry_after_s=retry_after_s)))
    # A budget may be raised at any time, so nobody waits for long without asking again.
    assert (ran.end, ran.wait_s) == (end, min(retry_after_s or 0, 300.0) if end == "short" else 0)
    if end == "stored":
        result = stored(world, batch)
        assert (result["custom_id"], result["response"]) == ("c0", None)
        assert result["error"]["code"] == "insufficient_quota"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param(b"{", b"x", id="no JSON"),
        pytest.param(b"{", b"\xff", id="no UTF-8"),
        pytest.param(b'"POST"', b'"EVIL"', id="another method"),
        pytest.param(b"/v1/chat/completions", b"/v1/chat/secret-word", id="another URL"),
        pytest.param(b'"custom_id"', b'"custom_ix"', id="no custom_id"),
        pytest.param(OMNI.encode(), OMNI[::-1].encode(), id="another model"),
    ],
)
def test_a_line_that_is_not_what_was_checked_ends_and_calls_nobody(
    world: World, batch: Batch, before: bytes, after: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """It cannot be read the next time either. Nothing of it is logged."""
    line, completions = line_of(world, batch), Scripted()
    line.content = line.content.replace(before, after, 1)
    assert run(world, batch, line, completions) == Ran("stored")
    assert completions.calls == []
    result = stored(world, batch)
    assert (result["custom_id"], result["error"]["code"]) == (None, "input_unreadable")
    assert [record.exc_info for record in caplog.records] == [None]
    assert "secret-word" not in str(vars(caplog.records[0]))


def test_a_line_that_another_run_has_claimed_since_is_left_to_it(world: World, batch: Batch) -> None:
    """Two runs have seen it free: one is paused, and comes second."""
    seen = line_of(world, batch)
    assert world.progress.claim_line(batch, LineState(0, None), worker="other", request_id="req_other")
    completions = Scripted()
    assert run(world, batch, seen, completions) == Ran("claimed")
    assert (completions.calls, seen.state.worker) == ([], "other")
    # The other one has put it back.
    world.progress.put_back(batch.batch_id, LineState(0, None, request_id="req_other"))
    assert run(world, batch, seen, completions).end == "stored"
    # Whoever looks now learns how it ended.
    assert run(world, batch, line_of(world, batch), completions) == Ran("stored", completed=True)
    assert len(completions.calls) == 1


def test_a_run_whose_claim_is_over_calls_nobody_and_lets_the_line_go(world: World, batch: Batch) -> None:
    """It was paused between the claim and the call. Whatever calls later in the same request asks again."""
    patience = iter([0.0])
    lines = Lines(completions := Scripted(), world.progress, world.objects)  # type: ignore[arg-type]
    line = line_of(world, batch)
    assert asyncio.run(lines.run(batch, line, worker="w", patience_s=lambda: next(patience))).end == "later"
    assert completions.calls == []
    assert (state(world, batch).worker, state(world, batch).losses) == (None, 0)
    left = iter([30.0, 30.0, 0.0])
    assert asyncio.run(lines.run(batch, line, worker="w", patience_s=lambda: next(left))).end == "stored"
    assert not completions.calls[0].may_call()


def test_a_breaker_that_is_open_costs_no_try(world: World, batch: Batch) -> None:
    closed = UpstreamUnavailableError("left alone for a moment", retry_after_s=5.0)
    closed.should_retry = True
    ran = run(world, batch, line_of(world, batch), Scripted(closed))
    assert (ran.end, ran.wait_s, ran.overloaded) == ("later", 5.0, True)
    assert state(world, batch).tries == 0


BY_KIND = {body.kind: body for body in BODIES}
FATES = {
    **dict.fromkeys(("parameter", "context_length", "content_filter", "unsuited", "too_large"), "failed"),
    **dict.fromkeys(("model", "region", "access", "address"), "blocked"),
    **dict.fromkeys(("key", "credit", "suspended", "permission", "terms"), "blocked"),
    **dict.fromkeys(("rate_limited", "overloaded"), "later"),
    **dict.fromkeys(("feature", "server", "timeout"), "tried"),
}


@pytest.mark.slow
@pytest.mark.parametrize("tries", [0, MAX_TRIES - 1])
@pytest.mark.parametrize("kind", PARTY_OF)
def test_a_line_waits_for_the_operator_and_for_a_limit_without_a_try(world: World, kind: FaultKind, tries: int) -> None:
    """Only what may have been paid for, or is the line's own fault, can end it."""
    batch, deployment = world.started(1), CATALOG.model("HCX-005").deployments[0]
    error = fault_failure(deployment, fault_of(BY_KIND[kind])).error
    line = line_of(world, batch, LineState(0, None, tries=tries))
    ran = run(world, batch, line, Scripted(error))
    fate = FATES[kind]
    if fate == "failed" or (fate == "tried" and tries):
        assert ran.end == "stored"
        assert stored(world, batch)["response"]["status_code"] == error.http_status
        return
    assert ran.end == ("blocked" if fate == "blocked" else "later")
    assert 0 < ran.wait_s <= 60
    assert state(world, batch).tries == (1 if fate == "tried" else tries)
    assert stored(world, batch) is None


def test_a_line_is_given_up_after_many_tries(world: World, batch: Batch) -> None:
    line = line_of(world, batch, LineState(0, None, tries=MAX_TRIES - 1))
    assert run(world, batch, line, Scripted(UpstreamUnavailableError("down"))).end == "stored"
    assert stored(world, batch)["response"]["status_code"] == 503


def test_a_line_whose_callers_die_is_counted_and_at_last_not_called(world: World, batch: Batch) -> None:
    """What kills its worker must not kill all of them."""
    completions = Scripted()
    lost = LineState(0, None, losses=0, worker="dead", request_id="req_lost")
    waits = run(world, batch, line_of(world, batch, lost), Scripted(StoreUnavailableError("no")))
    assert waits.end == "later"
    assert state(world, batch).losses == 1
    doomed = replace(lost, losses=MAX_LOSSES)
    assert run(world, batch, line_of(world, batch, doomed), completions).end == "stored"
    assert completions.calls == []
    assert stored(world, batch)["error"]["code"] == "worker_died"


def test_a_stream_is_refused(world: World) -> None:
    batch = world.started(1)
    line = line_of(world, batch)
    line.content = line.content.replace(b'"messages"', b'"stream":true,"messages"')
    assert run(world, batch, line, Scripted()).end == "stored"
    assert stored(world, batch)["response"]["body"]["error"]["param"] == "stream"


@pytest.mark.parametrize("odd", ['"temperature":NaN', '"temperature":1e999', '"user":"\\ud800"'])
def test_what_a_request_of_its_own_may_not_hold_reaches_the_check_as_it_is(world: World, odd: str) -> None:
    """Null in place of NaN, or a question mark in place of half a character, would be another request, and paid for."""
    batch, completions = world.started(1), Scripted()
    line = line_of(world, batch)
    line.content = line.content.replace(b'"messages"', odd.encode() + b',"messages"')
    run(world, batch, line, completions)
    with pytest.raises(InvalidRequestError):
        parse_json_object(completions.calls[0].body)


def test_a_paid_answer_is_stored_when_the_store_is_back(
    world: World, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pauses are real, but drawn from nothing."""
    progress, failures = world.progress, [StoreUnavailableError("gone")] * 2
    really = progress.store

    def sometimes(*args: Any, **options: Any) -> bool:
        if failures:
            raise failures.pop()
        return really(*args, **options)

    monkeypatch.setattr(progress, "store", sometimes)

    class Never:
        def uniform(self, _low: float, _high: float) -> float:
            return 0.0

    lines = Lines(Scripted(), progress, world.objects, rng=Never())  # type: ignore[arg-type]
    ran = asyncio.run(lines.run(batch, line_of(world, batch), worker="w", patience_s=lambda: 30.0))
    assert ran.end == "stored"
    assert failures == []
    assert stored(world, batch)["custom_id"] == "c0"
