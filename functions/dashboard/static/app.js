// The page: signing in, fetching, and what is shown when. What it looks like is in dashboard.js and visits.js.

import { api, Failure } from "./api.js";
import { removeCharts } from "./charts.js";
import { dashboard, emptyDashboard } from "./dashboard.js";
import { h, replaceContent } from "./dom.js";
import { makeFormats } from "./formats.js";
import { header } from "./header.js";
import { texts } from "./texts.js";
import { signIn, skeleton, trouble } from "./visits.js";

const REFRESH_S = 60;
const MAX_WAIT_S = 600;
const KEY = "naru.key";

const root = document.documentElement;
const app = document.getElementById("app");

const state = {
  key: storedKey(),
  data: null,
  failure: null,
  signInFailure: null,
  signingIn: false,
  typed: "", // what stands in the field, until it has opened
  busy: false,
  failures: 0,
  open: new Set(), // requests whose details are shown
  tables: new Set(), // charts whose table is shown
  shown: 10,
};

// Where a browser allows no storage, the key is in memory only and a reload asks for it again.
function storedKey() {
  try {
    return sessionStorage.getItem(KEY);
  } catch {
    return null;
  }
}

function storeKey(key) {
  try {
    if (key === null) sessionStorage.removeItem(KEY);
    else sessionStorage.setItem(KEY, key);
  } catch {
    // see above
  }
}

let timer = 0;
let dueAt = 0;
let running = null;

// ── What is shown ─────────────────────────────────────────────────────────────────────────────────────────

function words() {
  return texts[root.lang] ?? texts.en;
}

function view() {
  const { data } = state;
  const settings = {
    language: root.lang,
    currency: root.dataset.currency,
    timeZone: data?.timeZone ?? "Asia/Seoul",
    krwPerUsd: data?.krwPerUsd ?? 1,
  };
  return { t: words(), f: makeFormats(settings), state, actions, refreshS: REFRESH_S };
}

function render() {
  const now = view();
  document.title = `${now.t.title} · Naru`;
  removeCharts();
  const parts = [];
  if (!state.key || state.signingIn) parts.push(signIn(now));
  else if (state.data) parts.push(state.data.isEmpty ? emptyDashboard(now) : dashboard(now));
  else if (state.failure) parts.push(trouble(now));
  else parts.push(skeleton(now));
  replaceContent(app, header(now), ...parts.map((part) => part.element));
  for (const part of parts) part.draw?.();
}

/** Only the line that says how old the figures are: a table that is being read stays as it is. */
function renderStatus() {
  const old = document.getElementById("page-header");
  if (!old) return render();
  const had = document.activeElement?.id;
  old.replaceWith(header(view()));
  if (had) document.getElementById(had)?.focus({ preventScroll: true });
}

// ── Fetching: one request at a time, none while nobody looks ──────────────────────────────────────────────

async function refresh() {
  if (!state.key || running) return;
  clearTimeout(timer);
  const controller = new AbortController();
  running = controller;
  state.busy = true;
  renderStatus();
  const { raw: before, failure: hadFailure } = state;
  try {
    const { data, raw } = await api.summary(state.key, controller.signal);
    if (running !== controller) return;
    Object.assign(state, { data, raw, failure: null, failures: 0, signingIn: false, signInFailure: null, typed: "" });
  } catch (error) {
    if (running !== controller) return;
    if (!(error instanceof Failure)) throw error;
    failed(error);
  } finally {
    if (running === controller) {
      running = null;
      state.busy = false;
    }
  }
  schedule();
  const isTheSame = before !== undefined && before === state.raw && !state.failure && !hadFailure;
  if (isTheSame) renderStatus();
  else render();
}

function failed(failure) {
  const wasIn = state.data !== null;
  if (failure.kind === "refused" || (failure.kind === "forbidden" && !wasIn)) {
    signOut(failure.kind === "forbidden" ? "forbidden" : wasIn ? "expired" : "refused");
  } else if (state.signingIn) {
    // Not in yet: say it beside the field, where a person can do something about it.
    signOut(failure);
  } else {
    state.failure = failure;
    state.failures += 1;
  }
}

function schedule() {
  clearTimeout(timer);
  if (!state.key) return;
  const backOff = Math.min(MAX_WAIT_S, REFRESH_S * 2 ** Math.max(0, state.failures - 1));
  state.waitS = Math.max(backOff, state.failure?.retryAfterS ?? 0);
  dueAt = Date.now() + state.waitS * 1000;
  if (!document.hidden) timer = setTimeout(refresh, state.waitS * 1000);
}

document.addEventListener("visibilitychange", () => {
  clearTimeout(timer);
  if (!document.hidden && state.key && !running) timer = setTimeout(refresh, Math.max(0, dueAt - Date.now()));
});

function signOut(why = null) {
  running?.abort();
  running = null;
  clearTimeout(timer);
  storeKey(null);
  Object.assign(state, { key: null, data: null, raw: undefined, failure: null, failures: 0, busy: false });
  Object.assign(state, { signingIn: false, signInFailure: why, shown: 10 });
  state.open.clear();
  render();
  document.getElementById("key")?.focus();
}

// ── What a person does ────────────────────────────────────────────────────────────────────────────────────

function prefer(name, value) {
  if (name === "language") root.lang = value;
  else if (name === "theme" && value === "system") delete root.dataset.theme;
  else root.dataset[name] = value;
  try {
    localStorage.setItem(`naru.${name}`, value);
  } catch {
    // forbidden: it holds for this page
  }
  render();
}

const actions = {
  signIn(key) {
    Object.assign(state, { key, typed: key, signingIn: true, signInFailure: null });
    storeKey(key);
    render();
    refresh();
  },
  refuse(why, typed) {
    Object.assign(state, { typed, signInFailure: why });
    render();
    document.getElementById("key")?.focus();
  },
  signOut() {
    state.typed = "";
    signOut();
  },
  refresh,
  prefer,
  toggleRequest(id) {
    if (!state.open.delete(id)) state.open.add(id);
  },
  toggleTable(id, isOpen) {
    if (isOpen) state.tables.add(id);
    else state.tables.delete(id);
  },
  showMore() {
    const first = state.shown;
    state.shown += 20;
    render();
    document.getElementById(`request-${state.data.recent[first]?.id}`)?.focus();
  },
};

// The system's theme may change at sunset.
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", render);
window.addEventListener("pageshow", (event) => event.persisted && refresh());

render();
if (state.key) refresh();
