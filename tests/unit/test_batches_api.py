"""The Batches API: what a client may send; with the stores behind it, it is in tests/e2e."""

from __future__ import annotations

import json
from typing import Any

import pytest

from naru.batches_api import Batches
from naru.errors import InvalidRequestError
from naru.files_api import Files

BATCH: dict[str, Any] = {
    "input_file_id": "file-0123456789abcdefghjkmnpq",
    "endpoint": "/v1/chat/completions",
    "completion_window": "24h",
}
INLINE: dict[str, Any] = {"requests": [{"prompt": "안녕"}]}


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        (BATCH | {"expires_after": 3600}, "expires_after", "unknown_parameter"),
        (BATCH | {"output_expires_after[seconds]": 3600}, "output_expires_after[seconds]", "unknown_parameter"),
        (BATCH | {"Metadata": {}}, "Metadata", "unknown_parameter"),
        (BATCH | {"x" * 1000: 1}, "x" * 64, "unknown_parameter"),
        (BATCH | {"output_expires_after": 3600}, "output_expires_after", "invalid_type"),
        (BATCH | {"output_expires_after": "3600"}, "output_expires_after", "invalid_type"),
        (BATCH | {"output_expires_after": {}}, "output_expires_after", "invalid_value"),
        (BATCH | {"output_expires_after": {"anchor": "now", "seconds": 3600}}, "output_expires_after", "invalid_value"),
        (BATCH | {"output_expires_after": {"anchor": "created_at", "seconds": 60}}, "output_expires_after", "invalid_value"),
        (BATCH | {"output_expires_after": {"anchor": "created_at", "seconds": 3600, "x": 1}}, "output_expires_after.x", "unknown_parameter"),
        (BATCH | {"check_budget": "yes"}, "check_budget", "invalid_type"),
        (BATCH | {"metadata": {f"k{i}": "v" for i in range(17)}}, "metadata", None),
        (BATCH | {"metadata": {"k": 1}}, "metadata", None),
        (BATCH | {"metadata": []}, "metadata", None),
        (BATCH | {"endpoint": "/v1/embeddings"}, "endpoint", "invalid_value"),
        (BATCH | {"endpoint": {"a": [1] * 10_000}}, "endpoint", "invalid_value"),
        (BATCH | {"completion_window": "1h"}, "completion_window", "invalid_value"),
        ({}, "input_file_id", "missing_required_parameter"),
        (BATCH | INLINE, "requests", None),
        ({"requests": []}, "requests", None),
        ({"requests": [{"prompt": "a"}] * 501}, "requests", None),
        ({"requests": [1] * 400}, "requests", None),
        ({"requests": [{"prompt": "a", "top_p": 1}]}, "requests[0].top_p", "unknown_parameter"),
        ({"requests": [{"prompt": "a", **{f"f{i}": 1 for i in range(50_000)}}]}, "requests[0].f0", "unknown_parameter"),
        ({"requests": [{"prompt": "a"}, {"prompt": "b", "x" * 1000: 1}]}, f"requests[1].{'x' * 64}", "unknown_parameter"),
        ({"requests": [{"prompt": "a", "custom_id": "c" * 513}]}, "requests[0].custom_id", "invalid_value"),
        ({"requests": [{"prompt": "a", "model": "nope" * 10_000}]}, "requests[0].model", "invalid_value"),
        ({"requests": [{"prompt": "a", "model": ["m"]}]}, "requests[0].model", "invalid_value"),
    ],
)  # fmt: skip
def test_a_batch_that_says_something_else_is_refused(body: dict[str, Any], param: str, code: str | None) -> None:
    nothing: Any = None  # no store is asked
    batches = Batches(store=nothing, progress=nothing, files=Files(nothing), reader=nothing, queue=nothing, window_s=1)
    with pytest.raises(InvalidRequestError) as refused:
        batches.create("key_0123456789ab", json.dumps(body), models=["m"])
    assert (refused.value.param, refused.value.code) == (param, code)
    assert len(refused.value.message) < 600
