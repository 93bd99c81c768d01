"""``python -m benchmarks [name …]``: the measurements behind the README's figures, all of them without a name.

Each prints a table and writes ``benchmarks/results/<name>.json``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from benchmarks import ledger

BENCHMARKS = {"ledger": ledger.run}
RESULTS = Path(__file__).parent / "results"


def main(names: list[str]) -> int:
    """Runs them."""
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
