"""Token usage as providers report it, in every spelling, read into one :class:`~naru.pricing.Usage`.

Providers disagree about names and about what includes what. OpenAI counts cached tokens within the prompt's and thoughts
within the completion's. Anthropic's ``input_tokens`` excludes what was read from a cache or written to it. Google's
``candidatesTokenCount`` excludes thoughts. Proxies mix these names, and some of them fix the counts and some don't.

So a report is not trusted to follow one convention. Every way to read it is tried: each cached, written or thought part
either inside the figure it belongs to or beside it. A reading must be consistent with all the figures of the report. If
one result remains, it is exact. If a field's convention settles the question, the result is exact too. Otherwise the
usage is marked as an estimate, and :attr:`Reading.doubt` says why.

Sources: OpenAI's, Anthropic's, Google's, AWS Bedrock's, DeepSeek's, Moonshot's, Alibaba's, xAI's, Groq's, OpenRouter's
and CLOVA Studio's API references; issues of LiteLLM, new-api, CLIProxyAPI and any-llm about usage that did not add up.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, NamedTuple

from naru.pricing import Usage
from naru.usage_names import CONTAINERS, SPELLINGS, Figure, Place, plain

_MOST_TOKENS = 10**9
_LOGGED_FIGURES = 40
_MOST_NAMES = 200
_MOST_VALUES = 2
"""Of one figure: more contradict each other, and need not all be tried."""
_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")
_DIGITS: Final = re.compile(r"[0-9]{1,9}")


_INPUT_TOKENS: Final = frozenset({"inputtokens", "inputtokencount"})
# Beside Anthropic's `input_tokens`, inside nobody's; next to `prompt_tokens` a proxy may have added them to it or not.
_ANTHROPIC: Final = frozenset(
    map(plain, (
        "cache_read_input_tokens", "cache_read_input_token_count", "cache_creation_input_tokens",
        "cache_write_input_tokens", "cache_write_input_token_count", "cache_creation.ephemeral_5m_input_tokens",
        "cache_creation.ephemeral_1h_input_tokens",
    ))
)  # fmt: skip
# new-api counts Claude's cached tokens inside the prompt or beside it, by release; these names give it away.
_NEW_API: Final = frozenset(
    map(plain, ("claude_cache_creation_5_m_tokens", "claude_cache_creation_1_h_tokens", "cached_creation_tokens"))
)
_PLACES: Final[dict[str, str | None]] = {
    "usage": None,
    "usageMetadata": None,
    "usage_metadata": None,
    "x_groq": "usage",
    "message": "usage",
    "response": "usage",
    "result": "usage",
}
"""Where an answer has its usage, and the name below that."""
_USAGE_FIELDS: Final = frozenset({"usageMetadata", "usage_metadata", "x_groq"})
_STANDARD_TIERS: Final = frozenset({"", "auto", "default", "standard", "standard_only", "on_demand"})
_STANDARD_SPEEDS: Final = frozenset({"", "normal", "standard"})


@dataclass(frozen=True, slots=True)
class Reading:
    """What a report of usage says."""

    usage: Usage
    """Marked as estimated if there is a doubt."""
    doubt: str | None
    """Why the report can be read in more ways than one, or in none; None for a report that is exact."""
    unsplit_write_tokens: int
    """Of the tokens written to a cache, those for which the report names no lifetime."""
    figures: Mapping[str, int]
    """The report's own names and numbers, for the log."""


