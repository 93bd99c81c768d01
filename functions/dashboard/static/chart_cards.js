// The charts, each with its legend and its figures as a table.

import { lines, stackedBars, swatch } from "./charts.js";
import { h } from "./dom.js";
import { card } from "./parts.js";

const MAX_MODELS = 7;

function figure(id, label, ...beside) {
  const canvas = h("div", { class: "chart", id: `${id}-chart`, role: "img", "aria-label": label });
  return { canvas, content: [canvas, ...beside] };
}

function table(id, { t, state, actions }, head, rows) {
  const name = `${id}-table`;
  return h(
    "details",
    {
      class: "numbers",
      open: state.tables.has(name),
      ontoggle: (event) => actions.toggleTable(name, event.target.open),
    },
    h("summary", { id: name }, t.charts.table),
    h(
      "div",
      { class: "scroll", tabindex: "0", role: "region", "aria-labelledby": `${id}-heading ${name}` },
      h(
        "table",
        {},
        h(
          "thead",
          {},
          h(
            "tr",
            {},
            head.map((text, index) => h("th", { scope: "col", class: index ? "number" : null }, text)),
          ),
        ),
        h(
          "tbody",
          {},
          rows.map(([first, ...others]) =>
            h(
              "tr",
              {},
              h("th", { scope: "row" }, first),
              others.map((text) => h("td", { class: "number" }, text)),
            ),
          ),
        ),
      ),
    ),
  );
}

/** The models that cost most, each with a colour of its own; the rest in one. */
function modelLayers(t, days) {
  const totals = new Map();
  for (const day of days)
    for (const [model, usd] of Object.entries(day.models)) totals.set(model, (totals.get(model) ?? 0) + usd);
  const ranked = [...totals].sort((a, b) => b[1] - a[1] || (a[0] < b[0] ? -1 : 1));
  const named = ranked.length > MAX_MODELS + 1 ? ranked.slice(0, MAX_MODELS) : ranked;
  const layers = named.map(([model, total], index) => ({
    label: model,
    color: `--m${index + 1}`,
    total,
    values: days.map((day) => day.models[model] ?? 0),
  }));
  const rest = ranked.slice(named.length);
  if (rest.length) {
    layers.push({
      label: t.charts.otherModels,
      color: "--m8",
      total: rest.reduce((sum, [, usd]) => sum + usd, 0),
      values: days.map((day) => rest.reduce((sum, [model]) => sum + (day.models[model] ?? 0), 0)),
    });
  }
  return layers;
}

export function costCard(now) {
  const { t, f, state } = now;
  const { days } = state.data;
  const layers = modelLayers(t, days);
  const total = days.reduce((sum, day) => sum + day.costUsd, 0);
  const { canvas, content } = figure(
    "cost",
    t.charts.costLabel(days.length, f.money(total)),
    h(
      "ul",
      { class: "legend" },
      layers.map((layer) =>
        h(
          "li",
          {},
          swatch(layer.color),
          h("span", {}, layer.label),
          h("b", {}, f.money(layer.total)),
          h("small", {}, total > 0 ? f.wholePercent(layer.total / total) : ""),
        ),
      ),
    ),
  );
  const element = card(
    "wide",
    "cost",
    t.charts.cost,
    h("p", { class: "aside" }, `${t.charts.last(days.length)} · `, h("b", {}, f.money(total)), ` · ${f.other(total)}`),
    content,
    table(
      "cost",
      now,
      [t.charts.day, ...layers.map((layer) => layer.label), t.charts.total],
      days
        .map((day, index) => [
          f.longDay(day.date),
          ...layers.map((layer) => f.money(layer.values[index])),
          f.money(day.costUsd),
        ])
        .reverse(),
    ),
  );
  return {
    element,
    draw: () =>
      stackedBars(canvas, {
        days: days.map((day) => day.date),
        layers: layers.map((layer) => ({ ...layer, values: layer.values.map(f.shown) })),
        height: canvas.clientWidth < 500 ? 250 : 330,
        format: f.shownAsMoney,
        formatAxis: f.shownOnAxis,
        formatDay: f.day,
        formatLongDay: f.longDay,
        totalLabel: t.charts.total,
      }),
  };
}

