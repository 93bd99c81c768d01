"""What was used in a span of time: whole days and hours from roll-ups, the rest from the rows themselves.

A roll-up of an hour or a day is written when no row of it can come any more (:mod:`naru.closing`). It is a fold over
rows that never change, so whoever writes it, whenever and however often, writes the same. The roll-up of a day is the sum
of its hours', once the day's rows have been counted: should one have come late after all, they are folded anew.
"""

from __future__ import annotations

import logging
from collections import OrderedDict, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from zoneinfo import ZoneInfo

from naru.business_time import business_day
from naru.closing import Closing
from naru.ledger import Row
from naru.ledger_reader import LedgerReader
from naru.periods import (
    HOUR_MS,
    Hour,
    day_end_ms,
    day_start_ms,
    days_between,
    first_of_month,
    hour_of,
    hours_of,
    last_of_month,
    month_of,
)
from naru.report_store import ReportStore
from naru.tally import Tally, merged

logger = logging.getLogger(__name__)

_AHEAD_MS = 60_000
"""How far another machine's clock may be ahead of ours. What is later than that has not happened yet."""
_KEPT_DAYS = 100
_QUIET_ROWS = 5_000
_CATCH_UP_DAYS = 35
"""How far back roll-ups are made at first: a month, for its budget. Those before it follow (:meth:`Usage.fill_back`)."""
_BACK_DAYS = 60
"""How many days before those are rolled up in one run; each thousand rows count as one more."""
_QUIET_DAYS = 400
"""After so many days without a row, going back, there are taken to be none before."""


@dataclass(frozen=True, slots=True)
class Bucket:
    """A day, or an hour, or the part of one that was asked for; in Unix milliseconds, the end not included."""

    day: date
    start_ms: int
    end_ms: int
    tally: Tally


