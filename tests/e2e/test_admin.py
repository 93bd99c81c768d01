"""The admin API and the command ``naru`` against the whole gateway."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from local.emulator import CREDENTIALS, REGION
from tests.conftest import RunningStack
from tests.waiting import PATIENCE_S

pytestmark = pytest.mark.xdist_group("stack")

OMNI = "hyperclova-x-omni"
NARU = Path(sys.executable).with_name("naru")


@pytest.fixture
def admin(stack: RunningStack) -> Iterator[httpx.Client]:
    stack.model.reset_stats()
    stack.model.clear_control()
    with httpx.Client(
        base_url=f"{stack.base_url}/admin/",
        headers={"Authorization": f"Bearer {stack.gateway.admin_key}"},
        timeout=PATIENCE_S,
    ) as client:
        yield client


def ask(stack: RunningStack, key: str, *, model: str = OMNI, text: str = "안녕하세요?") -> httpx.Response:
    return httpx.post(
        f"{stack.base_url}/chat/completions",
        headers={"Authorization": f"Bearer {key}"},
        json={"model": model, "messages": [{"role": "user", "content": text}], "max_tokens": 50},
        timeout=PATIENCE_S,
    )


def exact(answer: httpx.Response) -> Any:
    return json.loads(answer.text, parse_float=Decimal)


# ── The API ────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_key_is_made_used_changed_rotated_and_revoked(stack: RunningStack, admin: httpx.Client) -> None:
    answer = admin.post("keys", json={"name": "모바일", "budget_usd": 50.25, "models": [OMNI], "tags": {"team": "앱"}})
    made = exact(answer)
    assert answer.status_code == 201
    assert answer.headers["x-request-id"].startswith("req_")
    assert answer.headers["cache-control"] == "no-store"
    key_id, key = made["id"], made["key"]
    assert (made["object"], made["budget_usd"], made["models"]) == ("api_key", Decimal("50.25"), [OMNI])
    assert ask(stack, key).status_code == 200
    assert ask(stack, key, model="gpt-4.1").json()["error"]["code"] == "model_not_allowed"

    shown = exact(admin.get(f"keys/{key_id}"))
    assert "key" not in shown
    assert shown["spent_usd"] > 0
    assert shown["available_usd"] == Decimal("50.25") - shown["spent_usd"]
    assert shown["requests_in_flight"] == 0

    changed = exact(admin.patch(f"keys/{key_id}", json={"budget_usd": 80, "models": None}))
    assert (changed["budget_usd"], changed["available_usd"]) == (80, 80 - shown["spent_usd"])
    assert ask(stack, key, model="gpt-4.1").status_code == 200

    rotation = admin.post(f"keys/{key_id}/rotate", json={"overlap_seconds": 600})
    assert rotation.status_code == 201
    assert ask(stack, key).status_code == ask(stack, rotation.json()["key"]).status_code == 200
    rotated = admin.post(f"keys/{key_id}/rotate", json={"overlap_seconds": 1}).json()
    time.sleep(max(0.0, rotated["old_key_works_until"] + 1.1 - time.time()))
    old = ask(stack, key)
    assert (old.status_code, old.json()["error"]["code"]) == (401, "invalid_api_key")
    assert ask(stack, rotated["key"]).status_code == 200

    revoked = admin.delete(f"keys/{key_id}")
    assert (revoked.status_code, revoked.json()["status"]) == (200, "revoked")
    gone = ask(stack, rotated["key"])
    assert (gone.status_code, gone.json()["error"]["code"]) == (403, "api_key_disabled")
    again = admin.patch(f"keys/{key_id}", json={"enabled": True})
    assert (again.status_code, again.json()["error"]["code"]) == (409, "api_key_revoked")
    assert key_id in [each["id"] for each in admin.get("keys", params={"limit": 100}).json()["data"]]


def test_keys_are_listed_in_pages(admin: httpx.Client) -> None:
    made = [admin.post("keys", json={"name": f"page {i}"}).json()["id"] for i in range(3)]
    first = admin.get("keys", params={"limit": 2}).json()
    assert (first["object"], len(first["data"]), first["has_more"]) == ("list", 2, True)
    second = admin.get("keys", params={"limit": 2, "after": first["last_id"]}).json()
    ids = [each["id"] for each in first["data"] + second["data"]]
    assert set(made) <= set(ids)
    assert len(set(ids)) == len(ids)


def test_sharded_keys_work_and_change_as_one(stack: RunningStack, admin: httpx.Client) -> None:
    made = admin.post("keys", json={"name": "busy", "budget_usd": 10, "rpm": 100, "shards": 4}).json()
    for _ in range(3):
        assert ask(stack, made["key"]).status_code == 200
    before = exact(admin.get(f"keys/{made['id']}"))
    after = exact(admin.patch(f"keys/{made['id']}", json={"budget_usd": 3.5, "rpm": 50}))
    assert (after["shards"], after["rpm"]) == (4, 50)
    assert after["spent_usd"] == before["spent_usd"] > 0
    assert after["available_usd"] == Decimal("3.5") - before["spent_usd"]
    assert admin.delete(f"keys/{made['id']}").json()["status"] == "revoked"
    assert {ask(stack, made["key"]).status_code for _ in range(4)} == {403}


def test_no_request_is_lost_while_the_budget_changes(stack: RunningStack, admin: httpx.Client) -> None:
    """Twelve answers while an operator turns the budget and the rate up and down: all are counted."""
    made = admin.post("keys", json={"name": "turned", "budget_usd": 100, "rpm": 1000}).json()
    with ThreadPoolExecutor(4) as pool:
        answers = [pool.submit(ask, stack, made["key"], text=f"질문 {i}") for i in range(12)]
        for turn in range(8):
            change = admin.patch(f"keys/{made['id']}", json={"budget_usd": 100 + turn, "rpm": 1000 + turn})
            assert change.status_code == 200
        assert {answer.result().status_code for answer in answers} == {200}
    shown = exact(admin.get(f"keys/{made['id']}"))
    assert (shown["requests_in_flight"], shown["reserved_usd"]) == (0, 0)
    assert shown["available_usd"] == shown["budget_usd"] - shown["spent_usd"] == 107 - shown["spent_usd"]
    rows = stack.aws("dynamodb").get_paginator("scan").paginate(TableName=stack.ledger_table)
    costs = [
        int(row["cost_pico_usd"]["N"]) for page in rows for row in page["Items"] if row["key_id"]["S"] == made["id"]
    ]
    assert (len(costs), Decimal(sum(costs)).scaleb(-12)) == (12, shown["spent_usd"])


def test_the_organisations_budget_is_shown_and_changed(admin: httpx.Client) -> None:
    before = exact(admin.get("organization"))
    assert before["object"] == "organization"
    try:
        after = exact(admin.patch("organization", json={"budget_usd": 600.5}))
        assert after["budget_usd"] == Decimal("600.50")
        assert after["available_usd"] - before["available_usd"] == Decimal("600.50") - before["budget_usd"]
    finally:
        assert admin.patch("organization", json={"budget_usd": 500}).json()["budget_usd"] == 500


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("POST", "keys", {"name": "a", "models": ["gpt-9"]}, 400, "model_not_found"),
        ("POST", "keys", {"name": "a", "budgte_usd": 5}, 400, "unknown_parameter"),
        ("POST", "keys", None, 400, None),
        ("GET", "keys/key_000000000000", None, 404, "api_key_not_found"),
        ("PATCH", "keys/key_000000000000", {"rpm": 1}, 404, "api_key_not_found"),
        ("DELETE", "keys/key_000000000000", None, 404, "api_key_not_found"),
        ("POST", "keys/key_000000000000/rotate", None, 404, "api_key_not_found"),
        ("GET", "keys?limit=0", None, 400, "invalid_value"),
        ("PUT", "keys", {}, 405, "method_not_allowed"),
    ],
)
def test_what_cannot_be_done_is_said_in_openais_shape(
    admin: httpx.Client, method: str, path: str, body: Any, status: int, code: str | None
) -> None:
    answer = admin.request(method, path, json=body)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == code


def test_only_an_admin_key_opens_the_admin_api(stack: RunningStack) -> None:
    keys = {stack.api_key: (403, "admin_key_required"), "sk-naru-x": (401, "invalid_api_key")}
    for key, expected in keys.items():
        answer = httpx.get(f"{stack.base_url}/admin/keys", headers={"Authorization": f"Bearer {key}"})
        assert (answer.status_code, answer.json()["error"]["code"]) == expected
    assert httpx.get(f"{stack.base_url}/admin/keys").status_code == 401
    client = openai.OpenAI(base_url=stack.base_url, api_key=stack.gateway.admin_key, max_retries=0)
    with client, pytest.raises(openai.AuthenticationError):
        client.models.list()


@pytest.mark.parametrize("path", ["keys", "keys/key_000000000000", "keys/key_000000000000/rotate", "organization"])
def test_a_browser_may_ask(stack: RunningStack, path: str) -> None:
    answer = httpx.options(
        f"{stack.base_url}/admin/{path}",
        headers={"Origin": "https://console.example", "Access-Control-Request-Method": "PATCH"},
    )
    assert answer.status_code == 204
    assert "PATCH" in answer.headers["access-control-allow-methods"]


def test_the_log_says_who_changed_what_and_no_secret(stack: RunningStack, admin: httpx.Client) -> None:
    made = admin.post("keys", json={"name": "비밀 이름"}).json()
    log = stack.door.log("AdminFunction")
    assert made["id"] in log
    assert made["key"] not in log
    assert stack.gateway.admin_key not in log
    assert "비밀 이름" not in log


# ── The command ────────────────────────────────────────────────────────────────────────────────────────────

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def naru(stack: RunningStack, tmp_path: Path) -> Run:
    def run(*arguments: str, stdin: str | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(NARU), *arguments],
            input=stdin or "",
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
            cwd=tmp_path,
            env={
                "PATH": os.environ.get("PATH", ""),
                "HOME": str(tmp_path),
                "NARU_BASE_URL": stack.base_url,
                "NARU_ADMIN_KEY": stack.gateway.admin_key,
                "PYTHONUTF8": "1",
                "PYTHONWARNINGS": "error",
                "AWS_ENDPOINT_URL": stack.gateway.stack.emulator.url,
                "AWS_DEFAULT_REGION": REGION,
                **CREDENTIALS,
                **environment,
            },
        )

    return run


def well(run: Run, *arguments: str) -> str:
    done = run(*arguments)
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
    return done.stdout


def failure(done: subprocess.CompletedProcess[str], status: int) -> str:
    """The one line that it says."""
    assert done.returncode == status, done.stderr
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("naru")
    return line


def test_the_command_makes_a_key_that_works_and_prints_nothing_else(stack: RunningStack, naru: Run) -> None:
    key = well(
        naru, "keys", "create", "명령", "--budget-usd", "0.25", "--model", OMNI, "--tag", "team=앱", "--rpm", "9"
    )
    assert ask(stack, key.strip()).status_code == 200
    listed = well(naru, "keys", "list")
    (row,) = (line for line in listed.splitlines() if "명령" in line)
    assert row.split()[1:4] == ["명령", "active", "0.25"]
    key_id = row.split()[0]
    assert "0.25 USD a month" in well(naru, "keys", "show", key_id)
    shown = well(naru, "keys", "update", key_id, "--rpm", "none", "--budget-usd", "1.5", "--expires", "30d")
    assert "1.50 USD a month" in shown
    assert json.loads(well(naru, "keys", "show", key_id, "--json"))["rpm"] is None
    new = json.loads(well(naru, "keys", "rotate", key_id, "--overlap", "0", "--json"))["key"]
    assert [ask(stack, each).status_code for each in (key.strip(), new)] == [401, 200]
    assert "revoked" in well(naru, "keys", "revoke", key_id)
    assert key_id not in well(naru, "keys", "list")
    assert key_id in well(naru, "keys", "list", "--all")
    assert ask(stack, new).status_code == 403


def test_the_command_shows_and_sets_the_budget(naru: Run) -> None:
    try:
        assert "700.00 USD a month" in well(naru, "budget", "set", "700")
        assert json.loads(well(naru, "budget", "show", "--json"))["budget_usd"] == 700
    finally:
        well(naru, "budget", "set", "500")


def test_a_local_run_is_found_from_a_folder_below(naru: Run, stack: RunningStack, tmp_path: Path) -> None:
    file = tmp_path / ".naru" / "local.json"
    file.parent.mkdir()
    file.write_text(json.dumps({"base_url": stack.base_url, "admin_key": stack.gateway.admin_key}))
    assert "USD a month" in naru("budget", "show", NARU_BASE_URL="", NARU_ADMIN_KEY="").stdout
    line = failure(naru("budget", "show", NARU_BASE_URL=""), 2)
    assert "NARU_BASE_URL" in line
    file.write_text("{")
    assert "make run" in failure(naru("budget", "show", NARU_BASE_URL="", NARU_ADMIN_KEY=""), 1)


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        ([], 2, "COMMAND"),
        (["keys", "create"], 2, "NAME"),
        (["keys", "create", "a", "--budget-usd", "much"], 2, "50 or 0.25"),
        (["keys", "create", "a", "--tag", "x"], 2, "NAME=TEXT"),
        (["keys", "create", "a", "--model", "gpt-9"], 1, "There is no such model here: gpt-9"),
        (["keys", "create", "a", "--expires", "2027-01-01"], 1, "time zone"),
        (["keys", "rotate", "key_000000000000", "--overlap", "1w"], 2, "15m"),
        (["keys", "show", "key_000000000000"], 1, "There is no API key"),
        (["keys", "show", "mine"], 2, "naru keys list"),
        (["keys", "show", "sk-naru-000000000000-x"], 2, "its id"),
        (["keys", "update", "key_000000000000"], 2, "nothing to change"),
        (["budget", "set", "-5"], 2, "at least 0"),
        (["budget", "show", "--base-url", "localhost"], 2, "http://"),
        (["budget", "show", "--admin-key", "열쇠"], 2, "copy it anew"),
        (["budget", "show", "--admin-key", "sk-naru-wrong"], 1, "not known here"),
        (["budget", "show", "--base-url", "http://127.0.0.1:9/v1"], 1, "cannot reach http://127.0.0.1:9/v1"),
        (["budget", "show", "--base-url", "http://127.0.0.1:99999/v1"], 2, "names no host and port"),
        (["admin", "init"], 1, "--replace"),
        (["admin", "init", "--stack-name", "nothing"], 1, "AWS says"),
        (["providers", "set", "nobody"], 2, "clovastudio, holysheep"),
        (["providers", "set", "holysheep"], 2, "no key on stdin"),
    ],
)
def test_every_failure_is_one_line_that_says_what_to_do(
    naru: Run, arguments: Sequence[str], status: int, says: str
) -> None:
    assert says in failure(naru(*arguments), status)


def test_something_that_is_no_gateway_is_recognised(naru: Run, stack: RunningStack) -> None:
    elsewhere = stack.gateway.stack.emulator.url
    assert "ends in /v1" in failure(naru("budget", "show", NARU_BASE_URL=elsewhere), 1)


def test_a_reader_who_has_enough_is_no_failure(naru: Run, stack: RunningStack, tmp_path: Path) -> None:
    environment = {
        "NARU_BASE_URL": stack.base_url,
        "NARU_ADMIN_KEY": stack.gateway.admin_key,
        "PATH": os.environ["PATH"],
    }
    command = ["bash", "-c", f"'{NARU}' keys list --json | true"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert done.stderr == ""


def test_a_providers_key_is_stored_beside_the_others(naru: Run, stack: RunningStack) -> None:
    secret_id = stack.gateway.stack.outputs["ProviderKeysSecret"]

    def stored() -> Any:
        return json.loads(stack.aws("secretsmanager").get_secret_value(SecretId=secret_id)["SecretString"])

    before = stored()
    try:
        done = naru("providers", "set", "clovastudio", stdin="nv-new\n")
        assert (done.returncode, done.stdout) == (0, "")
        assert "nv-new" not in done.stderr
        assert stored() == {**before, "clovastudio": "nv-new"}
        assert "letters that no key has" in failure(naru("providers", "set", "clovastudio", stdin="two words"), 2)
    finally:
        stack.gateway.stack.put_provider_keys(before)


def test_a_lost_admin_key_is_replaced_with_aws_credentials(naru: Run, stack: RunningStack) -> None:
    dynamodb = stack.aws("dynamodb")
    scan = {"TableName": stack.meter_table, "FilterExpression": "begins_with(meter, :admin)"}
    values = {":admin": {"S": "admin#"}}
    before = dynamodb.scan(**scan, ExpressionAttributeValues=values)["Items"]
    try:
        new = well(naru, "admin", "init", "--replace", "--name", "미나").strip()
        assert "USD a month" in naru("budget", "show", NARU_ADMIN_KEY=new).stdout
        assert "replaced" in failure(naru("budget", "show"), 1)
    finally:
        for item in dynamodb.scan(**scan, ExpressionAttributeValues=values)["Items"]:
            dynamodb.delete_item(TableName=stack.meter_table, Key={"meter": item["meter"]})
        for item in before:
            dynamodb.put_item(TableName=stack.meter_table, Item=item)
    assert "USD a month" in well(naru, "budget", "show")
