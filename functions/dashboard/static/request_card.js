// Recent requests, each of which opens and shows its attempts.

import { h } from "./dom.js";
import { card, nothing } from "./parts.js";

const OUTCOME_LEVEL = { completed: "good", truncated: "warn", failed: "bad", rejected: "quiet", unknown: "warn" };

export function recentCard(now) {
  const { t, state, actions } = now;
  const { recent } = state.data;
  if (!recent.length) return card("full", "recent", t.recent.heading, nothing(t.recent.none));
  const columns = [
    ["time", t.recent.time],
    ["model", t.recent.model],
    ["key", t.recent.key],
    ["outcome", t.recent.outcome],
    ["tokens number", t.recent.tokens],
    ["first number", t.recent.firstToken],
    ["latency number", t.recent.latency],
    ["cost number", t.recent.cost],
  ];
  return card(
    "full",
    "recent",
    t.recent.heading,
    h(
      "div",
      { class: "scroll" },
      h(
        "table",
        { class: "recent", "aria-labelledby": "recent-heading" },
        h(
          "thead",
          {},
          h(
            "tr",
            {},
            columns.map(([name, text]) => h("th", { scope: "col", class: name }, text)),
          ),
        ),
        h(
          "tbody",
          {},
          recent.slice(0, state.shown).flatMap((row) => requestRows(now, row, columns.length)),
        ),
      ),
    ),
    recent.length > state.shown &&
      h("button", { id: "more", type: "button", class: "quiet more", onclick: actions.showMore }, t.recent.more),
  );
}

function requestRows(now, row, width) {
  const { t, f, state, actions } = now;
  const isToday = f.dayOf(row.at) === state.data.today.date;
  const when = isToday ? f.time(row.at) : f.dayAndTime(row.at);
  const details = h(
    "tr",
    { id: `details-${row.id}`, class: "details", hidden: !state.open.has(row.id) },
    h("td", { colspan: width }, requestDetails(now, row)),
  );
  const toggle = h(
    "button",
    {
      id: `request-${row.id}`,
      type: "button",
      class: "toggle",
      "aria-expanded": String(state.open.has(row.id)),
      "aria-controls": `details-${row.id}`,
      "aria-label": t.recent.details(when, row.modelAsked),
    },
    h("i", { class: "arrow", "aria-hidden": "true" }),
    when,
  );
  const flip = () => {
    actions.toggleRequest(row.id);
    details.hidden = !state.open.has(row.id);
    toggle.setAttribute("aria-expanded", String(!details.hidden));
  };
  const retried = row.attempts.length > 1;
  const summary = h(
    "tr",
    {
      class: "summary",
      onclick: (event) => {
        // The whole row opens, but not under somebody who marks text to copy it.
        if (event.target.closest("button") === toggle || String(getSelection()) === "") flip();
      },
    },
    h("td", { class: "time" }, toggle),
    h(
      "td",
      { class: "model" },
      h("span", { class: "name" }, row.modelAsked),
      row.modelServed && row.modelServed !== row.modelAsked && h("small", {}, ` → ${row.modelServed}`),
    ),
    h("td", { class: "key" }, h("span", { class: "name" }, row.keyName)),
    h(
      "td",
      { class: "outcome" },
      h("span", { class: `badge ${OUTCOME_LEVEL[row.outcome] ?? "quiet"}` }, t.outcomes[row.outcome] ?? row.outcome),
      retried && h("span", { class: "times", title: t.recent.attempts }, `×${row.attempts.length}`),
    ),
    h("td", { class: "tokens number" }, `${f.count(row.promptTokens)} / ${f.count(row.completionTokens)}`),
    h("td", { class: "first number" }, row.firstTokenMs === null ? "–" : f.duration(row.firstTokenMs)),
    h("td", { class: "latency number" }, f.duration(row.latencyMs)),
    h("td", { class: "cost number" }, f.fine(row.costUsd)),
  );
  return [summary, details];
}

function requestDetails({ t, f }, row) {
  const facts = [
    [t.recent.requestId, h("code", {}, row.id)],
    [t.recent.time, f.fullTime(row.at)],
    [t.recent.asked, row.modelAsked],
    row.modelServed && row.modelServed !== row.modelAsked && [t.recent.served, row.modelServed],
    row.deployment && [t.recent.deployment, row.deployment],
    [t.recent.key, row.keyName],
    row.endUser && [t.recent.endUser, row.endUser],
    row.errorCode && [t.recent.error, h("code", {}, row.errorCode)],
    row.batchId && [t.recent.batch, h("code", {}, row.batchId)],
    [t.recent.tokens, tokensText(t, f, row)],
    [t.recent.firstToken, row.firstTokenMs === null ? "–" : f.duration(row.firstTokenMs)],
    [t.recent.latency, f.duration(row.latencyMs) + (row.stream ? ` · ${t.recent.stream}` : "")],
    [t.recent.cost, `${f.fine(row.costUsd)} · ${f.fineOther(row.costUsd)}`],
  ].filter(Boolean);
  return [
    h(
      "dl",
      { class: "facts" },
      facts.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))),
    ),
    row.attempts.length > 0 && h("h3", {}, t.recent.attempts),
    row.attempts.length > 0 && attemptList(t, f, row),
  ];
}

function tokensText(t, f, row) {
  return [
    `${f.count(row.promptTokens)} / ${f.count(row.completionTokens)}`,
    row.cachedTokens > 0 && `${t.recent.cached} ${f.count(row.cachedTokens)}`,
    row.reasoningTokens > 0 && `${t.recent.reasoning} ${f.count(row.reasoningTokens)}`,
    row.usageSource === "estimated" && t.recent.estimated,
  ]
    .filter(Boolean)
    .join(" · ");
}

/** Each call upstream, on the request's own time. */
function attemptList(t, f, row) {
  let elapsed = 0;
  const calls = row.attempts.map((attempt) => {
    const began = elapsed + attempt.waitedMs;
    elapsed = began + attempt.durationMs;
    return { ...attempt, began };
  });
  const whole = Math.max(row.latencyMs, elapsed, 1);
  return h(
    "ol",
    { class: "attempts" },
    calls.map((call) => {
      const isOk = call.result === "ok";
      return h(
        "li",
        {},
        h("span", { class: "name" }, call.deployment),
        h("span", { class: `badge ${isOk ? "good" : "bad"}` }, isOk ? t.recent.ok : call.result),
        h(
          "small",
          {},
          [
            t.recent.why[call.why || "first"] ?? call.why,
            call.waitedMs > 0 && t.recent.waited(f.duration(call.waitedMs)),
            call.maybeBilled && t.recent.maybeBilled,
          ]
            .filter(Boolean)
            .join(" · "),
        ),
        h("span", { class: "number" }, f.duration(call.durationMs)),
        h(
          "span",
          { class: "span", "aria-hidden": "true" },
          h("i", {
            class: isOk ? "good" : "bad",
            style: {
              left: `${(call.began / whole) * 100}%`,
              width: `${Math.max(0.6, (call.durationMs / whole) * 100)}%`,
            },
          }),
        ),
      );
    }),
  );
}
