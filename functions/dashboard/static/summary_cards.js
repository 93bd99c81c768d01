// Today, the month, and the budget.

import { h } from "./dom.js";
import { card, fact } from "./parts.js";

export function todayCards({ t, f, state }) {
  const { today, month, hours } = state.data;
  const share = today.requests ? today.errors / today.requests : 0;
  const { firstTokenMs: first, latencyMs: whole } = today;
  const daysOfMonth = state.data.days.filter((day) => day.date.startsWith(month.month));
  return [
    kpi(
      "kpi-today",
      t.spentToday,
      f.money(today.costUsd),
      f.other(today.costUsd),
      lastWeek(t, f, today),
      strip(hours, 24, (hour) => hour.costUsd),
    ),
    kpi(
      "kpi-month",
      t.spentMonth,
      f.money(month.costUsd),
      f.other(month.costUsd),
      `${f.month(month.month)} · ${t.requestsOf(f.count(month.requests))}`,
      strip(daysOfMonth, lengthOf(month.month), (day) => day.costUsd),
    ),
    kpi(
      "kpi-requests",
      t.requestsToday,
      f.count(today.requests),
      today.errors
        ? h(
            "span",
            { class: share >= 0.05 ? "bad-text" : share >= 0.01 ? "warn-text" : null },
            t.errorsOf(f.count(today.errors), f.percent(share)),
          )
        : h("span", { class: "good-text" }, t.noErrors),
      t.tokens(f.shortCount(today.promptTokens), f.shortCount(today.completionTokens)),
      strip(
        hours,
        24,
        (hour) => hour.requests,
        (hour) => hour.errors,
      ),
    ),
    kpi(
      "kpi-first-token",
      t.firstTokenToday,
      first ? f.duration(first.p50) : "–",
      first ? t.median : t.noAnswers,
      first && `${t.p95} ${f.duration(first.p95)} · ${t.p99} ${f.duration(first.p99)}`,
      whole && h("p", { class: "note" }, t.wholeAnswer(f.duration(whole.p50), f.duration(whole.p95))),
    ),
  ];
}

function kpi(id, heading, value, beside, below, ...more) {
  return card(
    "kpi",
    id,
    heading,
    h("p", { class: "figure" }, h("strong", {}, value), " ", h("span", {}, beside)),
    h("p", { class: "note" }, below || "\u00a0"),
    more,
  );
}

function lastWeek(t, f, today) {
  return today.lastWeekUsd ? t.lastWeek(f.money(today.lastWeekUsd), f.longDay(today.lastWeekDay)) : t.noLastWeek;
}

/** Hours or days as small bars: a look, no axis. `lower` is drawn in red at the foot; `slots` are there in all. */
function strip(times, slots, value, lower = () => 0) {
  const most = Math.max(0, ...times.map(value));
  if (!(most > 0)) return null;
  const height = (amount) => `${(amount / most) * 100}%`;
  const bars = times.map((time) =>
    h(
      "i",
      { style: { height: height(value(time)) } },
      lower(time) > 0 && h("i", { style: { height: `${(lower(time) / value(time)) * 100}%` } }),
    ),
  );
  const later = Array.from({ length: Math.max(0, slots - times.length) }, () => h("i", { class: "later" }));
  return h("div", { class: "strip", "aria-hidden": "true" }, bars, later);
}

/** How many days a month has. */
function lengthOf(month) {
  const [year, number] = month.split("-").map(Number);
  return new Date(Date.UTC(year, number, 0)).getUTCDate();
}

