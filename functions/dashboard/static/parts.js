// What the sections are made of.

import { h } from "./dom.js";

export function card(size, id, heading, ...children) {
  return h(
    "section",
    { class: `card ${size}`, id, "aria-labelledby": `${id}-heading` },
    h("h2", { id: `${id}-heading` }, heading),
    children,
  );
}

export function fact(name, ...values) {
  return h(
    "div",
    {},
    h("dt", {}, name),
    h(
      "dd",
      {},
      values.map((value, index) => (index ? h("small", {}, " ", value) : value)),
    ),
  );
}

export function nothing(text) {
  return h("p", { class: "nothing" }, text);
}

export function picture(kind) {
  const drawing = h("svg", { viewBox: "0 0 96 56", class: "picture", "aria-hidden": "true", focusable: "false" });
  const water = "M4 46c5 0 5-3 10-3s5 3 10 3 5-3 10-3 5 3 10 3 5-3 10-3 5 3 10 3 5-3 10-3 5 3 10 3 5-3 10-3";
  const shapes = {
    boat: ["M28 34h40l-6 9H34z", "M46 8v22H30z", "M50 13v17h13z"],
    cloud: ["M30 34a10 10 0 0 1 2-20a14 14 0 0 1 26-2a11 11 0 0 1 8 22z"],
  };
  drawing.append(
    ...shapes[kind].map((d) => h("path", { d, class: "shape" })),
    h("path", { d: water, class: "stroke" }),
  );
  return drawing;
}

export function failureText(t, failure) {
  if (typeof failure === "string") return t.signIn[failure] ?? t.failures[failure];
  return failure.kind === "server" ? t.failures.server(failure.requestId) : t.failures[failure.kind];
}

/** When the page will ask again. */
export function waitText(t, state) {
  return t.status.again(String(Math.round(state.waitS)));
}
