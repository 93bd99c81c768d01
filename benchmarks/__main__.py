"""``python -m benchmarks [name …]``: the measurements behind the README's figures, all of them without a name.

Each prints a table and writes ``benchmarks/results/<name>.json``. ``faults``, ``storm`` and ``batch`` have options: ``--help``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import batch, cold_start, cost, faults, first_token, ledger, overhead, report, storm

BENCHMARKS: dict[str, Callable[[], Any]] = {
    "overhead": overhead.run,
    "first_token": first_token.run,
    "cold_start": cold_start.run,
    "cost": cost.run,
    "ledger": ledger.run,
    "faults": faults.run,
    "storm": storm.run,
    "batch": batch.run,
    "report": report.run,
}
WITH_OPTIONS = {"faults": faults.main, "storm": storm.main, "batch": batch.main}
RESULTS = Path(__file__).parent / "results"


def main(names: list[str]) -> int:
    """Runs them."""
    if len(names) > 1 and names[0] in WITH_OPTIONS and names[1].startswith("-"):
        return WITH_OPTIONS[names[0]](names[1:])
    if unknown := set(names) - set(BENCHMARKS):
        print(
            f"benchmarks: there is no {', '.join(sorted(unknown))}; there are {', '.join(BENCHMARKS)}", file=sys.stderr
        )
        return 2
    RESULTS.mkdir(exist_ok=True)
    for name in names or BENCHMARKS:
        (RESULTS / f"{name}.json").write_text(json.dumps(BENCHMARKS[name](), indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
