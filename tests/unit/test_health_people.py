"""People and batches at one deployment: who goes first, and that a limit which has come down goes up again."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.crowded_deployment import Scene

pytestmark = pytest.mark.slow


def refuses_at(when_s: float, *, for_s: float = 1.0, takes: int = 20) -> Callable[[float], int]:
    """Takes so many calls at once, and nothing at all for a moment."""
    return lambda now_s: 0 if when_s <= now_s < when_s + for_s else takes


@pytest.mark.parametrize("quiet_s", [0, 45, 75])
@pytest.mark.parametrize(("workers", "wanted"), [(1, 64), (2, 4)])
def test_whoever_comes_after_a_quiet_minute_is_not_kept_waiting_by_a_batch(
    quiet_s: float, workers: int, wanted: int
) -> None:
    """A batch holds all there is; somebody gets a 429; nobody for a while; then somebody every two seconds."""
    scene, until_s = Scene(refuses_at(30, takes=10)), 31 + quiet_s + 60
    first = scene.people(scene.environment(), every_s=10**6, from_s=30.5)
    people = scene.people(scene.environment(), every_s=2, from_s=31 + quiet_s)
    scene.run(until_s, first, people, *(scene.worker(f"w{index}", wanted=wanted) for index in range(workers)))
    assert len(scene.visits) >= 25
    assert scene.turned_away() == 0
    # One share of a batch, and one answer that must come to its end.
    assert max(scene.waits_s(31)) <= 8
    assert sum(scene.waits_s()) / len(scene.visits) <= 1
    assert len(scene.batch_answers) >= 0.5 * until_s * min(10, workers * wanted) / scene.answer_s


@pytest.mark.parametrize("every_s", [0.5, 2, 20])
def test_a_busy_deployment_is_the_peoples_first(every_s: float) -> None:
    """Three at once, of which a batch wants all."""
    scene = Scene(lambda _: 3)
    scene.run(300, scene.people(scene.environment(), every_s=every_s), scene.worker("w"))
    people, capacity = len(scene.visits), 300 * 3 / scene.answer_s
    if every_s > 1:
        assert scene.turned_away() == 0
        assert sum(scene.waits_s()) / people <= 3
        assert len(scene.batch_answers) >= 0.2 * (capacity - people)
    else:
        # More people than there is room for: the batch waits.
        answered = sum(visit.outcome == "answered" for visit in scene.visits)
        assert answered >= 0.75 * capacity


@pytest.mark.parametrize("every_s", [20, 3600])
@pytest.mark.parametrize(("workers", "patient"), [(1, False), (2, True)])
def test_a_limit_of_one_is_left_when_the_provider_is_well_again(every_s: float, workers: int, *, patient: bool) -> None:
    """It refuses everything for a minute. With a person now and then, and batch workers, who have no share at first."""
    scene = Scene(refuses_at(30, for_s=60, takes=10), answer_s=3)
    people = scene.people(scene.environment(), every_s=every_s, from_s=every_s)
    scene.run(420, people, *(scene.worker(f"w{index}", patient=patient) for index in range(workers)))
    assert min(limit for when_s, limit in scene.limits if 30 < when_s < 95) == 1
    assert max(limit for when_s, limit in scene.limits if when_s > 210) >= 8
    assert scene.turned_away(100) == 0
    assert max(scene.waits_s(150), default=0.0) <= 10
    # Two minutes later it is kept busy.
    assert sum(when_s > 210 for when_s in scene.batch_answers) >= 0.6 * 210 * 10 / scene.answer_s


def test_workers_without_a_share_ask_for_some_seconds_and_then_come_back_later() -> None:
    """Ten of them, of a provider that takes one call at a time."""
    scene = Scene(lambda _: 1, answer_s=5)
    scene.run(300, *(scene.worker(f"w{index}", wanted=4) for index in range(10)))
    # One or two have what there is; the rest is there for four seconds of every twenty-four.
    assert scene.holds <= 2 * 300 * (2 + 8 * 5 / 24)
    assert len(scene.batch_answers) >= 0.7 * 300 / 5
