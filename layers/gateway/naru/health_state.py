"""What is known about the health of a deployment, by all environments together. Pure: no clock, no network.

One DynamoDB item per deployment; where nothing ever went wrong there is none::

    slot · failures · answers · …_before · failing_since_ms   calls of the last 10 to 20 s, counted since the first failure
    blamed {tenant: failures} · …_before                      which of these failures were whose
    opened_ms · retry_ms · probe · openings · opened_for      the breaker: open since, next call at, whose call that is
    resting_until_ms                                          the provider named a time to come back
    limit · room · limited_until_ms · calls {id: until_ms}    so many calls at once; a call in flight holds a slot
    holders {id: {slots, wanted, until_ms}} · used · round_…  batch workers and their shares: :mod:`naru.health_limit`

A provider has an item too (:func:`provider_item`), with a breaker and no limit. It opens when the provider cannot be
reached, or when the breakers of several of its deployments have opened, and then none of them is called.

Two kinds of writes meet on an item. What happens per call (count a failure, take a slot, give it back) is one
conditional write that commutes with its like. What happens now and then is worked out here as the next ``State`` and
written if ``version`` is still the one that was seen.

The breaker has one time for two things, ``retry_ms``: the end of the cool-down, and after it the end of the lease of
whoever probes. So a prober that dies is replaced by the next one with no case of its own::

    closed ──failures──▶ open until retry_ms ──take probe: retry_ms += lease──▶ answered: closed
                              ▲                                              └▶ failed: open until retry_ms
                              └──────────────────────────────────────────────┘

Any good answer to a call that began after it opened closes it, also when the lease of that probe is over.

A tenant can make requests fail: with a body that the provider chokes on, with one that takes too long. So failures are
counted by tenant, and where all but a few are one tenant's while others are answered, or do not call, the breaker opens
for that tenant alone (``opened_for``).
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

from naru import health_refusals as refusals

BreakerState = Literal["closed", "open", "half_open"]


@dataclass(frozen=True, slots=True)
class HealthPolicy:
    """When to leave a provider alone, and when to try it again."""

    view_life_s: float = 2.0
    """An environment looks at most so often at what the others know."""
    slot_ms: int = 10_000
    min_failures: int = 5
    failure_ratio: float = 0.5
    presumed_answers: int = 6
    """Answers that are taken for granted: in the first seconds of trouble only those who failed have spoken."""
    presumed_of_others: int = 2
    """The same for the tenants beside the one with the most failures."""
    settle_s: float = 1.5
    """Failures are quicker than answers, so in a burst they are seen first. For so long nothing is concluded..."""
    own_failures: int = 3
    """... but by an environment that had so many in a row, and has nobody else waiting."""
    opens_for_one: bool = True
    """Where the failures are one tenant's, the breaker opens for that one; else it stays closed."""
    report_every_s: float = 1.0
    cool_down_s: float = 5.0
    cool_down_growth_s: float = 0.25
    max_cool_down_s: float = 6.0
    probe_lease_s: float = 35.0
    min_rest_s: float = 1.5
    max_rest_s: float = 60.0
    refused_rest_s: float = 2.0
    first_limit: int = 16
    """Taken for the calls in flight where nobody knows them."""
    decrease: float = 0.7
    cut_every_ms: int = 1_000
    drain_s: float = 5.0
    """So long calls that began before a limit may take the room of those after."""
    limited_s: float = 60.0
    call_lease_s: float = 180.0
    """A call that was killed holds its slot so long; a stream that takes longer is not counted any more."""
    reserve: float = 0.2
    """Of a limit, for interactive calls while there are any."""
    interactive_life_s: float = 30.0
    presence_every_s: float = 10.0
    """An interactive call is written down if none was for so long."""
    holder_lease_s: float = 8.0
    retry_deposit: float = 0.2
    retry_budget: float = 10.0
    first_retries: float = 3.0
    latency_decay_s: float = 10.0
    kept_s: int = 86_400


_PROVIDER = "provider#"
_MOST_BLAMED = 16


def provider_item(provider: str) -> str:
    """The name of a provider's item; no deployment can have such a name."""
    return _PROVIDER + provider


def is_provider_item(name: str) -> bool:
    return name.startswith(_PROVIDER)


def of_provider(policy: HealthPolicy) -> HealthPolicy:
    """For the breaker of a provider, of which a failure says more: no request makes a connection fail, or several
    breakers open.
    """
    return replace(policy, min_failures=2, presumed_answers=1, presumed_of_others=0, opens_for_one=False)


