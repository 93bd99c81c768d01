"""Every fault of the fault suite: what the stock OpenAI SDK sees, and the ledger against the provider's bill.

The cases and their verdicts are those of ``python -m benchmarks faults``; see docs/faults.md. In this process they run
with the gateway's own limits, on a clock that stands still while anything works: no verdict depends on the machine.
"""

from __future__ import annotations

import asyncio

import pytest

from benchmarks.fault_cases import CASES, FAST, FULL, Case, Mode
from benchmarks.fault_trial import Result
from benchmarks.faults import SCENARIOS, in_process, on_the_stack
from local.idle_clock import idle_clock

# Through the deployed system: one of each kind. All of them are run through the use case itself.
DEPLOYED = ("429-named-once", "503", "dns", "reset-billed", "cut-reset", "refuses-prefill", "cut-all", "filter")


def of(cases: tuple[Case, ...]) -> list[object]:
    return [pytest.param((case.slug, mode), id=f"{case.slug}-{mode}") for case in cases for mode in case.modes]


def by_name(results: list[Result]) -> dict[tuple[str, Mode], Result]:
    return {(result.slug, result.mode): result for result in results}


@pytest.fixture(scope="module")
def results() -> dict[tuple[str, Mode], Result]:
    with idle_clock() as run:
        return by_name(run(in_process(FULL, at_once=1_000, apart_s=0.3)))


@pytest.fixture(scope="module")
def deployed_results() -> dict[tuple[str, Mode], Result]:
    return by_name(asyncio.run(on_the_stack(FAST, slugs=DEPLOYED)))


@pytest.mark.xdist_group("faults")
@pytest.mark.parametrize("fault", of((*SCENARIOS, *CASES)))
def test_a_fault_is_rescued_or_told_truthfully(
    results: dict[tuple[str, Mode], Result], fault: tuple[str, Mode]
) -> None:
    assert results[fault].problems == []


@pytest.mark.slow
@pytest.mark.xdist_group("faults-deployed")
@pytest.mark.parametrize("fault", of(tuple(case for case in CASES if case.slug in DEPLOYED)))
def test_a_fault_is_rescued_or_told_truthfully_by_the_deployed_system(
    deployed_results: dict[tuple[str, Mode], Result], fault: tuple[str, Mode]
) -> None:
    assert deployed_results[fault].problems == []