class UsageReader:
    """Reads the usage of one answer: of a JSON answer at once, of a stream chunk by chunk.

    Streams report usage in the last chunk, in every chunk as running totals, as zeros first, or the prompt at the start
    and the completion at the end. So a later figure replaces an earlier one of the same name, and a zero replaces nothing.
    """

    def __init__(self) -> None:
        self._figures: dict[str, int] = {}
        self._names: dict[str, str] = {}
        self._doubts: set[str] = set()
        self._semantic = ""

    def feed(self, payload: Mapping[str, Any]) -> bool:
        """Take note of an answer, or of one chunk of it; whether it reports usage that can be believed."""
        self._note_tier(payload)
        for index, usage in _reports(payload):
            figures, names, unreadable = _flat(usage)
            if not any(
                SPELLINGS[path].figure in {"prompt", "completion", "read"} and figures[path] for path in figures
            ):
                continue  # no prompt is empty: zeros are what some send who have not counted
            if unreadable:
                self._doubts.add("unreadable")
            if index:
                self._doubts.add("choices")  # of the others nothing is known
            self._note_tier(usage)
            if isinstance(semantic := usage.get("usage_semantic"), str):
                self._semantic = semantic
            self._merge(figures)
            self._names |= names
            return True
        return False

    def read(self) -> Reading | None:
        """The usage so far; None if nothing was reported that can be believed."""
        if not self._figures:
            return None
        report = _Report(self._figures, self._semantic)
        split, doubt = _resolve(report)
        if split.total >= _MOST_TOKENS:
            return None
        doubt = doubt or min(self._doubts, default=None)
        if any(self._figures[path] for path in report.of("extra")):
            doubt = doubt or "extra"
        prompt, completion = split.prompt, split.words + split.thoughts
        if not prompt:
            doubt = doubt or "prompt"
        written_5m, written_1h = report.lifetimes()
        written_1h = min(written_1h, split.written)
        usage = Usage(
            prompt_tokens=prompt,
            completion_tokens=completion,
            cached_tokens=split.read,
            cache_write_tokens=split.written,
            cache_write_1h_tokens=written_1h,
            reasoning_tokens=split.thoughts,
            estimated=doubt is not None,
        )
        unsplit = max(0, split.written - written_5m - written_1h)
        return Reading(usage, doubt, unsplit, self._logged())

    def _merge(self, figures: dict[str, int]) -> None:
        kinds = {path: SPELLINGS[path].figure for path in figures}
        whole = {kind for path, kind in kinds.items() if kind in {"prompt", "completion"} and figures[path]}
        old = self._figures
        if old and whole and "total" not in {kind for path, kind in kinds.items() if figures[path]}:
            # A total of an earlier chunk says nothing about these figures.
            old = {path: value for path, value in old.items() if SPELLINGS[path].figure != "total"}
        for path, value in figures.items():
            before = old.get(path, 0)
            if not value and before:
                if len(whole) == 2 and kinds[path] not in {"prompt", "completion", "total"}:
                    self._doubts.add("contradictory")  # what was cached before is not any more
                continue
            if value < before and kinds[path] == "completion":
                self._doubts.add("shrunk")  # not running totals, then, but perhaps what each chunk adds
            old[path] = value
        self._figures = old

    def _note_tier(self, place: Mapping[str, Any]) -> None:
        """A tier or a speed that has prices of its own."""
        for name, standard in (("service_tier", _STANDARD_TIERS), ("speed", _STANDARD_SPEEDS)):
            if isinstance(value := place.get(name), str) and value.strip().lower() not in standard:
                self._doubts.add("tier")

    def _logged(self) -> dict[str, int]:
        named = ((self._names.get(path, path), value) for path, value in self._figures.items() if value)
        return dict(itertools.islice(named, _LOGGED_FIGURES))


def read_usage(payload: Mapping[str, Any]) -> Reading | None:
    """The usage of a JSON answer."""
    reader = UsageReader()
    reader.feed(payload)
    return reader.read()


