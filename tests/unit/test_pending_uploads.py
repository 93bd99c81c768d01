"""Uploads that are not completed: bounded for each key in number and in bytes, whatever happens at once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from naru import pending_uploads
from naru.errors import RateLimitedError
from naru.pending_uploads import MAX_PENDING, MAX_PENDING_BYTES, PendingUploads
from tests.dynamodb_model import model_of

KEY, OTHER = "key_0123456789ab", "key_aaaaaaaaaaaa"
NOW_S = 1_795_000_000
LARGEST = 200 * 10**6


def uploads() -> PendingUploads:
    return PendingUploads(model_of("BatchTable"), "BatchTable")


def begun(
    pending: PendingUploads, count: int, size_bytes: int, *, key_id: str = KEY, now_s: int = NOW_S, prefix: str = ""
) -> int:
    """How many of so many are let in."""
    done = 0
    for number in range(count):
        file_id = f"file-{number}" if (now_s, prefix) == (NOW_S, "") else f"{prefix}-{now_s}-{number}"
        try:
            pending.begin(key_id, file_id, size_bytes, now_s=now_s, until_s=now_s + 86_400)
        except RateLimitedError:
            continue
        done += 1
    return done


@pytest.mark.parametrize(
    ("size_bytes", "expected"),
    [(LARGEST, 10), (LARGEST - 1, 10), (1, MAX_PENDING), (MAX_PENDING_BYTES // 2, 2), (MAX_PENDING_BYTES // 2 + 1, 1)],
)
def test_a_key_has_so_many_uploads_and_bytes(size_bytes: int, expected: int) -> None:
    pending = uploads()
    assert begun(pending, 60, size_bytes) == expected
    assert begun(pending, 60, size_bytes, key_id=OTHER) == expected


def test_who_is_refused_is_told_what_to_do_and_when_a_place_is_free() -> None:
    pending = uploads()
    begun(pending, 10, LARGEST)
    with pytest.raises(RateLimitedError, match=r"10 uploads of 2000000000 bytes.*complete") as refused:
        pending.begin(KEY, "file-new", 1, now_s=NOW_S + 400, until_s=NOW_S + 86_800)
    assert refused.value.retry_after_s == 86_000
    assert refused.value.should_retry is False


def test_a_place_comes_back() -> None:
    """By completing, as often as that is said; an hour after the beginning, by giving up; after a day by itself."""
    pending = uploads()
    begun(pending, 10, LARGEST)
    for _ in range(2):
        pending.end(KEY, "file-3", now_s=NOW_S)
    pending.end(KEY, "file-of-yesterday", now_s=NOW_S)
    assert begun(pending, 3, LARGEST, prefix="again") == 1
    pending.end(KEY, "file-4", now_s=NOW_S, until_s=NOW_S + 3600)
    assert begun(pending, 3, LARGEST, now_s=NOW_S + 3599) == 0
    assert begun(pending, 1, LARGEST, now_s=NOW_S + 3600) == 1
    assert begun(pending, 60, LARGEST, now_s=NOW_S + 86_400) == 9
    assert begun(pending, 60, LARGEST, now_s=NOW_S + 200_000) == 10


def test_many_at_once_do_not_share_the_last_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pending_uploads, "_TRIES", 10_000)
    pending = uploads()

    def begin(number: int) -> int:
        try:
            pending.begin(KEY, f"file-{number}", LARGEST, now_s=NOW_S, until_s=NOW_S + 60)
        except RateLimitedError:
            return 0
        return 1

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(begin, range(60))) == 10
