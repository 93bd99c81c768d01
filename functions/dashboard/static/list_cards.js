// Who spends it, what went wrong, how the providers are, how far the batches are.

import { h } from "./dom.js";
import { card, nothing } from "./parts.js";

export function spendersCard({ t, f, state }, kind) {
  const spenders = state.data[kind];
  const heading = t[kind];
  if (!spenders.length) return card("", kind, heading, nothing(kind === "keys" ? t.noKeys : t.noUsers));
  const most = Math.max(...spenders.map((spender) => spender.costUsd));
  return card(
    "",
    kind,
    heading,
    h(
      "div",
      { class: "scroll" },
      h(
        "table",
        { class: "spenders", "aria-labelledby": `${kind}-heading` },
        h(
          "thead",
          {},
          h(
            "tr",
            {},
            h("th", { scope: "col" }, kind === "keys" ? t.key : t.user),
            h("th", { scope: "col", class: "number" }, t.requests),
            h("th", { scope: "col", class: "number" }, t.cost),
          ),
        ),
        h(
          "tbody",
          {},
          spenders.map((spender) =>
            h(
              "tr",
              {},
              h(
                "th",
                { scope: "row" },
                h("span", { class: "name" }, spender.name, spender.beside && h("small", {}, ` ${spender.beside}`)),
                h(
                  "span",
                  { class: "bar", "aria-hidden": "true" },
                  h("i", { style: { width: most > 0 ? `${(spender.costUsd / most) * 100}%` : "0" } }),
                ),
                spender.budgetUsd > 0 &&
                  h(
                    "small",
                    { class: spender.spentUsd / spender.budgetUsd >= 0.9 ? "warn-text" : null },
                    t.ofBudget(f.wholePercent(spender.spentUsd / spender.budgetUsd)),
                  ),
              ),
              h("td", { class: "number" }, f.count(spender.requests)),
              h(
                "td",
                { class: "number" },
                h("b", {}, f.money(spender.costUsd)),
                h("small", {}, f.other(spender.costUsd)),
              ),
            ),
          ),
        ),
      ),
    ),
  );
}

export function errorsCard({ t, f, state }) {
  const { errors } = state.data;
  if (!errors.length) return card("", "errors", t.errorsHeading, nothing(t.noErrorsThisMonth));
  const most = Math.max(...errors.map((error) => error.count));
  return card(
    "",
    "errors",
    t.errorsHeading,
    h(
      "ul",
      { class: "counts" },
      errors.map((error) =>
        h(
          "li",
          {},
          h("code", {}, error.code),
          h("b", {}, f.count(error.count)),
          h(
            "span",
            { class: "bar bad", "aria-hidden": "true" },
            h("i", { style: { width: `${(error.count / most) * 100}%` } }),
          ),
        ),
      ),
    ),
  );
}

const HEALTH_LEVEL = { closed: "good", half_open: "warn", open: "bad" };

export function providersCard({ t, f, state }) {
  const { health } = state.data;
  return card(
    "",
    "providers",
    t.providers.heading,
    health.length
      ? h(
          "ul",
          { class: "providers" },
          health.map((each) => {
            const level = HEALTH_LEVEL[each.state] ?? "warn";
            return h(
              "li",
              {},
              h("i", { class: `dot ${level}`, "aria-hidden": "true" }),
              h("span", { class: "name" }, each.deployment),
              h("span", { class: `${level}-text` }, t.providers[each.state] ?? each.state),
              each.retryAt && h("small", {}, t.providers.next(f.time(each.retryAt))),
            );
          }),
        )
      : nothing(t.providers.none),
    h("p", { class: "hint" }, t.providers.note),
  );
}

const BATCH_LEVEL = { completed: "good", failed: "bad", expired: "bad", cancelled: "quiet", cancelling: "warn" };

export function batchesCard({ t, f, state }) {
  const { batches } = state.data;
  if (!batches.length) return card("", "batches", t.batches.heading, nothing(t.batches.none));
  return card(
    "",
    "batches",
    t.batches.heading,
    h(
      "ul",
      { class: "batches" },
      batches.map((batch) => {
        const ended = batch.completed + batch.failed;
        const text = [
          t.batches.progress(f.count(ended), f.count(batch.total)),
          batch.failed > 0 && t.batches.failed(f.count(batch.failed)),
        ]
          .filter(Boolean)
          .join(" · ");
        const part = (count) => `${batch.total ? (count / batch.total) * 100 : 0}%`;
        return h(
          "li",
          {},
          h("span", { class: "name", title: batch.id }, batch.id),
          h(
            "span",
            { class: `badge ${BATCH_LEVEL[batch.status] ?? "busy"}` },
            t.batches.statuses[batch.status] ?? batch.status,
          ),
          h(
            "span",
            {
              class: "progress",
              role: "progressbar",
              "aria-label": batch.id,
              "aria-valuemin": "0",
              "aria-valuemax": batch.total,
              "aria-valuenow": ended,
              "aria-valuetext": text,
            },
            h("i", { class: "done", style: { width: part(batch.completed) } }),
            h("i", { class: "failed", style: { width: part(batch.failed) } }),
          ),
          h("small", {}, text),
          h("small", { class: "number" }, f.dayAndTime(batch.createdAt)),
        );
      }),
    ),
  );
}
