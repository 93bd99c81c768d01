"""``python -m benchmarks [name …]``: the measurements behind the README's figures, all of them without a name.

Each prints a table and writes ``benchmarks/results/<name>.json``. ``faults``, ``storm`` and ``batch`` have options: ``--help``.
One that fails does not stop the others; the end says which it was, and how long each took.
"""

from __future__ import annotations

import json
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import (
    batch,
    cold_start,
    cost,
    doors,
    faults,
    first_token,
    hour,
    ledger,
    overhead,
    profile_chat,
    report,
    scale,
    storm,
)

BENCHMARKS: dict[str, Callable[[], Any]] = {
    "overhead": overhead.run,
    "profile": profile_chat.run,
    "first_token": first_token.run,
    "cold_start": cold_start.run,
    "cost": cost.run,
    "doors": doors.run,
    "ledger": ledger.run,
    "faults": faults.run,
    "storm": partial(storm.run, seconds=40.0),
    "batch": batch.run,
    "report": report.run,
    "scale": scale.run,
    "hour": hour.run,
}
WITH_OPTIONS = {"faults": faults.main, "storm": storm.main, "batch": batch.main}
RESULTS = Path(__file__).parent / "results"


def main(names: list[str]) -> int:
    """Runs them; 1 if any failed."""
    if len(names) > 1 and names[0] in WITH_OPTIONS and names[1].startswith("-"):
        return WITH_OPTIONS[names[0]](names[1:])
    if unknown := set(names) - set(BENCHMARKS):
        print(
            f"benchmarks: there is no {', '.join(sorted(unknown))}; there are {', '.join(BENCHMARKS)}", file=sys.stderr
        )
        return 2
    return run_all({name: BENCHMARKS[name] for name in names or BENCHMARKS}, RESULTS)


def run_all(benchmarks: Mapping[str, Callable[[], Any]], results: Path) -> int:
    """Runs each to its end, whatever the others do, and prints their times and the sum; 1 if any failed."""
    results.mkdir(exist_ok=True)
    failed: list[str] = []
    took_s: dict[str, float] = {}
    for name, benchmark in benchmarks.items():
        began_s = time.monotonic()
        try:
            result = json.dumps(benchmark(), indent=2)
            (results / f"{name}.json").write_text(result + "\n", encoding="utf-8")
        except Exception:  # noqa: BLE001 - told below, and by the exit code
            traceback.print_exc()
            failed.append(name)
        took_s[name] = time.monotonic() - began_s
        print(f"{name}: {took_s[name]:.0f} s{', failed' if name in failed else ''}\n", flush=True)
    print(f"all together: {sum(took_s.values()):.0f} s")
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