def tenant_tag(name: str) -> str:
    """A short name for a tenant; nobody's for an empty one."""
    return hashlib.blake2s(name.encode(), digest_size=3).hexdigest() if name else ""


@dataclass(frozen=True, slots=True)
class Holder:
    """A batch worker's share. ``wanted`` is how much it could use."""

    slots: int
    wanted: int
    until_ms: int


@dataclass(frozen=True, slots=True)
class State:
    """An item as it was seen, or as it is to become. Times are Unix milliseconds, 0 for never."""

    deployment: str
    version: int = 0
    slot: int = 0
    failures: int = 0
    answers: int = 0
    failures_before: int = 0
    answers_before: int = 0
    failing_since_ms: int = 0
    blamed: Mapping[str, int] | None = field(default_factory=dict)
    """Failures of this slot by tenant; None in an item from before there was this count."""
    blamed_before: Mapping[str, int] = field(default_factory=dict)
    opened_ms: int = 0
    opened_for: str = ""
    """The one tenant that the breaker is open for; empty if it is open for all."""
    retry_ms: int = 0
    probe: str = ""
    openings: int = 0
    resting_until_ms: int = 0
    limit: int = 0
    room: int = 0
    """How much of the limit is not held by batch workers."""
    limited_until_ms: int = 0
    """Until then every call takes a slot."""
    cut_ms: int = 0
    cut_mean_ms: int = 0
    """The latency for which it was cut; 0 if that was not the reason."""
    ceiling: int = 0
    """The limit at which it was last too much; 0 if it never was."""
    cut_pm: int = 0
    """The share of refusals, per mille, for which it was cut, while nobody knows yet whether that helps; else 0."""
    usual_pm: int = 0
    """The share that is refused whatever the limit is."""
    tried_ms: int = 0
    tries: int = 0
    """Calls of batches since the limit last changed, and those of them that were refused."""
    tries_refused: int = 0
    tries_told: int = 0
    """They have been looked at."""
    wins: int = 0
    """Calls that were answered since the limit last changed."""
    losses: int = 0
    """Calls that were refused since then, without those of the first second."""
    grown_from: int = 0
    """The limit before it grew to what it is; 0 if it did not."""
    drained_ms: int = 0
    """Until then calls may be in flight that began before there was a limit."""
    lost_pm: int = 0
    """As ``cut_pm``, for calls that take a slot each."""
    interactive_ms: int = 0
    """When an interactive call was last seen."""
    base_ms: int = 0
    """The latency of batch calls when there are not too many of them."""
    round_ms: int = 0
    round_answers: int = 0
    round_sum_ms: int = 0
    round_used: int = 0
    slow_start: int = 0
    expires_s: int = 0
    holders: Mapping[str, Holder] = field(default_factory=dict)
    used: Mapping[str, int] = field(default_factory=dict)
    """How many calls each holder had in flight at most between the last two times that it asked."""
    reached_ms: int = 0
    """When half of the limit or more was last in use."""
    calls: Mapping[str, int] = field(default_factory=dict)
    """Slots of single calls, by permit: until when they are held at most."""

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> State:
        """The state that an item holds."""
        known = {each.name for each in fields(cls)}
        kept = {name: value for name, value in values.items() if name in known}
        kept["holders"] = {
            name: Holder(holder["slots"], holder["wanted"], holder["until_ms"])
            for name, holder in values.get("holders", {}).items()
        }
        if values.get("version"):
            kept["blamed"] = values.get("blamed")
        return cls(**kept)

    def values(self) -> dict[str, Any]:
        """The item's values."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        values["holders"] = {
            name: {"slots": holder.slots, "wanted": holder.wanted, "until_ms": holder.until_ms}
            for name, holder in self.holders.items()
        }
        values |= {"calls": dict(self.calls), "used": dict(self.used), "blamed_before": dict(self.blamed_before)}
        if self.blamed is not None:
            values["blamed"] = dict(self.blamed)
        return values

    # ── What it says ───────────────────────────────────────────────────────────────────────────────────────

    @property
    def breaker(self) -> BreakerState:
        if not self.opened_ms:
            return "closed"
        return "half_open" if self.probe else "open"

    def is_open_to(self, tenant: str) -> bool:
        """Whether a call of this tenant (:func:`tenant_tag`) needs the probe; of nobody in particular if empty."""
        return self.opened_ms > 0 and self.opened_for in {"", tenant}

    def open_for_ms(self, now_ms: int) -> int:
        """Until somebody may probe; 0 if the breaker is closed, or now."""
        return max(0, self.retry_ms - now_ms) if self.opened_ms else 0

    def resting_for_ms(self, now_ms: int) -> int:
        return max(0, self.resting_until_ms - now_ms)

    def is_limited(self, now_ms: int) -> bool:
        """Whether a call needs a slot."""
        return self.limit > 0 and now_ms < self.limited_until_ms

    def recent(self, now_ms: int, policy: HealthPolicy) -> tuple[int, int]:
        """Failures and answers of this slot and the one before."""
        match now_ms // policy.slot_ms - self.slot:
            case age if age <= 0:
                return self.failures + self.failures_before, self.answers + self.answers_before
            case 1:
                return self.failures, self.answers
            case _:
                return 0, 0

    def is_failing(self, now_ms: int, policy: HealthPolicy) -> bool:
        """Whether any failure is known that is not old."""
        return self.recent(now_ms, policy)[0] > 0

    def live_holders(self, now_ms: int) -> dict[str, Holder]:
        return {name: holder for name, holder in self.holders.items() if holder.until_ms > now_ms}

    def live_calls(self, now_ms: int) -> int:
        return sum(until_ms > now_ms for until_ms in self.calls.values())

    def in_use(self, now_ms: int) -> int:
        """Calls in flight that the limit is about, as far as is known."""
        holders = self.live_holders(now_ms)
        return self.live_calls(now_ms) + sum(self.used.get(name, holder.slots) for name, holder in holders.items())

    def dead_calls(self, now_ms: int) -> list[str]:
        return [call for call, until_ms in self.calls.items() if until_ms <= now_ms]

    def has_interactive(self, now_ms: int, policy: HealthPolicy) -> bool:
        """Whether there are interactive calls beside a batch."""
        return self.interactive_ms > now_ms - policy.interactive_life_s * 1000

    def reserved(self, now_ms: int, policy: HealthPolicy) -> int:
        """Slots that no batch may have."""
        return max(1, round(policy.reserve * self.limit)) if self.has_interactive(now_ms, policy) else 0


# ── Writes ─────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Write:
    """One conditional write, in the terms of UpdateItem. Values are Python's."""

    update: str
    condition: str
    names: Mapping[str, str]
    values: Mapping[str, Any]