export function budgetCard({ t, f, state }) {
  const { month } = state.data;
  if (month.budgetUsd === null) {
    return card(
      "",
      "budget",
      t.budget.heading,
      h("p", { class: "figure" }, h("strong", {}, f.money(month.costUsd)), " ", h("span", {}, f.other(month.costUsd))),
      h("p", { class: "note" }, t.budget.none),
    );
  }
  const share = (usd) => (month.budgetUsd > 0 ? usd / month.budgetUsd : usd > 0 ? 1 : 0);
  const left = Math.max(0, month.budgetUsd - month.costUsd - month.reservedUsd);
  const verdict = budgetVerdict(t, f, month);
  const hasProjection = month.projectedUsd !== null;
  return card(
    "",
    "budget",
    t.budget.heading,
    h(
      "p",
      { class: "figure" },
      h("strong", {}, f.wholePercent(share(month.costUsd))),
      " ",
      h("span", {}, `${f.money(month.costUsd)} ${t.budget.of(f.money(month.budgetUsd))}`),
    ),
    gauge(t, f, month, share),
    h(
      "p",
      { class: `verdict ${verdict.level}` },
      h("i", { class: `dot ${verdict.level}`, "aria-hidden": "true" }),
      verdict.text,
    ),
    h(
      "dl",
      { class: "facts" },
      fact(t.budget.left, f.money(left), f.other(left)),
      month.reservedUsd > 0 && fact(t.budget.reserved, f.money(month.reservedUsd), f.other(month.reservedUsd)),
      hasProjection &&
        fact(
          t.budget.projected,
          f.money(month.projectedUsd),
          month.lowUsd === null
            ? f.other(month.projectedUsd)
            : t.budget.range(f.shortMoney(month.lowUsd), f.shortMoney(month.highUsd)),
        ),
    ),
  );
}

function budgetVerdict(t, f, month) {
  const { budgetUsd, costUsd, projectedUsd, highUsd, goneOn } = month;
  if (costUsd >= budgetUsd) return { level: "bad", text: t.budget.reached };
  if (projectedUsd === null) return { level: "good", text: t.budget.tooEarly };
  if (goneOn) return { level: "bad", text: t.budget.gone(f.longDay(goneOn)) };
  if (projectedUsd >= budgetUsd) return { level: "bad", text: t.budget.exceeds };
  if (highUsd !== null && highUsd >= budgetUsd) return { level: "warn", text: t.budget.may };
  return { level: "good", text: t.budget.lasts };
}

/** A bar of the budget: what is spent, what is set aside, and where the month will end, with its error band. */
function gauge(t, f, month, share) {
  const { projectedUsd, lowUsd, highUsd } = month;
  // Beyond the budget there is room for what is projected, so that an overrun is seen as one.
  const scale = Math.max(
    1,
    share(month.costUsd),
    Math.min(1.6, Math.max(share(highUsd ?? 0), share(projectedUsd ?? 0))),
  );
  const at = (part) => `${Math.min(100, (part / scale) * 100)}%`;
  const spent = share(month.costUsd);
  const level = spent >= 1 ? "bad" : spent >= 0.9 ? "warn" : "good";
  const label =
    projectedUsd === null
      ? t.budget.labelWithout(f.wholePercent(spent))
      : t.budget.label(f.wholePercent(spent), f.wholePercent(share(projectedUsd)));
  return h(
    "div",
    { class: "gauge", role: "img", "aria-label": label },
    h(
      "div",
      { class: "track" },
      lowUsd !== null &&
        projectedUsd !== null &&
        h("i", {
          class: "band",
          style: {
            left: at(share(lowUsd)),
            width: `${Math.max(0, parseFloat(at(share(highUsd))) - parseFloat(at(share(lowUsd))))}%`,
          },
        }),
      h("i", { class: `spent ${level}`, style: { width: at(spent) } }),
      month.reservedUsd > 0 &&
        h("i", { class: "reserved", style: { left: at(spent), width: at(share(month.reservedUsd)) } }),
      projectedUsd !== null && h("i", { class: "projected", style: { left: at(share(projectedUsd)) } }),
    ),
    h(
      "div",
      { class: "ticks" },
      [0.5, 0.8, 1].map((part) =>
        h("span", { class: part === 1 ? "full" : null, style: { left: at(part) } }, f.wholePercent(part)),
      ),
    ),
  );
}