export function requestsCard(now) {
  const { t, f, state } = now;
  const { days } = state.data;
  const total = days.reduce((sum, day) => sum + day.requests, 0);
  const errors = days.reduce((sum, day) => sum + day.errors, 0);
  const layers = [
    { label: t.charts.errors, color: "--bad", values: days.map((day) => day.errors) },
    { label: t.charts.answered, color: "--m1", values: days.map((day) => day.requests - day.errors) },
  ];
  const { canvas, content } = figure(
    "requests",
    t.charts.requestsLabel(days.length, f.count(total), f.count(errors)),
    h(
      "ul",
      { class: "legend" },
      [...layers]
        .reverse()
        .map((layer) =>
          h(
            "li",
            {},
            swatch(layer.color),
            h("span", {}, layer.label),
            h("b", {}, f.count(layer.values.reduce((sum, value) => sum + value, 0))),
          ),
        ),
    ),
  );
  const share = (day) => (day.requests ? f.percent(day.errors / day.requests) : "–");
  const element = card(
    "half",
    "requests",
    t.charts.requests,
    h(
      "p",
      { class: "aside" },
      `${t.charts.last(days.length)} · ${t.charts.errorShare} `,
      h("b", {}, total ? f.percent(errors / total) : "–"),
    ),
    content,
    table(
      "requests",
      now,
      [t.charts.day, t.requests, t.charts.errors, t.charts.errorShare],
      days.map((day) => [f.longDay(day.date), f.count(day.requests), f.count(day.errors), share(day)]).reverse(),
    ),
  );
  return {
    element,
    draw: () =>
      stackedBars(canvas, {
        days: days.map((day) => day.date),
        layers,
        format: f.count,
        formatAxis: f.countOnAxis,
        formatDay: f.day,
        formatLongDay: f.longDay,
        totalLabel: t.charts.total,
      }),
  };
}

export function latencyCard(now) {
  const { t, f, state } = now;
  const { days } = state.data;
  const parts = [
    { id: "first-token", name: t.charts.firstToken, of: (day) => day.firstTokenMs },
    { id: "latency", name: t.charts.wholeAnswer, of: (day) => day.latencyMs },
  ].map((part) => ({
    ...part,
    ...figure(part.id, t.charts.latencyLabel(part.name, days.length)),
    series: [
      { label: t.median, color: "--m1", quantile: "p50" },
      { label: t.p95, color: "--m2", quantile: "p95" },
      { label: t.p99, color: "--m3", quantile: "p99", dash: [2, 4] },
    ].map((line) => ({ ...line, values: days.map((day) => part.of(day)?.[line.quantile] ?? null) })),
  }));
  const cell = (value) => (value === null ? "–" : f.duration(value));
  const element = card(
    "half",
    "speed",
    t.charts.latency,
    h("p", { class: "aside" }, t.charts.last(days.length)),
    h(
      "div",
      { class: "pair" },
      parts.map((part) => h("div", {}, h("h3", {}, part.name), part.content)),
    ),
    h(
      "ul",
      { class: "legend" },
      parts[0].series.map((line) => h("li", {}, swatch(line.color), h("span", {}, line.label))),
    ),
    table(
      "speed",
      now,
      [t.charts.day, ...parts.flatMap((part) => part.series.map((line) => `${part.name}, ${line.label}`))],
      days
        .map((day, index) => [
          f.longDay(day.date),
          ...parts.flatMap((part) => part.series.map((line) => cell(line.values[index]))),
        ])
        .reverse(),
    ),
  );
  return {
    element,
    draw: () => {
      for (const part of parts) {
        lines(part.canvas, {
          days: days.map((day) => day.date),
          series: part.series,
          format: f.duration,
          formatAxis: f.durationOnAxis,
          formatDay: f.day,
          formatLongDay: f.longDay,
        });
      }
    },
  };
}
