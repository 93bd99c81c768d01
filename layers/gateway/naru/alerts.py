"""Budget alerts and spike alerts: who is told what, and that once.

A budget's thresholds are looked at when a request crosses one (:mod:`naru.crossings`) and every five minutes, whoever is
there or not. An alert is a note in the report table: claimed by one, published, done. A claim whose owner died or whose
publishing failed is taken up by the next look. So an alert is told at least once, and a second time only if the process
dies between SNS's answer and the note.

An alert belongs to a month, a budget and a threshold: whoever raises a budget hears of the new one's thresholds too.
When several thresholds are reached at once, the highest is told and the lower ones count as told with it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta

from naru.accounts import Accounts, budget_or_none
from naru.amounts import to_usd
from naru.anomalies import spike
from naru.business_time import business_day, next_month_starts
from naru.delivery import NotDeliveredError, Topic
from naru.periods import Hour, day_start_ms, hour_of, month_of
from naru.projection import HISTORY_DAYS, project
from naru.report_store import ReportStore
from naru.report_words import Language, Voice
from naru.tally import Tally
from naru.usage import Bucket, Usage

logger = logging.getLogger(__name__)

ORGANISATION = "organisation"
CLAIM_MS = 60_000
"""After so long without an end, whoever was telling counts as dead."""

_TOP = 5
_SPIKE_DAYS = 14
_SPIKE_FLOOR_PICO_USD = 10**11  # ten cents an hour are no alarm, whatever is usual


@dataclass(frozen=True, slots=True)
class Budget:
    """A monthly budget and what is spent of it. ``scope`` is ``organisation`` or the id of a key."""

    scope: str
    name: str
    budget_pico_usd: int
    spent_pico_usd: int

    def reached(self, thresholds: Sequence[int]) -> list[int]:
        """The thresholds that are reached, in percent, from low to high."""
        if not self.spent_pico_usd:
            return []
        return sorted(percent for percent in thresholds if self.spent_pico_usd * 100 >= self.budget_pico_usd * percent)

    @property
    def percent(self) -> int:
        """Spent, in whole percent; of no budget at all, a hundred."""
        return self.spent_pico_usd * 100 // self.budget_pico_usd if self.budget_pico_usd else 100


@dataclass(frozen=True, slots=True)
class _Spike:
    bucket: Bucket
    times: float
    usual_pico_usd: int


def budgets(accounts: Accounts) -> Iterator[Budget]:
    """All that are limited."""
    organisation = accounts.organisation
    if (limit := budget_or_none(organisation.budget_pico_usd)) is not None:
        yield Budget(ORGANISATION, ORGANISATION, limit, organisation.month.spent_pico_usd)
    for view in accounts.keys.values():
        if (limit := budget_or_none(view.limits.budget_pico_usd)) is not None:
            yield Budget(view.key_id, view.name, limit, view.month.spent_pico_usd)


class Alerts:
    """Every method blocks, and raises :class:`~naru.errors.StoreUnavailableError`."""

    def __init__(
        self, usage: Usage, store: ReportStore, topic: Topic, *, thresholds: Sequence[int], language: Language
    ) -> None:
        self._usage = usage
        self._store = store
        self._topic = topic
        self._thresholds = thresholds
        self._voice = Voice(language, usage.zone)
        self._usual_costs: dict[Hour, list[int]] = {}

    def check_budgets(self, accounts: Accounts, *, now_ms: int, only: str | None = None) -> list[str]:
        """Tells of every threshold that is reached and has not been told; those, as ``organisation/90``.

        ``only`` is the one scope to look at. Raises :class:`~naru.delivery.NotDeliveredError`, after the others have
        been told.
        """
        month = accounts.organisation.month.month
        told: list[str] = []
        undelivered: list[NotDeliveredError] = []
        for budget in budgets(accounts):
            if only is not None and budget.scope != only:
                continue
            try:
                if (threshold := self._tell_budget(budget, month, accounts, now_ms)) is not None:
                    told.append(f"{budget.scope}/{threshold}")
            except NotDeliveredError as error:
                logger.warning("alert not delivered", extra={"scope": budget.scope, "reason": str(error)})
                undelivered.append(error)
        if undelivered:
            raise undelivered[0]
        return told

    def _tell_budget(self, budget: Budget, month: str, accounts: Accounts, now_ms: int) -> int | None:
        if not (reached := budget.reached(self._thresholds)):
            return None
        about, part = f"alerts#{month}", f"{budget.scope}/{budget.budget_pico_usd}/{reached[-1]:03}"
        if self._store.is_done(about, part):  # cheaper than a claim that fails, and nearly always so
            return None
        if not self._store.claim(about, part, now_ms=now_ms, lease_ms=CLAIM_MS):
            return None
        try:
            # SNS takes subjects in ASCII only.
            whose = budget.name if budget.name.isascii() else budget.scope
            subject = f"[Naru] {budget.percent} % of the budget of {whose} is spent ({month})"
            self._topic.publish(subject, self._budget_text(budget, reached[-1], month, accounts, now_ms))
        except BaseException:
            self._store.give_back(about, part)
            raise
        for threshold in reached:
            covered = f"{budget.scope}/{budget.budget_pico_usd}/{threshold:03}"
            self._store.done(about, covered, now_ms=now_ms, told=reached[-1])
        logger.info("alert", extra={"scope": budget.scope, "threshold": reached[-1], "month": month})
        return reached[-1]

    def _budget_text(self, budget: Budget, threshold: int, month: str, accounts: Accounts, now_ms: int) -> str:
        say, usd, voice = self._voice.say, self._voice.usd, self._voice
        today = business_day(now_ms, self._usage.zone)
        days = self._usage.days(today - timedelta(days=HISTORY_DAYS), today, now_ms=now_ms)
        if budget.scope != ORGANISATION:
            days = [Bucket(day.day, day.start_ms, day.end_ms, day.tally.only(budget.scope.__eq__)) for day in days]
        of_month = Tally()
        for day in days:
            if month_of(day.day) == month:
                of_month.merge(day.tally)
        lines = [
            say(
                "alert_organisation" if budget.scope == ORGANISATION else "alert_key",
                name=budget.name,
                percent=budget.percent,
                month=month,
                spent=usd(to_usd(budget.spent_pico_usd)),
                budget=usd(to_usd(budget.budget_pico_usd)),
            ),
            say("alert_reached", threshold=threshold),
            self._pace(budget, days, now_ms),
            "",
        ]
        if budget.scope == ORGANISATION:
            lines += [say("alert_who_keys"), *self._keys(of_month, accounts)]
            command = "naru budget set USD"
        else:
            lines += [say("alert_who_users"), *self._users(of_month)]
            command = f"naru keys update {budget.scope} --budget-usd USD"
        return "\n".join([*lines, "", voice.say("alert_commands", command=command), ""])

    def _pace(self, budget: Budget, days: Sequence[Bucket], now_ms: int) -> str:
        if budget.spent_pico_usd >= budget.budget_pico_usd:
            resets = next_month_starts(now_ms, self._usage.zone)
            return self._voice.say("alert_spent", resets=f"{resets:%Y-%m-%d %H:%M}")
        projection = project(
            {day.day: day.tally.cost_pico_usd for day in days[:-1]},
            now_ms=now_ms,
            today=days[-1].day,
            spent_pico_usd=budget.spent_pico_usd,
            budget_pico_usd=budget.budget_pico_usd,
            zone=self._usage.zone,
        ) or self._first_days_pace(budget, now_ms)  # fmt: skip
        if isinstance(projection, int):
            return self._voice.say("alert_gone", at=self._voice.moment(projection // 1000))
        if projection.exhausted_ms is not None:
            return self._voice.say("alert_gone", at=self._voice.moment(projection.exhausted_ms // 1000))
        return self._voice.say("alert_lasts", expected=self._voice.usd(to_usd(projection.expected_pico_usd)))

    def _first_days_pace(self, budget: Budget, now_ms: int) -> int:
        """When nothing but today is known: as fast as today so far."""
        begun_ms = day_start_ms(business_day(now_ms, self._usage.zone), self._usage.zone)
        left = budget.budget_pico_usd - budget.spent_pico_usd
        return now_ms + left * max(1, now_ms - begun_ms) // budget.spent_pico_usd

    def _keys(self, tally: Tally, accounts: Accounts) -> list[str]:
        by_key = tally.by(lambda cell: cell.key_id)
        return [f"- {accounts.name(key_id)} ({key_id}): {self._voice.usd(to_usd(sums.cost_pico_usd))} USD" for key_id, sums in [*by_key.items()][:_TOP]]  # fmt: skip

    def _users(self, tally: Tally) -> list[str]:
        ranked = sorted(tally.users.named.items(), key=lambda item: (-item[1].cost_pico_usd, item[0]))[:_TOP]
        return [f"- {' '.join(user.split())[:100]}: {self._voice.usd(to_usd(spent.cost_pico_usd))} USD" for (_, user), spent in ranked] or ["-"]  # fmt: skip

    # ── Spikes ─────────────────────────────────────────────────────────────────────────────────────────────

    def check_spike(self, accounts: Accounts, *, now_ms: int) -> Hour | None:
        """Tells of an hour that costs far more than it usually does, once a day; that hour.

        Looks at the last whole hour and at what the one that runs has cost so far. Raises
        :class:`~naru.delivery.NotDeliveredError`.
        """
        zone = self._usage.zone
        running, today = hour_of(now_ms, zone), business_day(now_ms, zone)
        if self._store.is_done(f"alerts#{month_of(today)}", f"spike/{today.isoformat()}"):
            return None
        start_ms = day_start_ms(today - timedelta(days=1), zone)
        recent = self._usage.between(start_ms, running.end_ms(zone), now_ms=now_ms, hourly=True)[-2:]
        for bucket in reversed(recent):
            if bucket.tally.cost_pico_usd < _SPIKE_FLOOR_PICO_USD:
                continue
            usual = self._usual(hour_of(bucket.start_ms, zone))
            if (times := spike(bucket.tally.cost_pico_usd, usual)) is not None:
                return self._tell_spike(_Spike(bucket, times, sum(usual) // len(usual)), accounts, now_ms)
        return None

    def _usual(self, hour: Hour) -> list[int]:
        """What the same hour cost on the days before it, by their roll-ups."""
        if (known := self._usual_costs.get(hour)) is not None:
            return known
        costs: list[int] = []
        for back in range(1, _SPIKE_DAYS + 1):
            tallies = self._usage.store.tallies(f"hours#{hour.day - timedelta(days=back)}")
            if (tally := tallies.get(f"{hour.index:02}")) is not None:
                costs.append(tally.cost_pico_usd)
        # Kept, because the hour is looked at every five minutes, and two weeks of roll-ups are megabytes.
        if len(self._usual_costs) > 1:
            self._usual_costs.clear()
        self._usual_costs[hour] = costs
        return costs

    def _tell_spike(self, found: _Spike, accounts: Accounts, now_ms: int) -> Hour | None:
        today = business_day(now_ms, self._usage.zone)
        about, part = f"alerts#{month_of(today)}", f"spike/{today.isoformat()}"
        if not self._store.claim(about, part, now_ms=now_ms, lease_ms=CLAIM_MS):
            return None
        voice, bucket = self._voice, found.bucket
        hour = hour_of(bucket.start_ms, self._usage.zone)
        lines = [
            voice.say(
                "spike_so_far" if bucket.end_ms > now_ms else "spike",
                **{"from": voice.moment(bucket.start_ms // 1000)},
                cost=voice.usd(to_usd(bucket.tally.cost_pico_usd)),
                usual=voice.usd(to_usd(found.usual_pico_usd)),
                times=f"{found.times:.1f}",
            ),
            "",
            voice.say("spike_who"),
            *self._keys(bucket.tally, accounts),
            "",
        ]
        try:
            self._topic.publish(f"[Naru] An hour costs {found.times:.1f} times its usual", "\n".join(lines))
        except BaseException:
            self._store.give_back(about, part)
            raise
        self._store.done(about, part, now_ms=now_ms)
        logger.info("alert", extra={"scope": "spike", "hour_ms": bucket.start_ms})
        return hour

    def test(self) -> None:
        """Tells the subscribers that this is a test. Raises :class:`~naru.delivery.NotDeliveredError`."""
        self._topic.publish("[Naru] Test of the alerts", self._voice.say("test") + "\n")
