"""Whatever comes twice, dies or stands still: each line is called for once, and is in one of the two files.

NARU_LONG_TESTS=1 takes about a hundred times as many schedules.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator

import pytest

from naru.errors import NaruError, QuotaExceededError, RateLimitedError, UpstreamRefusedKeyError
from tests.batch_schedule import Town, Trouble

pytestmark = pytest.mark.slow

LONG = bool(os.environ.get("NARU_LONG_TESTS"))


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """What workers log of all this would fill the memory."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def lived(
    trouble: Trouble,
    *,
    lines: int = 10,
    environments: int = 2,
    again_s: float | None = None,
    cancel_s: float | None = None,
    window_s: int = 86_400,
) -> Town:
    """A batch to its end, with all of its messages once more after ``again_s`` seconds, cancelled after ``cancel_s``."""
    with Town(trouble, environments=environments, window_s=window_s) as town:
        batch = town.submit(lines)
        if again_s is not None:
            town.events.append((again_s, town.send_again))
        if cancel_s is not None:
            town.events.append((cancel_s, lambda: town.cancel(batch)))
        town.live(batch)
        town.assert_exact(batch)
        allowed = {"completed"} | ({"cancelled"} if cancel_s else set()) | ({"expired"} if window_s < 86_400 else set())
        assert town.read(batch.batch_id).phase in allowed
        return town


@pytest.mark.parametrize("environments", [1, 3])
@pytest.mark.parametrize(
    "trouble",
    [
        pytest.param(Trouble(sent_twice=1.0), id="every message is sent twice"),
        pytest.param(Trouble(received_twice=1.0), id="every message is received by several"),
        pytest.param(Trouble(sent_twice=1.0, received_twice=0.5), id="both"),
        pytest.param(Trouble(repeated=1.0), id="every write is made twice"),
    ],
)
def test_what_comes_twice_is_done_once(trouble: Trouble, environments: int) -> None:
    """Copies in one event, in events of two environments, and one after the other."""
    town = lived(trouble, environments=environments)
    assert set(town.calls_by_line().values()) == {1}


@pytest.mark.parametrize("again_s", [0.5, 3.0, 6.0, 30.0])
def test_a_redrive_does_no_harm_at_any_time(again_s: float) -> None:
    town = lived(Trouble(), again_s=again_s)
    assert set(town.calls_by_line().values()) == {1}


@pytest.mark.parametrize("after", [False, True], ids=["before it happens", "after it happened"])
def test_a_worker_that_dies_at_any_call_loses_nothing(after: bool) -> None:
    """At each call of a store that a batch makes, one after the other. Others do what is left."""
    calls = lived(Trouble(), lines=4).calls
    for kill_at in range(1, calls + 1):
        town = lived(Trouble(kill_at=kill_at, after=after, sent_twice=0.3), lines=4)
        assert town.kills == (kill_at <= town.calls)


@pytest.mark.parametrize("seed", range(2000 if LONG else 25))
def test_chaos(seed: int) -> None:
    trouble = Trouble(
        seed,
        kill=0.01,
        after=bool(seed % 2),
        sent_twice=0.3,
        received_twice=0.2,
        answer_lost=0.01,
        not_sent=0.01,
        repeated=0.05,
        stall=0.01 if seed % 3 == 0 else 0.0,
    )
    lived(trouble, environments=1 + seed % 4, again_s=(seed % 7) * 10.0 if seed % 2 else None)


@pytest.mark.parametrize("seed", range(2000 if LONG else 25))
def test_a_worker_that_stands_still_calls_for_nothing_that_another_may_have(seed: int) -> None:
    """For up to five minutes, at any call. What it had called for before is the one thing that is called for again."""
    trouble = Trouble(seed, stall=0.03, stall_s=300.0, sent_twice=0.5, received_twice=0.5)
    lived(trouble, environments=3)


@pytest.mark.parametrize("seed", range(2000 if LONG else 40))
def test_an_early_end_puts_each_line_into_one_file(seed: int) -> None:
    """Cancelled, or out of time, at any moment, by several who finish it, some of whom stand still or die. No answer that
    comes later changes what the files say.
    """
    trouble = Trouble(seed, kill=0.01, stall=0.03, stall_s=300.0, sent_twice=0.8, received_twice=0.8, not_sent=0.01)
    at_s = 0.5 + 20.0 * trouble.rng.random() ** 2
    if seed % 2:
        lived(trouble, environments=4, cancel_s=at_s)
    else:
        lived(trouble, environments=4, window_s=round(at_s) + 1)


# ── Waiting ────────────────────────────────────────────────────────────────────────────────────────────────


def held() -> NaruError:
    return QuotaExceededError("requests in flight hold it", retry_after_s=5.0)


def refused_key() -> NaruError:
    return UpstreamRefusedKeyError("the provider's key is refused")


def per_minute() -> NaruError:
    return RateLimitedError("too many requests a minute", retry_after_s=30.0)


@pytest.mark.parametrize("why", [held, refused_key, per_minute])
@pytest.mark.parametrize("for_s", [60.0, 1800.0, 7200.0])
def test_a_batch_waits_for_what_passes_until_its_time_is_over(why: Callable[[], NaruError], for_s: float) -> None:
    """Nothing fails while it may still be answered, and it is not asked for all the time."""
    asked = 0

    def says(_: int) -> NaruError | None:
        nonlocal asked
        asked += 1
        return why() if town.now_s < for_s else None

    with Town(Trouble(3), environments=3, says=says, window_s=3600) as town:
        batch = town.submit(30)
        town.live(batch)
        town.assert_exact(batch)
        ended = town.read(batch.batch_id)
    if for_s < 3600:
        assert (ended.phase, ended.values["completed"], ended.values["failed"]) == ("completed", 30, 0)
        assert set(town.calls_by_line().values()) == {1}
    else:
        # In its last seconds nothing that a request may give back could help any more.
        assert ended.phase in ({"expired", "completed"} if why is held else {"expired"})
        assert (ended.values["completed"], ended.values["failed"]) == (0, 30)
        assert town.provider.calls == []
    waits_s = min(for_s, 3600.0)
    assert asked <= 90 + waits_s * (1 / 60 if why is refused_key else 1)


def test_lines_that_are_too_dear_end_alone() -> None:
    """The others are answered: a budget in which one does not fit is not spent for all."""
    with Town(says=lambda line: QuotaExceededError("no") if line % 3 == 0 else None) as town:
        batch = town.submit(12)
        town.live(batch)
        town.assert_exact(batch)
        ended = town.read(batch.batch_id)
        assert {line["error"]["code"] for line in town.file_lines(ended, "error")} == {"insufficient_quota"}
        assert (ended.values["completed"], ended.values["failed"]) == (8, 4)
