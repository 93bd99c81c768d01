"""``make fuzz``: for minutes what the tests do for seconds.

The event decoder against a second one that is written by the letter of the specification, and the API against its own
description (schemathesis, which lives in an environment of its own), on a gateway that is started for it. Exit status 1
where something is found.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from hypothesis import settings

from tests.conftest import RunningStack, running_stack
from tests.security import test_event_streams

_CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance,ignored_auth"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs all of it and returns the exit status."""
    parser = argparse.ArgumentParser(description="Fuzzes the event decoder and the API.")
    parser.add_argument("--minutes", type=float, default=10, help="of both, which run side by side")
    parser.add_argument("--schemathesis", type=Path, required=True, help="the program")
    parser.add_argument("--report", type=Path, default=Path(".naru/fuzz"), help="a folder for what is found")
    given = parser.parse_args(arguments)
    seconds = given.minutes * 60
    with ProcessPoolExecutor(1, get_context("spawn")) as beside:
        decoding = beside.submit(_decoder, seconds)
        with tempfile.TemporaryDirectory() as folder, running_stack(Path(folder)) as stack:
            given.report.mkdir(parents=True, exist_ok=True)
            app = _api(
                given, stack, stack.api_key, seconds * 0.6, "--exclude-tag", "admin", "--exclude-tag", "dashboard"
            )
            # Last, since it revokes keys and spends budgets.
            admin = _api(given, stack, stack.gateway.admin_key, seconds * 0.4, "--include-tag", "admin")
            defects = sum(stack.door.log(name).count('"unexpected error"') for name in stack.door.pools)
        decoder = decoding.result()
    print(f"decoder: {decoder} rounds clean; API: {'clean' if app == 0 else 'FAILED'}; ", end="")
    print(f"admin API: {'clean' if admin == 0 else 'FAILED'}; defects in the functions' logs: {defects}")
    return int(bool(app or admin or defects))


def _decoder(seconds: float) -> int:
    """Rounds of a hundred examples until the time is over; raises what is found."""
    rounds, until_s = 0, time.monotonic() + seconds
    for test in test_event_streams.FUZZED:
        settings(max_examples=100, deadline=None, database=None)(test)
    while time.monotonic() < until_s:
        for test in test_event_streams.FUZZED:
            test()
        rounds += 1
    return rounds


def _api(given: argparse.Namespace, stack: RunningStack, key: str, seconds: float, *filters: str) -> int:
    command = [
        str(given.schemathesis.absolute()),
        "run",
        f"{stack.base_url}/openapi.json",
        "--url",
        stack.base_url,
        "--header",
        f"Authorization: Bearer {key}",
        "--max-time",
        str(max(1, round(seconds))),
        "--checks",
        _CHECKS,
        "--workers",
        "1",  # several threads that compile at once make Python 3.11 lose count of its recursion (SystemError)
        "--request-timeout",
        "60",
        "--continue-on-failure",
        "--suppress-health-check",
        "all",
        "--warnings",
        "off",
        *filters,
    ]
    return subprocess.run(command, check=False, cwd=given.report).returncode


if __name__ == "__main__":
    sys.exit(main())
