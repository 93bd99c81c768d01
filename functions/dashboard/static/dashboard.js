// The page with figures, and before there are any.

import { baseUrl } from "./api.js";
import { costCard, latencyCard, requestsCard } from "./chart_cards.js";
import { h } from "./dom.js";
import { batchesCard, errorsCard, providersCard, spendersCard } from "./list_cards.js";
import { failureText, picture, waitText } from "./parts.js";
import { recentCard } from "./request_card.js";
import { budgetCard, todayCards } from "./summary_cards.js";

export function dashboard(now) {
  const { state } = now;
  const charts = [costCard(now), requestsCard(now), latencyCard(now)];
  const [cost, requests, latency] = charts;
  const element = h(
    "main",
    { id: "main" },
    banner(now),
    scopeNote(now),
    h(
      "div",
      { class: "grid" },
      todayCards(now),
      h("div", { class: "third stack" }, budgetCard(now), errorsCard(now)),
      cost.element,
      requests.element,
      latency.element,
      h("div", { class: "half stack" }, spendersCard(now, "keys"), state.data.health && providersCard(now)),
      h("div", { class: "half stack" }, spendersCard(now, "users"), state.data.batches && batchesCard(now)),
      recentCard(now),
    ),
    footer(now),
  );
  return { element, draw: () => charts.forEach((chart) => chart.draw()) };
}

export function emptyDashboard(now) {
  const { t, state } = now;
  const example = [
    `curl ${baseUrl}/chat/completions \\`,
    `  -H "Authorization: Bearer $NARU_KEY" -H "Content-Type: application/json" \\`,
    `  -d '{"model": "hyperclova-x-omni", "messages": [{"role": "user", "content": "안녕하세요?"}]}'`,
  ].join("\n");
  const copy = h(
    "button",
    {
      id: "copy",
      type: "button",
      class: "quiet",
      onclick: async () => {
        await navigator.clipboard.writeText(example);
        copy.textContent = t.empty.copied;
      },
    },
    t.empty.copy,
  );
  const element = h(
    "main",
    { id: "main" },
    banner(now),
    scopeNote(now),
    h(
      "div",
      { class: "grid" },
      h(
        "section",
        { class: "card message wide", "aria-labelledby": "empty-heading" },
        picture("boat"),
        h("h2", { id: "empty-heading" }, t.empty.heading),
        h("p", {}, t.empty.lead),
        h(
          "div",
          { class: "example" },
          h("pre", { tabindex: "0", lang: "en" }, h("code", {}, example)),
          navigator.clipboard && copy,
        ),
        h("p", { class: "hint" }, t.empty.note),
      ),
      h("div", { class: "third stack" }, budgetCard(now), state.data.health && providersCard(now)),
    ),
    footer(now),
  );
  return { element };
}

function banner({ t, f, state, actions }) {
  if (!state.failure) return null;
  return h(
    "div",
    { class: "banner", role: "alert" },
    h(
      "p",
      {},
      h("strong", {}, failureText(t, state.failure)),
      " ",
      t.failures.stale(f.time(state.data.generatedAt)),
      " ",
      h("span", {}, waitText(t, state)),
    ),
    h("button", { id: "retry", type: "button", class: "quiet", onclick: actions.refresh }, t.failures.retry),
  );
}

function scopeNote({ t, state }) {
  return state.data.scope === "key" && h("p", { class: "scope" }, t.scope.key(state.data.keyName));
}

function footer({ t, f, state }) {
  return h("footer", {}, h("p", {}, t.footer(state.data.timeZone, f.wonRate)));
}
