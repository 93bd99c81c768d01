"""Tallies: the sums of rows, whatever the order and the pieces in which they are added."""

from __future__ import annotations

import random
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from naru.ledger import Part, Row, from_item, key_of, to_item
from naru.percentiles import RELATIVE_ACCURACY, Durations
from naru.tally import Spent, Tally, Users, merged, parts_of
from naru.tally_codec import decode, encode
from tests.usage_world import RATES, SEOUL, any_row, row

SEEDS = st.integers(0, 2**32)


def some_rows(seed: int, count: int) -> list[Row]:
    rng = random.Random(seed)
    return [any_row(1_795_000_000_000 + rng.randrange(10**9), rng) for _ in range(count)]


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS, count=st.integers(0, 60), pieces=st.integers(1, 5))
def test_the_pieces_add_up_to_the_whole(seed: int, count: int, pieces: int) -> None:
    rows = some_rows(seed, count)
    whole = Tally().add_all(rows)
    shuffled = random.Random(seed + 1).sample(rows, len(rows))
    parts = [Tally().add_all(shuffled[piece::pieces]) for piece in range(pieces)]
    assert encode(merged(parts)) == encode(whole)
    assert whole.cost_pico_usd == sum(each.cost_pico_usd for each in rows)
    assert whole.requests == len(rows)
    assert whole.sums().prompt_tokens == sum(each.usage.prompt_tokens for each in rows)
    assert sum(spent.cost_pico_usd for spent in whole.users.named.values()) == sum(
        each.cost_pico_usd for each in rows if each.end_user is not None
    )
    assert sum(whole.failures.values()) == sum(each.outcome != "completed" for each in rows)
    assert sum(tally.cost_pico_usd for tally in (whole.only("key_a".__eq__), whole.only("key_a".__ne__))) == whole.cost_pico_usd  # fmt: skip


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS)
def test_a_tally_survives_the_table(seed: int) -> None:
    whole = Tally().add_all(some_rows(seed, 40))
    again = decode(encode(whole))
    assert encode(again) == encode(whole)
    assert (again.cells, again.failures, again.calls, again.users.named) == (whole.cells, whole.failures, whole.calls, whole.users.named)  # fmt: skip


def test_what_is_no_roll_up_is_refused() -> None:
    with pytest.raises(ValueError, match="not a roll-up"):
        decode(b"no")


def test_end_users_of_roll_ups_are_added_when_somebody_asks() -> None:
    """However roll-ups and rows are mixed, users are those of all rows, in the order in which they were added."""
    rows = some_rows(8, 90)
    whole = Tally().add_all(rows)
    first, second = (decode(encode(Tally().add_all(rows[at : at + 30]))) for at in (0, 30))
    mixed = merged([first, second]).merge(Tally().add_all(rows[60:]))
    of_a = merged([first, second]).only("key_a".__eq__)
    assert mixed.users.named == whole.users.named
    assert encode(mixed) == encode(whole)
    assert of_a.users.named == Tally().add_all(each for each in rows[:60] if each.key_id == "key_a").users.named
    assert first.users.named == Tally().add_all(rows[:30]).users.named


def test_an_answer_of_two_parts_is_one_request_and_two_charges() -> None:
    made = next(each for each in some_rows(5, 200) if each.parts)
    tally = Tally().add_all([made])
    by_deployment = tally.by(lambda cell: cell.deployment)
    assert {name: (sums.requests, sums.cost_pico_usd) for name, sums in by_deployment.items()} == {
        made.parts[0].deployment: (1, made.parts[0].cost_pico_usd),
        made.parts[1].deployment: (0, made.parts[1].cost_pico_usd),
    }


def test_a_row_from_the_table_costs_what_it_says() -> None:
    """Of an unknown end, the worst case is charged, which no tokens explain."""
    made = row(1_795_000_000_000, outcome="unknown", cost_pico_usd=123_456_789)
    kept = from_item(key_of(made.request_id, SEOUL) | to_item(made))
    assert [part.cost_pico_usd for part in parts_of(kept)] == [123_456_789]
    usage = made.usage
    parts = (Part("omni", "a/omni", usage, RATES, 7), Part("fast", "b/fast", usage, RATES, 3))
    strange = row(1_795_000_000_000, parts=parts, cost_pico_usd=11)
    assert [part.cost_pico_usd for part in parts_of(strange)] == [8, 3]


def test_many_end_users_are_bounded_and_their_sum_is_exact() -> None:
    users = Users(limit=10)
    for number in range(1000):
        users.add("key_a", f"user-{number}", Spent(1, 2, number))
    assert len(users.named) < 20
    left, rest = sum(spent.cost_pico_usd for spent in users.named.values()), users.others["key_a"]
    assert left + rest.cost_pico_usd == sum(range(1000))
    assert len(users.named) + rest.requests == 1000
    users.trim()
    assert min(spent.cost_pico_usd for spent in users.named.values()) >= 900


@settings(max_examples=30, deadline=None)
@given(values=st.lists(st.integers(1, 900_000), min_size=1, max_size=300), percent=st.sampled_from([50.0, 95.0, 99.0]))
def test_percentiles_are_within_one_percent_of_a_true_one(values: list[int], percent: float) -> None:
    durations = Durations()
    for value in values:
        durations.add(value)
    found = durations.percentile(percent)
    rank = int(Fraction(percent) / 100 * (len(values) - 1))
    true = sorted(values)[rank]
    assert found is not None
    assert abs(found - true) <= RELATIVE_ACCURACY * true + 1  # rounded to a millisecond


def test_nothing_measured_has_no_percentile() -> None:
    assert Durations().percentile(50) is None
