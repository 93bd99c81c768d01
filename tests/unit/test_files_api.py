"""The Files API: what a client may send; with the store behind it, it is in tests/e2e."""

from __future__ import annotations

import httpx
import pytest

from naru.errors import InvalidRequestError
from naru.files_api import Files


@pytest.mark.parametrize(
    "seconds", [pytest.param("9" * 5000, id="long"), "\uff19\uff19\uff19\uff19", "²", "3600.5", "-3600", "", "3599"]
)
def test_a_life_that_is_no_number_of_seconds_is_refused(seconds: str) -> None:
    """The first is more digits than Python reads, the second a number that is none in ASCII."""
    fields = {"purpose": "batch", "expires_after[anchor]": "created_at", "expires_after[seconds]": seconds}
    form = httpx.Request("POST", "http://naru", data=fields, files={"file": ("a.jsonl", b"{}")})
    store: object = None  # it is not asked
    with pytest.raises(InvalidRequestError, match="expires_after"):
        Files(store).create("key_0123456789ab", form.read(), form.headers["content-type"])  # type: ignore[arg-type]
