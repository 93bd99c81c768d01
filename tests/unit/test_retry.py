import random
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from naru.retry import RetryPolicy, retry_after_s

NOW = datetime(2026, 11, 22, 9, 0, 0, tzinfo=UTC)
POLICY = RetryPolicy(max_attempts=3, base_s=0.25, cap_s=8.0)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after": "Sun, 22 Nov 2026 09:00:30 GMT"}, 30.0),
        ({"retry-after": "Sun, 22 Nov 2026 08:00:00 GMT"}, 0.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "-3"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after-ms": "1500", "retry-after": "9"}, 1.5),
        ({"x-ratelimit-reset-requests": "6s"}, 6.0),
        ({"x-ratelimit-reset-requests": "6s", "x-ratelimit-reset-tokens": "1m2.5s"}, 62.5),
        ({"x-ratelimit-reset-requests": "12ms"}, 0.012),
        ({"x-ratelimit-reset-requests": "a while"}, None),
        ({"retry-after": "2", "x-ratelimit-reset-requests": "60s"}, 2.0),
    ],
)
def test_the_wait_that_a_provider_asks_for_is_read(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after_s(headers, now=NOW) == seconds


@given(st.dictionaries(st.sampled_from(["retry-after", "retry-after-ms", "x-ratelimit-reset-requests"]), st.text()))
def test_no_header_however_strange_is_an_error_or_a_negative_wait(headers: dict[str, str]) -> None:
    wait_s = retry_after_s(headers, now=NOW)
    assert wait_s is None or wait_s >= 0


@given(st.integers(1, 50), st.integers())
def test_backoff_is_jittered_over_the_whole_range_and_capped(failures: int, seed: int) -> None:
    wait_s = POLICY.wait_s(failures, retry_after_s=None, rng=random.Random(seed))
    assert 0 <= wait_s <= min(8.0, 0.25 * 2 ** (failures - 1))


@given(st.floats(0, 100), st.integers())
def test_a_provider_is_never_asked_before_the_time_it_named(asked_s: float, seed: int) -> None:
    wait_s = POLICY.wait_s(1, retry_after_s=asked_s, rng=random.Random(seed))
    assert asked_s <= wait_s <= asked_s + 0.25
