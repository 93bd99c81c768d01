// The bar on top: how old the figures are, currency, language, theme.

import { h } from "./dom.js";

export function header({ t, f, state, actions, refreshS }) {
  const root = document.documentElement;
  return h(
    "header",
    { id: "page-header", class: "top" },
    h("a", { class: "skip", href: "#main" }, t.skip),
    h(
      "div",
      { class: "brand" },
      logo(),
      h("h1", {}, h("span", { lang: "ko" }, "나루"), " ", h("span", { lang: "en" }, "Naru")),
      h("span", { class: "what" }, t.title),
    ),
    state.key && !state.signingIn && freshness({ t, f, state, actions, refreshS }),
    h(
      "div",
      { class: "switches" },
      choice(
        "currency",
        t.currency,
        root.dataset.currency,
        [
          ["krw", "₩", "₩ KRW"],
          ["usd", "$", "$ USD"],
        ],
        actions,
      ),
      choice(
        "language",
        t.language,
        root.lang,
        [
          ["ko", "한국어", null, "ko"],
          ["en", "English", null, "en"],
        ],
        actions,
      ),
      theme(t, root.dataset.theme ?? "system", actions),
      state.key &&
        !state.signingIn &&
        h("button", { id: "sign-out", class: "quiet", type: "button", onclick: actions.signOut }, t.signOut),
    ),
  );
}

function logo() {
  const boat = h("svg", { viewBox: "0 0 32 32", class: "logo", "aria-hidden": "true", focusable: "false" });
  boat.append(
    h("rect", { width: 32, height: 32, rx: 8, class: "logo-ground" }),
    h("path", { d: "M6 17h20l-3.2 5.2H9.4z", class: "logo-hull" }),
    h("path", { d: "M15 6v9h-6.5z", class: "logo-water" }),
    h("path", { d: "M17 8v7h5.5z", class: "logo-hull" }),
    h("path", {
      d: "M5 25.6c2.2 0 2.2-1.4 4.4-1.4s2.2 1.4 4.4 1.4 2.2-1.4 4.4-1.4 2.2 1.4 4.4 1.4 2.2-1.4 4.4-1.4",
      class: "logo-wave",
    }),
  );
  return boat;
}

function choice(name, label, current, options, actions) {
  return h(
    "div",
    { class: "choice", role: "group", "aria-label": label },
    options.map(([value, text, spoken, lang]) =>
      h(
        "button",
        {
          id: `${name}-${value}`,
          type: "button",
          lang,
          "aria-label": spoken,
          "aria-pressed": String(value === current),
          onclick: () => actions.prefer(name, value),
        },
        text,
      ),
    ),
  );
}

function theme(t, current, actions) {
  const next = { system: "light", light: "dark", dark: "system" }[current];
  const label = `${t.theme}: ${t.themes[current]}`;
  const picture = h("svg", { viewBox: "0 0 20 20", "aria-hidden": "true", focusable: "false" });
  const paths = {
    system: ["M3 4.5h14v9H3z", "M7 16.5h6"],
    light: [
      "M10 6.6a3.4 3.4 0 1 0 0 6.8a3.4 3.4 0 0 0 0-6.8",
      "M10 1.8v1.8M10 16.4v1.8M1.8 10h1.8M16.4 10h1.8M4.2 4.2l1.3 1.3M14.5 14.5l1.3 1.3M4.2 15.8l1.3-1.3M14.5 5.5l1.3-1.3",
    ],
    dark: ["M16.5 11.8A7 7 0 0 1 8.2 3.5a7 7 0 1 0 8.3 8.3z"],
  };
  picture.append(...paths[current].map((d) => h("path", { d, class: "stroke" })));
  return h(
    "button",
    {
      id: "theme",
      class: "icon",
      type: "button",
      title: label,
      "aria-label": label,
      onclick: () => actions.prefer("theme", next),
    },
    picture,
  );
}

function freshness({ t, f, state, actions, refreshS }) {
  const text = state.busy
    ? state.data
      ? t.status.refreshing
      : t.status.loading
    : state.data
      ? t.status.updated(f.time(state.data.generatedAt))
      : "";
  return h(
    "div",
    { class: "freshness" },
    h("i", { class: `dot ${state.failure ? "bad" : state.busy ? "busy" : "good"}`, "aria-hidden": "true" }),
    h("span", { title: t.status.every(refreshS) }, text),
    h(
      "button",
      {
        id: "refresh",
        class: "icon",
        type: "button",
        title: t.status.refresh,
        "aria-label": t.status.refresh,
        onclick: actions.refresh,
      },
      (() => {
        const picture = h("svg", { viewBox: "0 0 20 20", "aria-hidden": "true", focusable: "false" });
        picture.append(h("path", { d: "M16.2 10a6.2 6.2 0 1 1-1.9-4.5M16.6 2.6v3.6H13", class: "stroke" }));
        return picture;
      })(),
    ),
  );
}
