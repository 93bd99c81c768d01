from datetime import UTC, date, datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from naru.business_time import business_day
from naru.request_ids import arrived_at_ms, new_request_id

SEOUL = ZoneInfo("Asia/Seoul")
instants_ms = st.integers(0, 4_102_444_800_000)


def ms(year: int, month: int, day: int, hour: int, minute: int, second: int) -> int:
    return int(datetime(year, month, day, hour, minute, second, tzinfo=UTC).timestamp() * 1000)


@given(instants_ms, instants_ms)
def test_ids_sort_by_time_and_carry_it(one: int, other: int) -> None:
    first, second = new_request_id(at_ms=one), new_request_id(at_ms=other)
    assert arrived_at_ms(first) == one
    assert one == other or (first < second) == (one < other)


@given(st.text())
def test_no_other_text_is_taken_for_an_id(text: str) -> None:
    with pytest.raises(ValueError, match="not a request id"):
        arrived_at_ms(text)


@pytest.mark.parametrize(
    ("instant_ms", "day"),
    [
        (ms(2026, 11, 22, 14, 59, 59) + 999, date(2026, 11, 22)),
        (ms(2026, 11, 22, 15, 0, 0), date(2026, 11, 23)),
        (ms(2026, 12, 31, 14, 59, 59) + 999, date(2026, 12, 31)),
        (ms(2026, 12, 31, 15, 0, 0), date(2027, 1, 1)),
    ],
)
def test_the_day_begins_at_midnight_in_seoul(instant_ms: int, day: date) -> None:
    assert business_day(instant_ms, SEOUL) == day
