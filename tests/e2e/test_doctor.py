"""``naru doctor`` against a gateway that runs: all is well, until something is not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import RunningStack
from tests.waiting import PATIENCE_S

pytestmark = pytest.mark.xdist_group("stack")

Examine = Callable[[], tuple[int, dict[str, dict[str, str]]]]


@pytest.fixture
def examine(stack: RunningStack, tmp_path: Path) -> Examine:
    """What the command finds for a local run in the folder it is called in, by what was looked at."""
    state = {
        "base_url": stack.base_url,
        "admin_key": stack.gateway.admin_key,
        "emulator_url": stack.gateway.stack.emulator.url,
    }
    (tmp_path / ".naru").mkdir()
    (tmp_path / ".naru" / "local.json").write_text(json.dumps(state), encoding="utf-8")

    def run() -> tuple[int, dict[str, dict[str, str]]]:
        done = subprocess.run(
            [str(Path(sys.executable).with_name("naru")), "doctor", "--json"],
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
            cwd=tmp_path,
            env={
                "PATH": os.environ.get("PATH", ""),
                "HOME": str(tmp_path),
                "PYTHONUTF8": "1",
                "PYTHONWARNINGS": "error",
            },
        )
        assert "Traceback" not in done.stderr
        return done.returncode, {finding["what"]: finding for finding in json.loads(done.stdout)["data"]}

    return run


def test_a_gateway_that_runs_is_well(examine: Examine) -> None:
    status, findings = examine()
    assert status == 0, findings
    assert {"gateway", "door", "admin key", "keys", "stack", "catalog", "provider keys", "tables", "leases"} <= set(
        findings
    )
    assert not [finding for finding in findings.values() if finding["verdict"] == "fail"]


def test_a_provider_without_its_key_is_found(stack: RunningStack, examine: Examine) -> None:
    secret_id = stack.gateway.stack.outputs["ProviderKeysSecret"]
    before = json.loads(stack.aws("secretsmanager").get_secret_value(SecretId=secret_id)["SecretString"])
    try:
        stack.gateway.stack.put_provider_keys({})
        status, findings = examine()
    finally:
        stack.gateway.stack.put_provider_keys(before)
    assert (status, findings["provider keys"]["verdict"]) == (1, "fail")
    assert "naru providers set holysheep" in findings["provider keys"]["says"]


def test_the_description_is_served_where_the_template_says(stack: RunningStack) -> None:
    """Without a key, as a browser or a generator of clients asks."""
    answer = httpx.get(f"{stack.base_url}/openapi.json")
    assert answer.status_code == 200
    document: dict[str, Any] = answer.json()
    assert document["openapi"].startswith("3.1")
    assert "/chat/completions" in document["paths"]