def usage_object(usage: Usage) -> dict[str, Any]:
    """Usage as OpenAI shows it."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
        "prompt_tokens_details": {
            "cached_tokens": usage.cached_tokens,
            **({"cache_write_tokens": usage.cache_write_tokens} if usage.cache_write_tokens else {}),
        },
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
    }


def without_reports(payload: dict[str, Any]) -> dict[str, Any]:
    """An answer or a chunk without usage in other places than ``usage``, where the gateway writes what it charges for;
    ``payload`` itself if it has none.
    """
    choices = payload.get("choices")
    in_choices = isinstance(choices, list) and any("usage" in each for each in choices if isinstance(each, dict))
    if not in_choices and _USAGE_FIELDS.isdisjoint(payload):
        return payload
    plain = {name: value for name, value in payload.items() if name not in _USAGE_FIELDS}
    if in_choices:
        plain["choices"] = [
            {name: value for name, value in choice.items() if name != "usage"} if isinstance(choice, dict) else choice
            for choice in payload["choices"]
        ]
    return plain


# ── What a report holds ─────────────────────────────────────────────────────────────────────────────────────


def _reports(payload: Mapping[str, Any]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """The usage objects of an answer, the likeliest first, each with the index of the choice that it stands in."""
    # Of most chunks there is nothing to see here, so this looks for what is there.
    for name, below in _PLACES.items():
        if isinstance(place := payload.get(name), dict):
            if below is not None:
                place = place.get(below)
            if isinstance(place, dict):
                yield 0, place
    choices = payload.get("choices")
    for choice in choices if isinstance(choices, list) else ():
        if isinstance(choice, dict) and isinstance(usage := choice.get("usage"), dict):
            index = choice.get("index")
            yield index if isinstance(index, int) else 0, usage


def _flat(usage: Mapping[str, Any], above: str = "", shown: str = "") -> tuple[dict[str, int], dict[str, str], bool]:
    """The known figures by their plain paths, the names they came with, and whether one could not be read."""
    figures: dict[str, int] = {}
    names: dict[str, str] = {}
    unreadable = False
    if len(usage) > _MOST_NAMES:
        usage, unreadable = dict(itertools.islice(usage.items(), _MOST_NAMES)), True
    for name, value in usage.items():
        if value is None or not isinstance(name, str) or not _NAME.fullmatch(name):
            continue
        path = above + plain(name)
        if isinstance(value, dict):
            if path in CONTAINERS:
                below, named, bad = _flat(value, path + ".", shown + name + ".")
                figures |= below
                names |= named
                unreadable = unreadable or bad
        elif path in SPELLINGS:
            count = _count(value)
            if count is not None:
                figures[path] = max(count, figures.get(path, 0))
                names[path] = shown + name
            elif SPELLINGS[path].figure != "total":
                unreadable = True
    return figures, names, unreadable


def _count(value: Any) -> int | None:
    """A number of tokens; JSON has one kind of number, and some write numbers as strings."""
    if isinstance(value, str) and _DIGITS.fullmatch(value):
        value = int(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if type(value) is int and 0 <= value < _MOST_TOKENS else None


class _Report:
    """The figures of a report by what they mean."""

    def __init__(self, figures: Mapping[str, int], semantic: str) -> None:
        self._figures = figures
        self._semantic = semantic
        self.prompts = self._values("prompt")
        self.completions = self._values("completion")
        self.total = max(self._values("total"), default=0)
        self.misses = self._values("miss")
        self.reads = self._parts("read")
        self.writes = self._parts("written")
        self.thoughts = self._parts("thoughts")
        self.tool_prompts = self._parts("tool_prompt")
        if (split := sum(self.lifetimes())) > max(self.writes, default=0):
            # Some name the lifetimes and no sum, or one that leaves a lifetime out.
            places = {self._place("written", path) for path in (*self.of("written_5m"), *self.of("written_1h"))}
            self.writes = {split: places.pop() if len(places) == 1 else "unsaid"}

    def of(self, figure: Figure) -> list[str]:
        return [path for path in self._figures if SPELLINGS[path].figure == figure]

    def lifetimes(self) -> tuple[int, int]:
        """Tokens written for five minutes and for an hour."""
        return max(self._values("written_5m"), default=0), max(self._values("written_1h"), default=0)

    def _values(self, figure: Figure) -> set[int]:
        values = {self._figures[path] for path in self.of(figure) if self._figures[path]}
        return set(sorted(values, reverse=True)[: 2 * _MOST_VALUES])

    def _parts(self, figure: Figure) -> dict[int, Place]:
        """The values that a part is given, each with where its names say that it is."""
        places: dict[int, set[Place]] = {}
        for path in self.of(figure):
            if value := self._figures[path]:
                places.setdefault(value, set()).add(self._place(figure, path))
        # A name that leaves it open is outvoted by one that does not.
        said = {value: places[value] - {"unsaid"} for value in sorted(places, reverse=True)[:_MOST_VALUES]}
        return {value: next(iter(found)) if len(found) == 1 else "unsaid" for value, found in said.items()}

    def _place(self, figure: Figure, path: str) -> Place:
        if figure in {"read", "written"}:
            if self._semantic in {"anthropic", "openai"}:
                return "beside" if self._semantic == "anthropic" else "inside"
            if any(value and name.rpartition(".")[2] in _NEW_API for name, value in self._figures.items()):
                return "unsaid"
            if figure == "read" and self.misses:
                return "unsaid"  # what was not read is named too, and settles it
            prompts = {name for name in self.of("prompt") if self._figures[name]}
            if path in _ANTHROPIC and prompts <= _INPUT_TOKENS:
                return "beside"
        return SPELLINGS[path].place


# ── What it can mean ────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class _Split:
    """Tokens that add up to a bill: each is counted once."""

    fresh: int
    read: int
    written: int
    words: int
    thoughts: int
    surprises: int = field(default=0, compare=False)
    """How many parts are not where the names say."""

    @property
    def prompt(self) -> int:
        return self.fresh + self.read + self.written

    @property
    def total(self) -> int:
        return self.prompt + self.words + self.thoughts

    @property
    def partial_totals(self) -> set[int]:
        """Totals that leave out some of the parts."""
        parts = (self.read, self.written, self.thoughts)
        some = itertools.chain.from_iterable(itertools.combinations(parts, count) for count in range(4))
        return {self.fresh + self.words + sum(each) for each in some}

    @property
    def billed(self) -> tuple[int, int, int, int]:
        """What the cost depends on."""
        return self.fresh, self.read, self.written, self.words + self.thoughts

    @property
    def dearness(self) -> tuple[int, int, int]:
        """Output costs more than input, and input more than what is cached."""
        return self.words + self.thoughts, self.fresh, self.written


def _resolve(report: _Report) -> tuple[_Split, str | None]:
    """The likeliest reading, and what speaks against it."""
    splits = list(_splits(report))
    doubt = None
    if not splits:
        splits, doubt = list(_splits(report, strictly=False)), "contradictory"
    as_named = [split for split in splits if not split.surprises]
    exact = [split for split in splits if split.total == report.total]
    if exact:
        # A total may be true, or leave out what is beside the figures that it adds up.
        pool = exact + [split for split in as_named if report.total in split.partial_totals]
    else:
        pool = as_named or splits
        if report.total and not any(report.total in split.partial_totals for split in splits):
            doubt = doubt or "total"
        elif not as_named:
            doubt = doubt or "ambiguous"
    if len({split.billed for split in pool}) > 1:
        doubt = doubt or "ambiguous"
    if not report.completions and not exact:
        doubt = doubt or "completion"
    best = max(exact or pool, key=lambda split: split.dearness)
    rest = report.total - best.total
    if doubt != "total" or rest <= 0:
        return best, doubt
    # Only the total shows it. Output is dearer than input, and thoughts are what providers forget to name.
    name = "thoughts" if report.prompts else "fresh"
    return replace(best, **{name: getattr(best, name) + rest}), doubt


def _splits(report: _Report, *, strictly: bool = True) -> Iterator[_Split]:
    """All ways to read a report: each part inside its whole or beside it, and every figure explained by the result."""
    parts = (report.reads, report.writes, report.tool_prompts, report.thoughts)
    options = [_options(part) for part in parts]
    wholes = list(itertools.product(report.prompts or {0}, report.completions or {0}))
    for (read, written, tool, thoughts), (prompt, completion) in itertools.product(itertools.product(*options), wholes):
        base = prompt - sum(part.inside for part in (read, written))
        words = completion - thoughts.inside
        if base - tool.inside < 0 or words < 0:
            continue
        surprises = sum(part.surprise for part in (read, written, tool, thoughts))
        split = _Split(base + tool.beside, read.tokens, written.tokens, words, thoughts.tokens, surprises)
        if not strictly or _explains(split, base, report):
            yield split


class _Option(NamedTuple):
    """One place that a part may be in."""

    tokens: int
    inside: int
    surprise: bool

    @property
    def beside(self) -> int:
        return self.tokens - self.inside


def _options(part: dict[int, Place]) -> list[_Option]:
    if not part:
        return [_Option(0, 0, surprise=False)]
    return [
        _Option(tokens, tokens if where == "inside" else 0, surprise=place not in (where, "unsaid"))
        for tokens, place in part.items()
        for where in ("inside", "beside")
    ]


def _explains(split: _Split, base: int, report: _Report) -> bool:
    """Whether every figure that was reported is a sum of what the reading holds."""
    prompts = {
        start + some
        for start in (base, split.fresh)
        for some in (0, split.read, split.written, split.read + split.written)
    }
    return (
        report.prompts <= prompts
        and report.completions <= {split.words, split.words + split.thoughts}
        and report.misses <= {split.fresh, split.fresh + split.written}
        and set(report.reads) <= {split.read}
        and set(report.writes) <= {split.written}
        and set(report.thoughts) <= {split.thoughts}
    )