# Counted per call, so a state that was worked out from them holds only while they are as they were seen.
_COUNTED = ("slot", "failures", "answers")
_TOLD_BY_COUNTS = {*_COUNTED, "blamed", "blamed_before"}
_PER_CALL = ("deployment", "version", "calls")


def difference(before: State, after: State) -> Write:
    """The write that makes an item ``after`` of what was seen as ``before``; calls in flight are not its business."""
    old, new = before.values(), after.values()
    changed = [name for name in new if name not in _PER_CALL and new[name] != old.get(name)]
    required = ["version", *(_COUNTED if set(changed) & _TOLD_BY_COUNTS else ())]
    values = {f":{name}": new[name] for name in changed} | {f":old_{name}": old[name] for name in required}
    values[":next_version"] = before.version + 1
    conditions = [f"#{name} = :old_{name}" for name in required]
    if "room" in changed:
        # A slot that was taken meanwhile is not given away a second time.
        conditions.append("size(calls) <= :seen_calls")
        values[":seen_calls"] = max(len(before.calls), after.room)
    return Write(
        "SET #version = :next_version" + "".join(f", #{name} = :{name}" for name in changed),
        " AND ".join(conditions),
        {f"#{name}": name for name in {*changed, *required}},
        values,
    )


def count_again(state: State, *, failures: int, answers: int, tenant: str) -> Write:
    """Adds to counts of the slot that is running, and of a failure that is not the first."""
    update = "SET failures = failures + :failures, answers = answers + :answers"
    condition = "#slot = :slot AND failures > :zero AND (opened_ms = :zero OR opened_for <> :all)"
    names = {"#slot": "slot"}
    blamed = state.blamed or {}
    if failures and tenant and (tenant in blamed or len(blamed) < _MOST_BLAMED):
        names["#tenant"] = tenant
        if tenant in blamed:
            update += ", blamed.#tenant = blamed.#tenant + :failures"
            condition += " AND attribute_exists(blamed.#tenant)"
        else:
            update += ", blamed.#tenant = :failures"
            condition += " AND attribute_exists(blamed) AND attribute_not_exists(blamed.#tenant)"
    values = {":failures": failures, ":answers": answers, ":slot": state.slot, ":zero": 0, ":all": ""}
    return Write(update, condition, names, values)


