"""Percentiles that add up: a DDSketch of milliseconds.

A t-digest merged in another order is another digest. Here a value is counted in a bin that follows from the value alone
(Masson, Rim, Lee: "DDSketch", VLDB 2019), so a merge is an addition: whoever folds the rows, in whatever order and
pieces, finds the same percentiles, each within 1 % of a true one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache

from ddsketch.ddsketch import BaseDDSketch
from ddsketch.mapping import LogarithmicMapping
from ddsketch.store import DenseStore

RELATIVE_ACCURACY = 0.01
_MAPPING = LogarithmicMapping(RELATIVE_ACCURACY)


@lru_cache(maxsize=65_536)
def _bin(milliseconds: int) -> int:
    # The logarithm has no zero, and half a millisecond is none that anybody feels.
    return _MAPPING.key(max(1, milliseconds))


@dataclass(slots=True)
class Durations:
    """How long many things took, in milliseconds."""

    bins: Counter[int] = field(default_factory=Counter)

    def add(self, milliseconds: int) -> None:
        self.bins[_bin(milliseconds)] += 1

    def merge(self, other: Durations) -> None:
        """Counts what the other one has counted, too."""
        for key, count in other.bins.items():
            self.bins[key] += count

    @property
    def count(self) -> int:
        return self.bins.total()

    def percentile(self, percent: float) -> int | None:
        """Milliseconds; None where nothing was measured."""
        found = self.percentiles((percent,))
        return found[percent] if found else None

    def percentiles(self, percents: tuple[float, ...]) -> Mapping[float, int] | None:
        """Milliseconds by percent; None where nothing was measured."""
        if not self.bins:
            return None
        store = DenseStore()
        for key, count in sorted(self.bins.items()):
            store.add(key, count)
        sketch = BaseDDSketch(_MAPPING, store, DenseStore(), 0)
        return {percent: round(sketch.get_quantile_value(percent / 100) or 0) for percent in percents}
