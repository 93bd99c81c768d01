"""A tally: what a set of rows adds up to, in every way that reports, the usage API and the dashboard ask for.

Rows are added one by one and forgotten, and tallies are added to tallies; the order changes nothing. What grows with
traffic is bounded: only end users are many, and of those the dearest are kept (:class:`Users`). All amounts are
integers, so a tally of a day is to the pico-dollar what its hours are, and what its rows are.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, field, fields, replace
from typing import NamedTuple

from naru.ledger import Part, Row
from naru.percentiles import Durations

MAX_USERS = 20_000
"""How many end users a tally names. Beyond, the cheaper ones are added up without their names."""


class Cell(NamedTuple):
    """The finest group that is kept."""

    key_id: str
    model: str
    """The one that served."""
    deployment: str
    batch: bool
    outcome: str


@dataclass(slots=True)
class Sums:
    """Of the charges of a group. A request of several parts counts as one of its first part's group."""

    requests: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    cache_write_tokens: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int = 0
    cost_pico_usd: int = 0
    maybe_billed_pico_usd: int = 0
    """The most that attempts without an answer can have cost; not part of the cost."""
    estimated: int = 0
    """Requests whose tokens the gateway counted, because the provider did not say."""

    def merge(self, other: Sums) -> None:
        for name in _SUMS:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def values(self) -> tuple[int, ...]:
        """In the order of the fields."""
        return astuple(self)


_SUMS = tuple(each.name for each in fields(Sums))


class Failure(NamedTuple):
    """Requests without a whole answer."""

    key_id: str
    model: str
    outcome: str
    code: str


class Call(NamedTuple):
    """Attempts upstream, by why they were made and how they ended; see :class:`~naru.ledger.Attempt`."""

    key_id: str
    deployment: str
    why: str
    result: str


@dataclass(slots=True)
class Spent:
    """By an end user."""

    requests: int = 0
    tokens: int = 0
    cost_pico_usd: int = 0

    def merge(self, other: Spent) -> None:
        self.requests += other.requests
        self.tokens += other.tokens
        self.cost_pico_usd += other.cost_pico_usd


class Users:
    """What each end user of each key has spent.

    When there are twice as many as ``limit``, the cheaper half goes into :attr:`others`, so that the sum stays exact.
    A user who was there before a cut and comes again after it is counted from then on only.

    Roll-ups are many, and few ask for their users: those that are to be added may wait, as whatever ``later`` gives,
    until somebody does.
    """

    def __init__(self, *, limit: int = MAX_USERS, later: Sequence[Callable[[], Users]] = ()) -> None:
        self.limit = limit
        self._named: dict[tuple[str, str], Spent] = {}
        self._others: dict[str, Spent] = {}
        self._later = [*later]

    @property
    def named(self) -> dict[tuple[str, str], Spent]:
        """By key and end user."""
        self._settle()
        return self._named

    @property
    def others(self) -> dict[str, Spent]:
        """By key: those that were too many to be named."""
        self._settle()
        return self._others

    def add(self, key_id: str, end_user: str, spent: Spent) -> None:
        """Counts what a user of a key has spent."""
        self._settle()
        self._add(key_id, end_user, spent)

    def add_other(self, key_id: str, spent: Spent) -> None:
        """Counts what users without a name have spent."""
        self._settle()
        self._others.setdefault(key_id, Spent()).merge(spent)

    def merge(self, other: Users) -> None:
        """Counts what the other one has counted, too."""
        if other._named or other._others:
            self._settle()
            self._take(other._named, other._others)
        self._later += other._later

    def only(self, wanted: Callable[[str], bool]) -> Users:
        """Those of some keys."""
        part = Users(limit=self.limit, later=[lambda each=each: each().only(wanted) for each in self._later])  # type: ignore[misc]
        part._named = {who: replace(spent) for who, spent in self._named.items() if wanted(who[0])}
        part._others = {key_id: replace(spent) for key_id, spent in self._others.items() if wanted(key_id)}
        return part

    def trim(self) -> None:
        """Keeps the dearest."""
        self._settle()
        self._cut()

    def _settle(self) -> None:
        while self._later:
            other = self._later.pop(0)()
            self._take(other.named, other.others)

    def _take(self, named: Mapping[tuple[str, str], Spent], others: Mapping[str, Spent]) -> None:
        for (key_id, end_user), spent in named.items():
            self._add(key_id, end_user, spent)
        for key_id, spent in others.items():
            self._others.setdefault(key_id, Spent()).merge(spent)

    def _add(self, key_id: str, end_user: str, spent: Spent) -> None:
        known = self._named.get((key_id, end_user))
        if known is None:
            self._named[key_id, end_user] = known = Spent()
        known.merge(spent)
        if len(self._named) >= 2 * self.limit:
            self._cut()

    def _cut(self) -> None:
        if len(self._named) <= self.limit:
            return
        ranked = sorted(self._named.items(), key=lambda item: (-item[1].cost_pico_usd, item[0]))
        for (key_id, _), spent in ranked[self.limit :]:
            self._others.setdefault(key_id, Spent()).merge(spent)
        self._named = dict(ranked[: self.limit])


_ANSWERED = frozenset({"completed", "truncated"})