class Usage:
    """Every method blocks, and raises :class:`~naru.errors.StoreUnavailableError`."""

    def __init__(self, reader: LedgerReader, store: ReportStore, closing: Closing) -> None:
        self.reader = reader
        self.store = store
        self.closing = closing
        self.zone: ZoneInfo = reader.zone
        self._begun: OrderedDict[Hour, tuple[int, Tally]] = OrderedDict()
        """Of hours that are not over: until when their rows are counted for good, and what they add up to."""

        self._closed: dict[date, Tally] = {}
        self._empty: set[date] = set()
        """Days without a row, and without a roll-up that would say so."""
        self._begins: date | None = None

    # ── Asking ─────────────────────────────────────────────────────────────────────────────────────────────

    def days(self, first: date, last: date, *, now_ms: int) -> list[Bucket]:
        """Every business day from the first to the last, both included."""
        return self.between(day_start_ms(first, self.zone), day_end_ms(last, self.zone), now_ms=now_ms)

    def month_until(self, day: date, *, now_ms: int) -> list[Bucket]:
        """The days of its month up to this one."""
        return self.days(first_of_month(day), day, now_ms=now_ms)

    def days_ago_ms(self, days: int, *, now_ms: int) -> int:
        """The midnight that begins the business day so many days ago."""
        return day_start_ms(business_day(now_ms, self.zone) - timedelta(days=days), self.zone)

    def between(self, start_ms: int, end_ms: int, *, now_ms: int, hourly: bool = False) -> list[Bucket]:
        """The days of a span, or its hours; the first and the last may be cut by it. Also those without a row."""
        if start_ms >= end_ms:
            return []
        first, last = business_day(start_ms, self.zone), business_day(end_ms - 1, self.zone)
        # What is to come has no rows, and nobody is asked for them.
        closed_ms = self.closing.closed_until_ms(now_ms)
        is_recent = first >= business_day(now_ms, self.zone) - timedelta(days=_CATCH_UP_DAYS)
        whole_days = {} if hourly and is_recent else self.known_days(first, last, now_ms=now_ms)
        buckets = []
        for day in days_between(first, last):
            begin, end = max(start_ms, day_start_ms(day, self.zone)), min(end_ms, day_end_ms(day, self.zone))
            is_whole = (begin, end) == (day_start_ms(day, self.zone), day_end_ms(day, self.zone))
            known = whole_days.get(day)
            if known is not None and not known.cells:
                cuts = self._cut(day, begin, end) if hourly else [(begin, end)]
                buckets += [Bucket(day, *cut, known) for cut in cuts]
                continue
            if known is not None and is_whole and not hourly:
                buckets.append(Bucket(day, begin, end, known))
                continue
            if is_whole and not hourly and end <= closed_ms:
                buckets.append(Bucket(day, begin, end, self._closed_day(day, closed_ms, now_ms)))
                continue
            hours = list(self._hours(day, begin, end, closed_ms=closed_ms, now_ms=now_ms))
            buckets += hours if hourly else [Bucket(day, begin, end, merged(hour.tally for hour in hours))]
        return buckets

    def _closed_day(self, day: date, closed_ms: int, now_ms: int) -> Tally:
        """A day that has no roll-up yet and cannot change any more."""
        if (tally := self._closed.get(day)) is None:
            start_ms, end_ms = day_start_ms(day, self.zone), day_end_ms(day, self.zone)
            tally = merged(
                hour.tally for hour in self._hours(day, start_ms, end_ms, closed_ms=closed_ms, now_ms=now_ms)
            )
            if len(self._closed) >= _KEPT_DAYS:
                self._closed.clear()
            if tally.cells:
                self._closed[day] = tally
            else:
                self._empty.add(day)
        return tally

    def known_days(self, first: date, last: date, *, now_ms: int) -> dict[date, Tally]:
        """What is known of days without a look at their rows: their roll-ups, of the whole months from the first to the
        last, and that there is nothing.
        """
        found: dict[date, Tally] = {day: Tally() for day in self._empty if first <= day <= last}
        if first < business_day(now_ms, self.zone) - timedelta(days=_CATCH_UP_DAYS):
            end = min(last, self._first_day() - timedelta(days=1))
            found |= {day: Tally() for day in days_between(first, end)}
        month = first_of_month(first)
        while month <= last:
            for part, tally in self.store.tallies(f"days#{month_of(month)}").items():
                found[month.replace(day=int(part))] = tally
            month = last_of_month(month) + timedelta(days=1)
        return found

    def _first_day(self) -> date:
        """Before it there is no row, as far as that is known."""
        if self._begins is None and (noted := self.store.notes("rolled").get("back", {}).get("begins")):
            self._begins = date.fromisoformat(noted)
        return self._begins or date.min + timedelta(days=1)

    def _cut(self, day: date, start_ms: int, end_ms: int) -> list[tuple[int, int]]:
        """The hours of a day within a span, each as far as it lies in it."""
        hours = [(hour.start_ms(self.zone), hour.end_ms(self.zone)) for hour in hours_of(day, self.zone)]
        return [(max(start_ms, begin), min(end_ms, end)) for begin, end in hours if end > start_ms and begin < end_ms]

    def _hours(self, day: date, start_ms: int, end_ms: int, *, closed_ms: int, now_ms: int) -> Iterator[Bucket]:
        """The hours of a day within a span: from roll-ups where there are, from rows where not."""
        if start_ms > now_ms + _AHEAD_MS:
            return
        rolled = self.store.tallies(f"hours#{day}")
        hours = [
            hour for hour in hours_of(day, self.zone) if hour.end_ms(self.zone) > start_ms and hour.start_ms(self.zone) < end_ms
        ]  # fmt: skip
        missing: list[Hour] = []
        tallies: dict[Hour, Tally] = {}
        for hour in hours:
            is_whole = start_ms <= hour.start_ms(self.zone) and hour.end_ms(self.zone) <= end_ms
            if is_whole and (tally := rolled.get(f"{hour.index:02}")) is not None:
                tallies[hour] = tally
            elif hour.start_ms(self.zone) > now_ms + _AHEAD_MS:
                tallies[hour] = Tally()
            elif is_whole and hour.end_ms(self.zone) > closed_ms:
                tallies[hour] = self._open_hour(hour, closed_ms)
            elif is_whole:
                missing.append(hour)
            else:
                begin, end = max(start_ms, hour.start_ms(self.zone)), min(end_ms, hour.end_ms(self.zone))
                tallies[hour] = merged(self.fold(day, start_ms=begin, end_ms=end).values())
        if missing:
            found = self.fold(day, start_ms=missing[0].start_ms(self.zone), end_ms=missing[-1].end_ms(self.zone))
            tallies |= {hour: found[hour.index] for hour in missing}
        for hour in hours:
            begin, end = max(start_ms, hour.start_ms(self.zone)), min(end_ms, hour.end_ms(self.zone))
            yield Bucket(day, begin, end, tallies[hour])

    def _open_hour(self, hour: Hour, closed_ms: int) -> Tally:
        """An hour of which rows may still come. What cannot change any more is kept in memory, so that who asks every
        few seconds reads the last minutes only.
        """
        until_ms, kept = self._begun.get(hour, (hour.start_ms(self.zone), Tally()))
        if closed_ms > until_ms:
            kept = merged([kept, *self.fold(hour.day, start_ms=until_ms, end_ms=closed_ms).values()])
            until_ms = closed_ms
            self._begun[hour] = (until_ms, kept)
            self._begun.move_to_end(hour)
            while len(self._begun) > 4:
                self._begun.popitem(last=False)
        rest = self.fold(hour.day, start_ms=until_ms, end_ms=hour.end_ms(self.zone))
        return merged([kept, *rest.values()])

    # ── Folding ────────────────────────────────────────────────────────────────────────────────────────────

    def fold(self, day: date, *, start_ms: int | None = None, end_ms: int | None = None) -> defaultdict[int, Tally]:
        """The rows of a day, or of a part of it, by the index of their hour. Reads every one of them."""
        day_ms = day_start_ms(day, self.zone)

        def work(rows: Iterator[Row]) -> dict[int, Tally]:
            hours: defaultdict[int, Tally] = defaultdict(Tally)
            for row in rows:
                hours[(row.arrived_at_ms - day_ms) // HOUR_MS].add(row)
            return hours

        whole: defaultdict[int, Tally] = defaultdict(Tally)
        for shard in self.reader.each_shard(day, work, start_ms=start_ms, end_ms=end_ms):
            for index, tally in shard.items():
                whole[index].merge(tally)
        return whole

    # ── Rolling up ─────────────────────────────────────────────────────────────────────────────────────────

    def catch_up(self, *, now_ms: int, closed_ms: int | None = None) -> list[Hour]:
        """Makes the roll-ups that can be made and are not there; those hours, the oldest first.

        Nothing is lost by a run that dies or does not come, and two at once write the same.
        """
        closed_ms = self.closing.closed_until_ms(now_ms) if closed_ms is None else closed_ms
        noted = self.store.get("rolled", "hours").get("until_ms")
        first = hour_of(noted, self.zone) if noted is not None else Hour(business_day(now_ms, self.zone) - timedelta(days=_CATCH_UP_DAYS), 0)  # fmt: skip
        rolled: list[Hour] = []
        for day in days_between(first.day, business_day(closed_ms, self.zone)):
            if day_end_ms(day, self.zone) <= closed_ms:
                done = self._close_day(day)
            else:
                begin_ms = first.start_ms(self.zone) if day == first.day else day_start_ms(day, self.zone)
                done = self._roll_up_hours(day, begin_ms, closed_ms)
            if done:
                rolled += [hour for hour in done if hour >= first]
                self.store.note("rolled", "hours", until_ms=done[-1].end_ms(self.zone))
        return rolled

    def fill_back(self, *, now_ms: int) -> int:
        """Makes roll-ups of days before those of :meth:`catch_up`, the newest first, some in each run; how many days it
        looked at. So no question reads days without a row again and again.

        Once it has met no row for 400 days it notes that there are none before. Who puts rows of earlier days into a
        ledger makes their roll-ups too (:meth:`roll_up_day`).
        """
        noted = self.store.get("rolled", "back")
        if "begins" in noted:
            return 0
        newest = business_day(now_ms, self.zone) - timedelta(days=_CATCH_UP_DAYS)
        day = date.fromisoformat(noted["since"]) if "since" in noted else newest
        quiet, left, looked_at = noted.get("quiet", 0), _BACK_DAYS, 0
        rolled: dict[date, Tally] = {}
        while left > 0 and quiet < _QUIET_DAYS:
            day -= timedelta(days=1)
            if not looked_at or day.day == last_of_month(day).day:
                rolled = self.known_days(day, day, now_ms=now_ms)
            rows = rolled[day].requests if day in rolled else self.reader.count(day)
            if day not in rolled:
                if rows:
                    self.roll_up_day(day)
                else:
                    self.store.put_tally(f"days#{month_of(day)}", f"{day.day:02}", Tally())
                left -= rows // 1000
            quiet = 0 if rows else quiet + 1
            left, looked_at = left - 1, looked_at + 1
            self.store.note("rolled", "back", since=day.isoformat(), quiet=quiet)
        if quiet >= _QUIET_DAYS:
            self.store.note("rolled", "back", begins=day.isoformat())
        return looked_at

    def _close_day(self, day: date) -> list[Hour]:
        """Makes the roll-up of a day, and those of its hours that are not there."""
        hours, about = hours_of(day, self.zone), f"hours#{day}"
        rolled = self.store.tallies(about)
        missing = [hour for hour in hours if f"{hour.index:02}" not in rolled]
        if 2 * len(missing) > len(hours):
            return self.roll_up_day(day)
        for hour in missing:
            self._roll_up([hour], Tally())
        # Read again, so that a day is made of what its hours are in the table, whoever wrote them.
        whole = merged(tally for _, tally in sorted(self.store.tallies(about).items()))
        if whole.requests != self.reader.count(day):
            return self.roll_up_day(day)
        self.store.put_tally(f"days#{month_of(day)}", f"{day.day:02}", whole)
        return hours

    def roll_up_day(self, day: date) -> list[Hour]:
        """Makes the roll-ups of a day and its hours from its rows, over those there are. For a day that is closed.

        Some hours at a time, so that no more than a few thousand rows' worth of end users are in memory beside the day's.
        """
        hours, whole = hours_of(day, self.zone), Tally()
        self._roll_up(hours, whole)
        self.store.put_tally(f"days#{month_of(day)}", f"{day.day:02}", whole)
        return hours

    def _roll_up(self, hours: Sequence[Hour], whole: Tally) -> None:
        """Of hours of one day, in a row: their roll-ups, added to ``whole``."""
        at, width = 0, 1
        while at < len(hours):
            these = hours[at : at + width]
            start_ms, end_ms = these[0].start_ms(self.zone), these[-1].end_ms(self.zone)
            found = self.fold(these[0].day, start_ms=start_ms, end_ms=end_ms)
            for hour in these:
                self.store.put_tally(f"hours#{hour.day}", f"{hour.index:02}", found[hour.index])
                whole.merge(found[hour.index])
            at += width
            # Quiet hours together: each question costs eight queries.
            width = 2 * width if sum(tally.requests for tally in found.values()) < _QUIET_ROWS else 1

    def _roll_up_hours(self, day: date, begin_ms: int, closed_ms: int) -> list[Hour]:
        closed = [
            hour for hour in hours_of(day, self.zone) if hour.start_ms(self.zone) >= begin_ms and hour.end_ms(self.zone) <= closed_ms
        ]  # fmt: skip
        self._roll_up(closed, Tally())
        return closed