def take_slot(call: str, *, now_ms: int, below: int | None, policy: HealthPolicy) -> Write:
    """A slot for one call, if one is free; ``below`` is for those who must leave some to others."""
    until_ms = now_ms + round(policy.call_lease_s * 1000)
    if below is None:
        return Write(
            "SET calls.#call = :until_ms, interactive_ms = :now_ms",
            "size(calls) < room",
            {"#call": call},
            {":until_ms": until_ms, ":now_ms": now_ms},
        )
    return Write(
        "SET calls.#call = :until_ms",
        "size(calls) < :below AND size(calls) < room",
        {"#call": call},
        {":until_ms": until_ms, ":below": below},
    )


def give_back(call: str, *, won: bool) -> Write:
    return Write(
        "REMOVE calls.#call SET wins = wins + :won",
        "attribute_exists(calls.#call)",
        {"#call": call},
        {":won": int(won)},
    )


def drop_calls(calls: list[str]) -> Write:
    """Takes the slots of calls that have died."""
    names = {f"#call{index}": call for index, call in enumerate(calls)}
    return Write("REMOVE " + ", ".join(f"calls.{name}" for name in names), "attribute_exists(deployment)", names, {})


def interactive_seen(now_ms: int) -> Write:
    return Write("SET interactive_ms = :now_ms", "attribute_exists(deployment)", {}, {":now_ms": now_ms})


# ── The breaker ────────────────────────────────────────────────────────────────────────────────────────────


def counted(state: State, *, failures: int, answers: int, now_ms: int, policy: HealthPolicy, tenant: str = "") -> State:
    """With these calls counted: in a new slot, or as the first failure. What was before a first failure says nothing."""
    slot = now_ms // policy.slot_ms
    blamed = {tenant: failures} if failures and tenant else {}
    if not state.is_failing(now_ms, policy):
        answers = answers if failures == 0 else 0
        return replace(
            state,
            slot=slot,
            failures=failures,
            answers=answers,
            failures_before=0,
            answers_before=0,
            failing_since_ms=now_ms if failures else state.failing_since_ms,
            blamed=blamed,
            blamed_before={},
        )
    if slot <= state.slot:
        known = dict(state.blamed or {})
        if blamed and (tenant in known or len(known) < _MOST_BLAMED):
            known[tenant] = known.get(tenant, 0) + failures
        return replace(state, failures=state.failures + failures, answers=state.answers + answers, blamed=known)
    return replace(
        state,
        slot=slot,
        failures=failures,
        answers=answers,
        failures_before=state.failures,
        answers_before=state.answers,
        blamed=blamed,
        blamed_before=dict(state.blamed or {}),
    )


def must_open(state: State, *, more_answers: int, own_failures: int, now_ms: int, policy: HealthPolicy) -> bool:
    """Whether it is better not to call, for those whose failures these are: see :func:`whose`.

    ``more_answers`` are known to the environment that asks and not yet written, ``own_failures`` those that it had in a
    row with nothing else in flight.
    """
    if now_ms - state.failing_since_ms < policy.settle_s * 1000 and own_failures < policy.own_failures:
        return False
    failures, answers = state.recent(now_ms, policy)
    calls = failures + answers + more_answers + policy.presumed_answers
    is_known = state.opened_ms > 0 and not state.opened_for
    return not is_known and failures >= policy.min_failures and failures >= policy.failure_ratio * calls


def whose(state: State, *, more_answers: int, now_ms: int, policy: HealthPolicy) -> str:
    """The one tenant whose failures these are; empty if those of the others are enough to believe them, or if nobody
    knows whose they are.
    """
    failures, answers = state.recent(now_ms, policy)
    blamed = Counter(state.blamed or {})
    if now_ms // policy.slot_ms <= state.slot:
        blamed.update(state.blamed_before)
    if not blamed or not failures:
        return ""
    (tenant, most), *_ = blamed.most_common(1)
    others = failures - most
    calls = others + answers + more_answers + policy.presumed_of_others
    return "" if others > 0 and others >= policy.failure_ratio * calls else tenant


