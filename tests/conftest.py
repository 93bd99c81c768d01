"""The whole gateway for tests: emulator, deployed template, front door with real runtime processes, simulated model."""

from __future__ import annotations

import os
import ssl
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, settings

from local import simulated_model
from local.chromium import ADVICE
from local.emulator import REGION
from local.front_door import FrontDoor
from local.gateway import Gateway, gateway, in_thread
from local.processes import stay_on_this_machine
from local.simulated_model import Config, ThreadedModel
from tests.waiting import PATIENCE_S

# Before any client is made: no test may reach a real account.
stay_on_this_machine()
os.environ["AWS_DEFAULT_REGION"] = REGION
# The same examples each time, unless somebody goes looking for new ones. How long one takes says how busy the machine is.
settings.register_profile(
    "naru",
    derandomize=not os.environ.get("NARU_LONG_TESTS"),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("naru")
# httpx gives up after five seconds, which prove nothing on a busy machine. One object is everybody's default.
for phase in ("connect", "read", "write", "pool"):
    setattr(httpx._config.DEFAULT_TIMEOUT_CONFIG, phase, PATIENCE_S)
# Every HTTP client would read the list of authorities again, which takes longer than most tests.
ssl.create_default_context = cache(ssl.create_default_context)  # type: ignore[assignment]


@dataclass(frozen=True)
class RunningStack:
    """A gateway, the provider behind it, and the AWS below it."""

    base_url: str
    api_key: str
    model: ThreadedModel
    """The provider: `stats()` is its bill, `control()` makes it fail."""
    gateway: Gateway

    @property
    def door(self) -> FrontDoor:
        """API Gateway and Lambda: `log`, `kill_handler`, `process_count`."""
        return self.gateway.door

    @property
    def ledger_table(self) -> str:
        """The table's name in the emulator."""
        return self.gateway.stack.outputs["LedgerTable"]

    @property
    def meter_table(self) -> str:
        """The table's name in the emulator."""
        return self.gateway.stack.outputs["MeterTable"]

    def aws(self, service: str) -> Any:
        """A boto3 client of the account's owner."""
        return self.gateway.stack.emulator.client(service)

    def restart(self, function: str) -> None:
        """Whatever its processes remember is over for them."""
        pool = self.door.pools[function]
        old = set(pool._handlers)
        until_s = time.monotonic() + 20
        while left := old & set(pool._handlers):
            for handler in left:
                if handler.current is None:
                    handler.kill()
            if time.monotonic() > until_s:
                raise TimeoutError(f"processes of {function} do not end")
            time.sleep(0.01)

    def forgive_providers(self) -> None:
        """What their failures have taught breakers and limits is over."""
        dynamodb = self.aws("dynamodb")
        (table,) = [name for name in dynamodb.list_tables()["TableNames"] if "HealthTable" in name]
        for item in dynamodb.scan(TableName=table)["Items"]:
            dynamodb.delete_item(TableName=table, Key={"deployment": item["deployment"]})
        self.restart("ChatFunction")

    @property
    def long_tests(self) -> bool:
        """Whether tests take the sizes that take minutes (NARU_LONG_TESTS=1)."""
        return bool(os.environ.get("NARU_LONG_TESTS"))

    def new_api_key(self, name: str) -> str:
        """A key of a test's own."""
        return self.gateway.stack.add_api_key(name)


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Bytes and long texts do not name a test: nobody can read them, and those with a time inside differ by process."""
    return argname if isinstance(val, bytes) or (isinstance(val, str) and len(val) > 80) else None


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Says why the browser tests were skipped, once; pytest's own list would have a line for each."""
    reasons = (report.longrepr for report in terminalreporter.stats.get("skipped", []))
    skipped = [reason for reason in reasons if isinstance(reason, tuple) and reason[2].endswith(ADVICE)]
    if skipped:
        terminalreporter.write_line(f"{len(skipped)} browser tests skipped: {ADVICE}.")


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    """One gateway per xdist worker, started by the first test that needs it. Logs are in its ``gateway.logs``.

    It has no schedules: the emulator keeps to them, and a suite that takes longer than five minutes would see other
    reports and alerts than one that is quick.
    """
    with running_stack(tmp_path_factory.mktemp("stack")) as running:
        scheduler = running.aws("scheduler")
        for each in scheduler.list_schedules()["Schedules"]:
            scheduler.delete_schedule(Name=each["Name"], GroupName=each["GroupName"])
        yield running


@pytest.fixture
def providers_without_a_past(stack: RunningStack) -> None:
    """Breakers are closed, and every process has the retries of a new one: for tests that count a provider's calls."""
    stack.forgive_providers()


@contextmanager
def running_stack(
    folder: Path,
    *,
    enforce_iam: bool = True,
    model_config: Config | None = None,
    parameters: Mapping[str, str] | None = None,
) -> Iterator[RunningStack]:
    """A gateway all of whose providers are one simulated model."""
    with (
        simulated_model.run_in_thread(model_config) as model,
        in_thread(
            lambda: gateway(
                folder=folder,
                provider_base_urls={"holysheep": model.openai_url, "clovastudio": model.clova_url},
                provider_keys={"holysheep": "sim-holysheep", "clovastudio": "sim-clovastudio"},
                enforce_iam=enforce_iam,
                # One key does in seconds what a team does in an hour.
                parameters={"CallsPerMinute": "100000", **(parameters or {})},
            )
        ) as running,
    ):
        yield RunningStack(running.base_url, running.api_key, model, running)
