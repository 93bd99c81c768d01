// What is shown instead of figures: signing in, waiting, and failing before there are any.

import { h } from "./dom.js";
import { failureText, picture, waitText } from "./parts.js";

const KEY_FORM = /^[\x21-\x7e]{8,200}$/;

export function signIn({ t, state, actions }) {
  const why = state.signInFailure;
  const isRefused = typeof why === "string";
  const input = h("input", {
    id: "key",
    type: "password",
    autocomplete: "off",
    autocapitalize: "none",
    spellcheck: "false",
    required: true,
    "aria-describedby": why ? "sign-in-failure key-hint" : "key-hint",
    "aria-invalid": isRefused ? "true" : null,
    disabled: state.signingIn,
    autofocus: true,
  });
  input.value = state.typed;
  const show = h(
    "button",
    {
      id: "show-key",
      type: "button",
      class: "quiet",
      "aria-pressed": "false",
      disabled: state.signingIn,
      onclick: () => {
        const isShown = input.type === "text";
        input.type = isShown ? "password" : "text";
        show.textContent = isShown ? t.signIn.show : t.signIn.hide;
        show.setAttribute("aria-pressed", String(!isShown));
      },
    },
    t.signIn.show,
  );
  const element = h(
    "main",
    { id: "main", class: "sign-in" },
    h(
      "form",
      {
        class: "card",
        method: "post", // the policy forbids sending it; without the script no key must get into an address
        novalidate: true,
        onsubmit: (event) => {
          event.preventDefault();
          const key = input.value.trim();
          if (!key) actions.refuse("empty", "");
          else if (!KEY_FORM.test(key) || !key.startsWith("sk-naru-")) actions.refuse("malformed", input.value);
          else actions.signIn(key);
        },
      },
      h("h2", {}, t.signIn.heading),
      h("p", { class: "lead" }, t.signIn.lead),
      h("label", { for: "key" }, t.signIn.label),
      h("div", { class: "field" }, input, show),
      why && h("p", { id: "sign-in-failure", class: "failure", role: "alert" }, failureText(t, why)),
      h(
        "button",
        { id: "sign-in", type: "submit", class: "primary", disabled: state.signingIn },
        state.signingIn ? t.signIn.busy : t.signIn.submit,
      ),
      h("p", { id: "key-hint", class: "hint" }, t.signIn.hint, " ", t.signIn.keyOfApp),
    ),
  );
  return { element };
}

export function skeleton({ t }) {
  const blocks = ["kpi", "kpi", "kpi", "kpi", "third", "wide", "half", "half"].map((size) =>
    h("div", { class: `card bone ${size}` }, h("i", {}), h("i", {}), h("i", {})),
  );
  return {
    element: h(
      "main",
      { id: "main", "aria-busy": "true" },
      h("p", { class: "hidden", role: "status" }, t.status.loading),
      h("div", { class: "grid", "aria-hidden": "true" }, blocks),
    ),
  };
}

export function trouble({ t, state, actions }) {
  return {
    element: h(
      "main",
      { id: "main", class: "sign-in" },
      h(
        "section",
        { class: "card message", role: "alert" },
        picture("cloud"),
        h("h2", {}, t.failures.heading),
        h("p", {}, failureText(t, state.failure)),
        h("p", { class: "hint" }, waitText(t, state)),
        h("button", { id: "retry", type: "button", class: "primary", onclick: actions.refresh }, t.failures.retry),
      ),
    ),
  };
}