def opened(state: State, *, now_ms: int, policy: HealthPolicy, tenant: str = "") -> State:
    """Open, for all or for one tenant, for one cool-down; a little longer each time that the probe fails."""
    cool_down_s = min(policy.cool_down_s + policy.cool_down_growth_s * state.openings, policy.max_cool_down_s)
    return replace(
        state,
        opened_ms=state.opened_ms or now_ms,
        opened_for=tenant,
        retry_ms=now_ms + round(cool_down_s * 1000),
        probe="",
        openings=state.openings + 1,
    )


def probing(state: State, *, probe: str, now_ms: int, policy: HealthPolicy) -> State | None:
    """With the one call taken that may try it; None if it is not time, or somebody else has it."""
    if not state.opened_ms or state.open_for_ms(now_ms):
        return None
    return replace(state, probe=probe, retry_ms=now_ms + round(policy.probe_lease_s * 1000))


def probed(state: State, *, probe: str, verdict: bool | None, now_ms: int, policy: HealthPolicy) -> State | None:
    """After the probe: closed, open again, or free for another try; None if there is nothing to change.

    A good answer closes it whoever has the probe by now. A failure, or a call that was given up, is heard from the one
    who has it.
    """
    if not state.opened_ms or (not verdict and state.probe != probe):
        return None
    if verdict is None:
        return replace(state, probe="", retry_ms=now_ms)
    if not verdict:
        return opened(state, now_ms=now_ms, policy=policy, tenant=state.opened_for)
    return replace(closed(state), failures=0, blamed={})


