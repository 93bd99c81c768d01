"""How many calls of batches a provider takes at once: searched for by latency, divided fairly. Pure.

Some providers refuse what is too much, others take it and become slow. So the limit follows both: it grows while
latency stays what it was with few calls, and shrinks with a refusal or when latency has risen, as TCP Vegas and
Netflix's concurrency-limits do. It begins small and grows fast until the first sign of trouble.

It grows only while all shares together use it up, so it stays near what is wanted; what nobody has used half of for a
minute comes down to twice what is used. A cut begins at what is in use, not at what would have been allowed.

Latency is looked at in rounds. A round begins with a change of the limit and counts only calls that began in it, so
that it says what *this* limit does. Refusals are counted by limit too: :mod:`naru.health_refusals` says what they mean.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Final

from naru import health_refusals as refusals
from naru.health_state import HealthPolicy, Holder, State, cut, with_limit

FIRST_LIMIT: Final = 8
_STEEP = 16
"""Below it the limit doubles, above it grows by a fifth, until the first sign of trouble: so far it may go too far."""
_GROW_BELOW = 1.12
_GROW_BELOW_LONG = 1.2
"""Where a round takes a minute, nobody can wait for many answers."""
_EASE_ABOVE = 1.15
_CUT_ABOVE = 1.28
_STEEPNESS = 0.5
"""A queue wants the limit divided by how much slower it has become, what slows down more steeply wants less."""
_LOWEST = 0.5
_PATIENCE_MS = 15_000
"""A limit at which it was too much is not tried again sooner."""
_FORGET_MS = 60_000
_FEW, _ENOUGH = 8, 24
_SMALL = 4
"""Below it latency is not looked at."""
_LONG_MS = 5_000
"""Answers that take longer are outnumbered by refusals, which are asked again every second."""
_DOUBT = 3
_NO_HELP = 0.95
_NEARLY = 0.9
_FOR_PEOPLE = 0.25
_FLAT, _LOADED, _MISTAKEN = 0.3, 0.02, 0.6
"""How fast the latency without load is learnt: what is much higher may be load."""
_SEARCHING, _PAUSED = 1, 2
"""``slow_start``: the limit grows fast; it did until a refusal, and will again if that was not its fault."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What a holder saw since it last asked for its share.

    ``answered`` and the latencies are of calls that began after the limit last changed, where that is known.
    ``began`` are calls, ``overloads`` those that were refused (429 and its like), ``most_in_flight`` the most at once.
    """

    began: int = 0
    answered: int = 0
    overloads: int = 0
    failures: int = 0
    mean_latency_s: float = 0.0
    min_latency_s: float = 0.0
    most_in_flight: int = 0


@dataclass(frozen=True, slots=True)
class Share:
    """How many calls may be in flight now, and after how many seconds to ask again, sooner after an overload.

    With no slots the time is that of the provider, and may be long.
    """

    slots: int
    retry_after_s: float


@dataclass(slots=True)
class Observations:
    """Gathers a sample from calls as they begin and end."""

    in_flight: int = 0
    _began: int = 0
    _most: int = 0
    _overloads: int = 0
    _failures: int = 0
    _answers: list[tuple[int, int]] = field(default_factory=list)

    def began(self) -> None:
        self.in_flight += 1
        self._began += 1
        self._most = max(self._most, self.in_flight)

    def answered(self, *, began_ms: int, latency_ms: int) -> None:
        """Its answer began; it is still in flight."""
        self._answers.append((began_ms, latency_ms))

    def failed(self, *, overload: bool) -> None:
        if overload:
            self._overloads += 1
        else:
            self._failures += 1

    @property
    def has_overloads(self) -> bool:
        """Since the last sample."""
        return self._overloads > 0

    def ended(self) -> None:
        self.in_flight -= 1

    def sample(self, since_ms: int) -> Sample:
        """What was seen since the last sample; of the answers only those to calls that began after ``since_ms``."""
        latencies = [latency_ms / 1000 for began_ms, latency_ms in self._answers if began_ms >= since_ms]
        sample = Sample(
            began=self._began,
            answered=len(latencies),
            overloads=self._overloads,
            failures=self._failures,
            mean_latency_s=sum(latencies) / len(latencies) if latencies else 0.0,
            min_latency_s=min(latencies, default=0.0),
            most_in_flight=self._most,
        )
        self._answers.clear()
        self._began = self._overloads = self._failures = 0
        self._most = self.in_flight
        return sample


# ── The limit ──────────────────────────────────────────────────────────────────────────────────────────────


def adjusted(state: State, holder: str, sample: Sample, *, now_ms: int, policy: HealthPolicy) -> State:
    """With the limit that follows from what a holder saw."""
    state = replace(state, used={**state.used, holder: sample.most_in_flight})
    state = _believed(state, now_ms)
    before = state
    state = _counted(state, sample, now_ms=now_ms, policy=policy)
    if sample.overloads or state.cut_pm or state.tries >= refusals.LEAST:
        state = _heard(state, sample, now_ms=now_ms, policy=policy)
        if state.limit != before.limit:
            return _new_round(state, now_ms)
    state = replace(
        state,
        round_answers=state.round_answers + sample.answered,
        round_sum_ms=state.round_sum_ms + round(sample.answered * sample.mean_latency_s * 1000),
        round_used=int(bool(state.round_used) or _is_used_up(state, now_ms=now_ms, policy=policy)),
    )
    if state.round_answers < _round_size(state) or now_ms < state.round_ms + state.base_ms:
        return state
    return _end_round(state, now_ms=now_ms)


def _is_used_up(state: State, *, now_ms: int, policy: HealthPolicy) -> bool:
    """Whether all shares together use what batches may have: a holder that uses all of its own says nothing, where it
    wanted no more.
    """
    holders = state.live_holders(now_ms)
    used = sum(min(holder.slots, state.used.get(name, 0)) for name, holder in holders.items())
    return 0 < used >= _NEARLY * for_batches(state, now_ms=now_ms, policy=policy)


def _believed(state: State, now_ms: int) -> State:
    """A limit of which nobody has used half for a minute is not known to be right any more."""
    in_use = state.in_use(now_ms)
    if 2 * in_use >= state.limit or state.limit <= FIRST_LIMIT:
        return replace(state, reached_ms=now_ms)
    if now_ms - state.reached_ms < _FORGET_MS:
        return state
    limit = min(state.limit, max(FIRST_LIMIT, 2 * in_use))
    return replace(_new_round(with_limit(state, limit, now_ms=now_ms), now_ms), reached_ms=now_ms)


def _round_size(state: State) -> int:
    """A small limit is slow to bring answers: two for each slot are enough to grow by one, not to conclude that it is
    too much.
    """
    return max(min(_FEW, 2 * state.limit), min(state.limit, _ENOUGH))


def _end_round(state: State, *, now_ms: int) -> State:
    if state.limit < _SMALL:
        # So few answers say nothing about latency, and so few calls are hardly what makes them slow.
        if state.round_used and (not state.cut_pm or not state.tries_refused):
            state = _tried_anew(replace(_raised(state, now_ms=now_ms), cut_pm=0), now_ms)
        return _new_round(state, now_ms)
    mean_ms = max(1, state.round_sum_ms // state.round_answers)
    base_ms = state.base_ms or mean_ms
    ratio = mean_ms / base_ms
    grow_below = _GROW_BELOW if base_ms < _LONG_MS else _GROW_BELOW_LONG
    if grow_below < ratio < _CUT_ABOVE and state.round_answers < _DOUBT * _round_size(state):
        return replace(state, slow_start=0)  # chance or load: more answers will tell
    if ratio > grow_below and 0 < _NO_HELP * state.cut_mean_ms < mean_ms:
        # Fewer calls did not help, so it was not their number: a slow hour, or luck when the base was learnt.
        base_ms += round((mean_ms - base_ms) * _MISTAKEN)
        state = replace(state, base_ms=base_ms, cut_mean_ms=0)
        return _new_round(with_limit(state, max(state.limit, state.ceiling), now_ms=now_ms), now_ms)
    base_ms += round((mean_ms - base_ms) * (_FLAT if ratio <= grow_below else _LOADED))
    state = replace(state, base_ms=max(1, base_ms), cut_mean_ms=0)
    if ratio >= max(_EASE_ABOVE, grow_below):
        factor = max(_LOWEST, ratio**-_STEEPNESS) if ratio >= _CUT_ABOVE else (state.limit - 1) / state.limit
        felt = _felt(state, now_ms)
        lower = cut(state, felt, now_ms=now_ms, factor=max(factor, min(1.0, _SMALL / felt)) + 1e-9)
        return replace(_tried_anew(_new_round(lower, now_ms), now_ms), cut_mean_ms=mean_ms, cut_pm=0)
    if ratio <= grow_below and state.round_used and _may_rise(state):
        state = _tried_anew(_raised(state, now_ms=now_ms), now_ms)
    return _new_round(state, now_ms)


def _may_rise(state: State) -> bool:
    """Not before it is clear why the last one was too much, nor before what is refused at this one can be told."""
    if state.cut_pm:
        return False
    return not state.usual_pm or state.slow_start == _SEARCHING or bool(state.tries_told)


def _raised(state: State, *, now_ms: int) -> State:
    if state.slow_start == _SEARCHING:
        return with_limit(state, state.limit * 2 if state.limit < _STEEP else state.limit * 6 // 5, now_ms=now_ms)
    if state.ceiling and state.limit + 1 >= state.ceiling and now_ms - state.cut_ms < _PATIENCE_MS:
        return state
    if state.ceiling > state.limit:
        step = (state.ceiling - state.limit) // 2
    else:
        # The farther from where it was last too much, the faster: that was for another reason.
        step = min(max(state.limit // 8, state.limit - state.ceiling), state.limit // 4)
    step = max(1, step)
    return with_limit(state, state.limit + step, now_ms=now_ms)


def _counted(state: State, sample: Sample, *, now_ms: int, policy: HealthPolicy) -> State:
    """With the calls of a sample counted for the limit that they were made with."""
    if state.cut_pm and state.tried_ms < state.cut_ms + policy.cut_every_ms <= now_ms:
        state = _tried_anew(state, now_ms)
    tries = max(sample.began, sample.overloads)
    return replace(state, tries=state.tries + tries, tries_refused=state.tries_refused + sample.overloads)


def _heard(state: State, sample: Sample, *, now_ms: int, policy: HealthPolicy) -> State:
    """After calls that were refused, or enough that were not."""
    refused, usual_pm = state.tries_refused, state.usual_pm
    tries, taken = state.tries, 0
    if state.base_ms >= _LONG_MS:
        # Refusals are quick: what is in flight was taken.
        taken = max(0, state.in_use(now_ms) - state.live_calls(now_ms) - sample.overloads)
        tries = max(tries, taken + refused)
    if state.cut_pm and now_ms - state.cut_ms < policy.cut_every_ms:
        return _lowered(state, sample.overloads, now_ms=now_ms, policy=policy)
    match refusals.verdict(state.limit, tries=tries, refused=refused, usual_pm=usual_pm, cut_pm=state.cut_pm):
        case "full":
            return _cut(state, sample.overloads, now_ms=now_ms, policy=policy)
        case "cut":
            # In the first moment each refusal is one slot too many; after some time it is a share of them.
            too_many = sample.overloads
            if taken:
                # It refused with so many in flight, however often the same call was tried again.
                too_many = min(too_many, max(1, _felt(state, now_ms) - taken - _people(state, taken, now_ms)))
            elif state.cut_pm or usual_pm:
                too_many = refusals.excess(state.limit, tries=tries, refused=refused, usual_pm=usual_pm)
            return _cut(state, too_many, now_ms=now_ms, policy=policy)
        case "not_load":
            slow_start = int(state.slow_start == _PAUSED)
            limit = max(state.limit, state.ceiling)
            usual_pm = refusals.share_pm(refused, tries)
            state = replace(state, usual_pm=usual_pm, cut_pm=0, ceiling=0, slow_start=slow_start)
            return _tried_anew(with_limit(state, limit, now_ms=now_ms), now_ms)
        case "fine":
            usual_pm = refusals.learnt_pm(usual_pm, tries=tries, refused=refused)
            slow_start = int(state.slow_start == _SEARCHING)
            return replace(_tried_anew(state, now_ms), usual_pm=usual_pm, cut_pm=0, slow_start=slow_start, tries_told=1)
        case _:
            return state


def _cut(state: State, too_many: int, *, now_ms: int, policy: HealthPolicy) -> State:
    """The experiment begins, or goes on."""
    limit = _felt(state, now_ms)
    state = replace(
        state,
        limit=limit,
        ceiling=limit,
        cut_ms=now_ms,
        cut_mean_ms=0,
        slow_start=_PAUSED if state.slow_start else 0,
    )
    return _lowered(state, too_many, now_ms=now_ms, policy=policy)


def _felt(state: State, now_ms: int) -> int:
    """So much of the limit as the provider has seen: what is in use, and the part that is left to people beside it."""
    used = state.in_use(now_ms) - state.live_calls(now_ms)
    return max(1, min(state.limit, used + _people(state, used, now_ms)))


def _people(state: State, used: int, now_ms: int) -> int:
    """What is left to people of a limit of which batches use so much."""
    return max(state.live_calls(now_ms), math.ceil(_FOR_PEOPLE * used))


def _lowered(state: State, too_many: int, *, now_ms: int, policy: HealthPolicy) -> State:
    """By as many slots, but in one second never by more than half of them.

    Who refuses a single call is left alone for a moment: one slot would be enough to knock all the time.
    """
    if state.limit == 1 and too_many:
        resting_until_ms = now_ms + round(policy.refused_rest_s * 1000)
        state = replace(state, resting_until_ms=max(state.resting_until_ms, resting_until_ms))
    pm = refusals.share_pm(state.tries_refused, max(state.tries, state.ceiling, refusals.LEAST))
    lowest = max(1, round(state.ceiling * _LOWEST))
    limit = min(state.limit, max(lowest, state.limit - too_many))
    return with_limit(replace(state, cut_pm=max(1, pm)), limit, now_ms=now_ms)


def _tried_anew(state: State, now_ms: int) -> State:
    return replace(state, tried_ms=now_ms, tries=0, tries_refused=0, tries_told=0)


def _new_round(state: State, now_ms: int) -> State:
    return replace(state, round_ms=now_ms, round_answers=0, round_sum_ms=0, round_used=0)


# ── Shares ─────────────────────────────────────────────────────────────────────────────────────────────────


def held(state: State, holder: str, *, wanted: int, sample: Sample, now_ms: int, policy: HealthPolicy) -> State:
    """After a holder has told what it saw and asked for ``wanted`` slots: with its share."""
    before = state.live_holders(now_ms)
    if not before and (not state.limit or now_ms - state.round_ms > _FORGET_MS):
        state = _begin(state, now_ms)
    elif holder in before:
        state = adjusted(state, holder, sample, now_ms=now_ms, policy=policy)
    others = {name: other for name, other in state.live_holders(now_ms).items() if name != holder}
    total = for_batches(state, now_ms=now_ms, policy=policy)
    fair = divided(total, {holder: wanted, **{name: other.wanted for name, other in others.items()}})[holder]
    # Others give back what is too much when they ask the next time.
    free = total - sum(other.slots for other in others.values())
    slots = 0 if state.resting_for_ms(now_ms) else max(0, min(fair, free))
    until_ms = now_ms + round(policy.holder_lease_s * 1000)
    return with_shares(state, others | {holder: Holder(slots=slots, wanted=wanted, until_ms=until_ms)})


def _begin(state: State, now_ms: int) -> State:
    """The search begins, where it once was if that is known."""
    limit = max(FIRST_LIMIT, state.limit // 2)
    if state.is_limited(now_ms):
        limit = state.limit
    state = replace(state, slow_start=int(not state.is_limited(now_ms)), base_ms=0, ceiling=0, usual_pm=0, cut_pm=0)
    state = replace(state, used={}, reached_ms=now_ms)
    return _tried_anew(_new_round(with_limit(state, limit, now_ms=now_ms), now_ms), now_ms)


def released(state: State, holder: str, *, now_ms: int) -> State | None:
    """Without the share of a holder that has finished; None if it has none."""
    if holder not in state.holders:
        return None
    return with_shares(state, {n: h for n, h in state.live_holders(now_ms).items() if n != holder})


def with_shares(state: State, holders: dict[str, Holder]) -> State:
    taken = sum(holder.slots for holder in holders.values())
    used = {name: used for name, used in state.used.items() if name in holders}
    return replace(state, holders=holders, used=used, room=max(0, state.limit - taken))


def for_batches(state: State, *, now_ms: int, policy: HealthPolicy) -> int:
    """How many slots all batches may have together: interactive calls go first. Where those take no slots one is left
    for batches, since nobody else could find out that a limit of one has become too low.
    """
    in_use = state.live_calls(now_ms)
    reserved = state.reserved(now_ms, policy)
    least = 0 if state.is_limited(now_ms) else 1
    return max(least, state.limit - max(reserved, in_use + (reserved > 0) if in_use else 0))


def divided(total: int, wanted: dict[str, int]) -> dict[str, int]:
    """Shares that differ by one at most, but nobody gets more than was wanted."""
    shares = dict.fromkeys(wanted, 0)
    left = min(total, sum(wanted.values()))
    hungry = sorted(name for name in wanted if wanted[name] > 0)
    while left > 0:
        each = max(1, left // len(hungry))
        for name in hungry:
            more = min(each, wanted[name] - shares[name], left)
            shares[name] += more
            left -= more
        hungry = [name for name in hungry if shares[name] < wanted[name]]
    return shares


def ask_again_s(state: State, now_ms: int) -> float:
    """How soon a holder should ask again: often while the limit grows fast."""
    if resting_ms := state.resting_for_ms(now_ms):
        return resting_ms / 1000
    is_new = not state.base_ms and state.limit >= _SMALL
    return 0.25 if state.slow_start == _SEARCHING or is_new else 0.5