@dataclass(slots=True)
class Tally:
    """The sums of a set of rows."""

    cells: defaultdict[Cell, Sums] = field(default_factory=lambda: defaultdict(Sums))
    failures: Counter[Failure] = field(default_factory=Counter)
    calls: Counter[Call] = field(default_factory=Counter)
    first_token: defaultdict[tuple[str, str], Durations] = field(default_factory=lambda: defaultdict(Durations))
    """By key and model. As :attr:`latency`, of requests that got an answer."""
    latency: defaultdict[tuple[str, str], Durations] = field(default_factory=lambda: defaultdict(Durations))
    users: Users = field(default_factory=Users)

    # ── Adding ─────────────────────────────────────────────────────────────────────────────────────────────

    def add(self, row: Row) -> None:
        """Counts one more row."""
        charges = parts_of(row)
        batch = row.batch_id is not None
        for index, part in enumerate(charges):
            sums = self.cells[Cell(row.key_id, part.model, part.deployment, batch, row.outcome)]
            usage = part.usage
            sums.prompt_tokens += usage.prompt_tokens
            sums.cached_tokens += usage.cached_tokens
            sums.cache_write_tokens += usage.cache_write_tokens
            sums.completion_tokens += usage.completion_tokens
            sums.reasoning_tokens += usage.reasoning_tokens
            sums.cost_pico_usd += part.cost_pico_usd
            if index == 0:
                sums.requests += 1
                sums.maybe_billed_pico_usd += row.maybe_billed_pico_usd
                sums.estimated += row.usage_source == "estimated"
        if row.outcome != "completed":
            self.failures[Failure(row.key_id, row.model_served, row.outcome, row.error_code or row.outcome)] += 1
        for attempt in row.attempts:
            self.calls[Call(row.key_id, attempt.deployment, attempt.why, attempt.result)] += 1
        if row.outcome in _ANSWERED:
            self.latency[row.key_id, row.model_served].add(row.latency_ms)
            if row.first_token_ms is not None:
                self.first_token[row.key_id, row.model_served].add(row.first_token_ms)
        if row.end_user is not None:
            self.users.add(row.key_id, row.end_user, Spent(1, row.usage.total_tokens, row.cost_pico_usd))

    def add_all(self, rows: Iterable[Row]) -> Tally:
        """Counts many rows; the tally itself."""
        for row in rows:
            self.add(row)
        return self

    def merge(self, other: Tally) -> Tally:
        """Counts what the other one has counted, too; the tally itself."""
        for cell, sums in other.cells.items():
            self.cells[cell].merge(sums)
        self.failures.update(other.failures)
        self.calls.update(other.calls)
        for mine, theirs in ((self.first_token, other.first_token), (self.latency, other.latency)):
            for group, durations in theirs.items():
                mine[group].merge(durations)
        self.users.merge(other.users)
        return self

    # ── Asking ─────────────────────────────────────────────────────────────────────────────────────────────

    def sums(self, where: Callable[[Cell], bool] = lambda _: True) -> Sums:
        """Of all cells, or of those that are asked for."""
        total = Sums()
        for cell, sums in self.cells.items():
            if where(cell):
                total.merge(sums)
        return total

    def by(self, group: Callable[[Cell], str]) -> dict[str, Sums]:
        """The sums of each group, the dearest first."""
        groups: defaultdict[str, Sums] = defaultdict(Sums)
        for cell, sums in self.cells.items():
            groups[group(cell)].merge(sums)
        return dict(sorted(groups.items(), key=lambda item: (-item[1].cost_pico_usd, item[0])))

    def outcomes(self) -> Counter[str]:
        """Requests by how they ended."""
        counts: Counter[str] = Counter()
        for cell, sums in self.cells.items():
            counts[cell.outcome] += sums.requests
        return counts

    @property
    def requests(self) -> int:
        return sum(sums.requests for sums in self.cells.values())

    @property
    def cost_pico_usd(self) -> int:
        return sum(sums.cost_pico_usd for sums in self.cells.values())

    @property
    def errors(self) -> int:
        """Requests that were let in and got no whole answer, for no fault of their own."""
        outcomes = self.outcomes()
        return outcomes["failed"] + outcomes["truncated"] + outcomes["unknown"]

    def durations(self, of: dict[tuple[str, str], Durations], *, model: str | None = None) -> Durations:
        """All of :attr:`first_token` or :attr:`latency`, or those of one model."""
        whole = Durations()
        for (_, each), durations in of.items():
            if model is None or model == each:
                whole.merge(durations)
        return whole

    def only(self, wanted: Callable[[str], bool]) -> Tally:
        """The part of some keys, which is a tally of its own."""
        part = Tally()
        for cell, sums in self.cells.items():
            if wanted(cell.key_id):
                part.cells[cell].merge(sums)
        part.failures = Counter({each: count for each, count in self.failures.items() if wanted(each.key_id)})
        part.calls = Counter({each: count for each, count in self.calls.items() if wanted(each.key_id)})
        for mine, theirs in ((part.first_token, self.first_token), (part.latency, self.latency)):
            for group, durations in theirs.items():
                if wanted(group[0]):
                    mine[group].merge(durations)
        part.users = self.users.only(wanted)
        return part


def merged(tallies: Iterable[Tally]) -> Tally:
    """One tally of many, none of which is changed."""
    whole = Tally()
    for tally in tallies:
        whole.merge(tally)
    return whole


def parts_of(row: Row) -> tuple[Part, ...]:
    """Who is to be paid how much for a row. Their costs add up to the row's, whatever prices say."""
    first, *others = row.charges
    rest_pico_usd = row.cost_pico_usd - sum(part.cost_pico_usd for part in others)
    if first.cost_pico_usd != rest_pico_usd:
        first = Part(first.model, first.deployment, first.usage, first.rates, rest_pico_usd)
    return (first, *others)