def closed(state: State) -> State:
    """Closed by an answer to a call that was no probe. Half of its failures stay counted: if such answers are few, it
    opens again after some more.
    """
    return replace(
        state,
        opened_ms=0,
        opened_for="",
        retry_ms=0,
        probe="",
        openings=0,
        failures=state.failures // 2,
        answers=0,
        failures_before=0,
        answers_before=0,
        blamed={tenant: failures // 2 for tenant, failures in (state.blamed or {}).items()},
        blamed_before={},
    )


# ── Overload ───────────────────────────────────────────────────────────────────────────────────────────────


def overloaded(
    state: State, *, began_ms: int, retry_after_s: float | None, now_ms: int, policy: HealthPolicy
) -> State | None:
    """After a provider said that it is too much: at rest if it named a time, and with a lower limit, at most once a
    second. None if there is nothing to change.
    """
    after = state
    if retry_after_s is not None and retry_after_s >= policy.min_rest_s:
        until_ms = now_ms + round(min(retry_after_s, policy.max_rest_s) * 1000)
        # A second more or less is not worth a write.
        if until_ms > state.resting_until_ms + 1000 or state.resting_until_ms <= now_ms:
            after = replace(after, resting_until_ms=until_ms)
    # A call that began before the last cut says nothing about the limit since.
    if began_ms > state.cut_ms and now_ms - state.cut_ms >= policy.cut_every_ms:
        if state.is_limited(now_ms) or state.live_holders(now_ms):
            judge = _drained if now_ms < state.drained_ms else _judged
            if state.in_use(now_ms) - 1 > state.limit:
                # Calls from before the last cut take the room of those after it: a lower limit would not help, and it
                # would be slow to come back where answers are long.
                after = replace(after, losses=0)
            else:
                after = judge(replace(after, losses=after.losses + 1), now_ms=now_ms, policy=policy)
        else:
            # Nobody knows how many calls all environments have in flight while none of them takes a slot.
            after = cut(after, policy.first_limit, now_ms=now_ms, factor=policy.decrease)
            drained_ms = now_ms + round(policy.drain_s * 1000)
            after = replace(after, ceiling=0, lost_pm=0, usual_pm=0, drained_ms=drained_ms)
        after = replace(after, limited_until_ms=now_ms + round(policy.limited_s * 1000))
    return None if after == state else after


def _tries(state: State, now_ms: int) -> int:
    """Calls that have ended, and those in flight: refusals are quick, and what is in flight was taken."""
    return state.wins + state.losses + max(0, state.in_use(now_ms) - 1)


def _verdict(state: State, now_ms: int) -> refusals.Verdict:
    tries = _tries(state, now_ms)
    return refusals.verdict(
        state.limit, tries=tries, refused=state.losses, usual_pm=state.usual_pm, cut_pm=state.lost_pm
    )


def _judged(state: State, *, now_ms: int, policy: HealthPolicy) -> State:
    """Under a limit: lower by as many slots as the share of refusals says, or back if that did not help."""
    # What nobody uses is not what was too much.
    limit = min(state.limit, 2 * max(1, state.in_use(now_ms)))
    refused, tries = state.losses, _tries(state, now_ms)
    match _verdict(state, now_ms):
        case "full":
            lower = cut(state, limit, now_ms=now_ms, factor=policy.decrease)
        case "cut":
            counted_as = max(tries, limit)
            too_many = refusals.excess(limit, tries=counted_as, refused=refused, usual_pm=state.usual_pm)
            if state.grown_from:
                # A step that was too large is taken back: in its first moment few of its refusals are known.
                too_many = max(too_many, limit - state.grown_from)
            factor = max(policy.decrease, (limit - too_many) / limit)
            lower = cut(state, limit, now_ms=now_ms, factor=factor + 1e-9)
        case "not_load":
            back = replace(state, usual_pm=refusals.share_pm(refused, tries), lost_pm=0, ceiling=0)
            return with_limit(back, max(state.limit, state.ceiling), now_ms=now_ms)
        case _:
            return state
    pm = refusals.share_pm(refused, max(tries, limit, refusals.LEAST))
    return replace(lower, lost_pm=max(1, pm))


def _drained(state: State, *, now_ms: int, policy: HealthPolicy) -> State:
    """While there may be calls that began without a limit, and take the room: lower only where a good deal is refused,
    and without a conclusion.
    """
    if not refusals.is_full(tries=_tries(state, now_ms), refused=state.losses):
        return state
    lower = cut(state, state.limit, now_ms=now_ms, factor=policy.decrease)
    return replace(lower, ceiling=0)


def cut(state: State, limit: int, *, now_ms: int, factor: float) -> State:
    """With a limit that is ``factor`` of what was too much."""
    return with_limit(
        replace(state, ceiling=limit, cut_ms=now_ms, cut_mean_ms=0, slow_start=0),
        max(1, int(limit * factor)),
        now_ms=now_ms,
    )


def with_limit(state: State, limit: int, *, now_ms: int) -> State:
    """With this limit, and without the holders that have died."""
    holders = state.live_holders(now_ms)
    held = sum(holder.slots for holder in holders.values())
    return replace(state, limit=limit, room=max(0, limit - held), holders=holders, wins=0, losses=0, grown_from=0)


def grown(
    state: State,
    *,
    now_ms: int,
    policy: HealthPolicy = HealthPolicy(),
) -> State | None:
    """One slot more, when as many calls as there are slots were answered since it was last changed, and they were in
    use. None if it is not time. A limit that batch workers search for is theirs to raise, as long as they have slots to
    search with.
    """
    if not state.is_limited(now_ms) or state.wins < state.limit:
        return None
    if any(holder.slots for holder in state.live_holders(now_ms).values()):
        return None
    if state.live_calls(now_ms) + 1 < round(state.limit * 0.75):
        return None
    if state.lost_pm or state.usual_pm:
        said = _verdict(state, now_ms)
        if said == "wait":
            if state.losses or state.limit > _SMALL:
                return None  # it is not clear yet what is refused at this limit
        elif said == "fine":
            usual_pm = refusals.learnt_pm(state.usual_pm, tries=state.wins + state.losses, refused=state.losses)
            state = replace(state, lost_pm=0, usual_pm=usual_pm)
        else:
            return _judged(state, now_ms=now_ms, policy=policy)
    return replace(with_limit(state, state.limit + _step(state), now_ms=now_ms), grown_from=state.limit)


_SMALL = 8
"""With so few slots it would take minutes to be sure, and one too many is soon taken back."""


def _step(state: State) -> int:
    """By how much a limit grows: up to where it was last too much by one; beyond that the faster the farther, since it
    was too much for another reason then. The first limit is a guess, and grows fast until there is a second refusal;
    doubles, if calls from before it took the room and brought it down to a few.
    """
    fastest = max(1, state.limit // 4)
    if state.ceiling:
        return min(fastest, max(1, state.limit - state.ceiling))
    return state.limit if state.limit < _SMALL else fastest


def refused(state: State, *, interactive: bool, now_ms: int, policy: HealthPolicy) -> State | None:
    """After a call found no slot: the limit is in use, so it stays for another while, and a batch sees who waits."""
    after = state
    if state.limited_until_ms - now_ms <= policy.limited_s * 500:
        after = replace(after, limited_until_ms=now_ms + round(policy.limited_s * 1000))
    if interactive and now_ms - state.interactive_ms >= policy.presence_every_s * 1000:
        after = replace(after, interactive_ms=now_ms)
    return None if after == state else after
