"""Files, batches and usage of one key, asked for with another's: not there. And what an app's key sees is its own."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import httpx
import pytest

from tests.accounts import OMNI
from tests.conftest import RunningStack
from tests.waiting import PATIENCE_S

pytestmark = pytest.mark.xdist_group("stack")

LINE = {
    "custom_id": "1",
    "method": "POST",
    "url": "/v1/chat/completions",
    "body": {"model": OMNI, "messages": [{"role": "user", "content": "안녕 [[sim tokens=3]]"}]},
}


@pytest.fixture
def owner(stack: RunningStack) -> Iterator[httpx.Client]:
    with client(stack, stack.new_api_key("owner")) as opened:
        yield opened


@pytest.fixture
def stranger(stack: RunningStack) -> Iterator[httpx.Client]:
    with client(stack, stack.new_api_key("stranger")) as opened:
        yield opened


def client(stack: RunningStack, key: str) -> httpx.Client:
    return httpx.Client(base_url=stack.base_url, headers={"authorization": f"Bearer {key}"}, timeout=PATIENCE_S)


def upload(owner: httpx.Client) -> str:
    form = {"file": ("in.jsonl", json.dumps(LINE)), "purpose": (None, "batch")}
    answer = owner.post("/files", files=form)
    assert answer.status_code == 200, answer.text
    created: str = answer.json()["id"]
    return created


def test_a_file_is_its_owners(owner: httpx.Client, stranger: httpx.Client) -> None:
    file = upload(owner)
    for method, path in (("GET", f"/files/{file}"), ("GET", f"/files/{file}/content"), ("DELETE", f"/files/{file}")):
        refused = stranger.request(method, path)
        assert refused.status_code == 404, (method, path)
        assert "in.jsonl" not in refused.text
    assert file not in stranger.get("/files").text
    # Nor can it be run at somebody's cost, or its content be told from the batch's errors.
    batch = {"input_file_id": file, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    assert stranger.post("/batches", json=batch).status_code in {400, 404}
    assert owner.get(f"/files/{file}").status_code == 200
    # A place in the list that is not the stranger's tells no more than one that never was.
    other = file[:-1] + ("0" if file[-1] != "0" else "1")
    asked = [stranger.get("/files", params={"after": each}) for each in (file, other)]
    assert asked[0].status_code == asked[1].status_code
    assert asked[0].json().get("data", []) == asked[1].json().get("data", []) == []


def test_an_upload_is_its_owners(owner: httpx.Client, stranger: httpx.Client) -> None:
    begun = owner.post("/uploads/presigned", json={"filename": "in.jsonl", "purpose": "batch", "bytes": 10})
    assert begun.status_code == 200, begun.text
    assert stranger.post(f"/uploads/{begun.json()['id']}/complete").status_code == 404


def test_a_batch_is_its_owners(owner: httpx.Client, stranger: httpx.Client) -> None:
    requests = [{"custom_id": "secret-name", "messages": LINE["body"]["messages"], "model": OMNI}]  # type: ignore[index]
    created = owner.post("/batches", json={"requests": requests, "metadata": {"for": "owner"}})
    assert created.status_code == 200, created.text
    batch = created.json()["id"]
    for method, path in (("GET", ""), ("GET", "/results"), ("POST", "/cancel")):
        refused = stranger.request(method, f"/batches/{batch}{path}")
        assert refused.status_code == 404, path
        assert "owner" not in refused.text
    assert batch not in stranger.get("/batches").text
    assert owner.get(f"/batches/{batch}").json()["status"] not in {"cancelling", "cancelled"}


@pytest.mark.parametrize(
    "path", ["/usage", "/usage/requests", "/usage/summary", "/organization/costs", "/organization/usage/completions"]
)
def test_usage_of_others_is_not_shown(owner: httpx.Client, stranger: httpx.Client, path: str) -> None:
    asked = {"model": OMNI, "messages": [{"role": "user", "content": "안녕 [[sim tokens=3]]"}], "user": "kim-of-owner"}
    answered = owner.post("/chat/completions", json=asked)
    assert answered.status_code == 200
    request_id = answered.headers["x-request-id"]
    key_id = f"key_{owner.headers['authorization'].split('-')[2]}"
    params = {"start_time": int(time.time()) - 3600} if path.startswith("/organization") else {}
    seen = stranger.get(path, params=params)
    assert seen.status_code == 200, seen.text
    for secret in (request_id, key_id, "kim-of-owner", "owner"):
        assert secret not in seen.text, secret
    if path.startswith("/usage") and path != "/usage/summary":
        # Nor by asking for it.
        for query in ({"key": key_id}, {"end_user": "kim-of-owner"}, {"key": key_id, "format": "csv"}):
            named = stranger.get(path, params=query)
            assert request_id not in named.text
            assert "kim-of-owner" not in named.text or named.status_code == 400
    if path == "/usage/requests":
        assert request_id in owner.get(path).text


def test_reports_and_alerts_are_the_operators(stranger: httpx.Client) -> None:
    assert stranger.get("/usage/reports/2026-11").status_code == 403
    assert stranger.post("/admin/alerts/test").status_code == 403
    stranger.headers.pop("authorization")
    for path in ("/usage", "/usage/summary", "/usage/requests", "/usage/reports/2026-11", "/files", "/batches"):
        assert stranger.get(path).status_code == 401, path
