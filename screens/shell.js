/**
 * What every screen has: its texts, the state of its connection, notices, and the way back to the log-in.
 */

import { call, session } from "./api.js";
import { byId, fill, h, setText } from "./dom.js";
import { clockTime, t, translate } from "./texts.js";

const NOTICE_STAYS = 7_000;
const RELOAD_LOOKS = 500;
const AT_REST = 2_000; // milliseconds since the last touch, after which a page may be loaded anew …
const LEFT_ALONE = 30_000; // … or where something is open, or being typed

/**
 * @typedef {{name: string | null, role: string, kind: "local" | "session" | "device", may: string[]}} Me
 * @type {Me | null} who uses this screen, as the server said last; null before it ever did
 */
let me = null;

/** Whether who uses this screen may do something: what would be refused isn't offered. */
export const may = (/** @type {string} */ what) => !me || me.may.includes(what);

/**
 * Put the texts in place, say so when the session is lost, learn who asks. To be called once, first.
 *
 * @returns {Promise<Me | null>} who asks; null where the server doesn't say
 */
export function openShell() {
  translate(document);
  me = remembered("me", null);
  keepPages();
  const login = `/?next=${encodeURIComponent(location.pathname + location.search)}`;
  const banner = (/** @type {string} */ text) => {
    const place = byId("banner");
    if (!place) return;
    fill(place, h("p", {}, text, " ", h("a", { href: login }, t("log_in"))));
    place.hidden = false;
  };
  session.addEventListener("lost", () => byId("login") || banner(t("session_lost")));
  session.addEventListener("refused", () => banner(t("protected_elsewhere")));
  const clock = byId("clock");
  if (clock) {
    const show = () => setText(clock, clockTime(Date.now()));
    show();
    setInterval(show, 1_000);
  }
  return learnWhoAsks().catch(() => null);
}

async function learnWhoAsks() {
  me = (await call("GET", "/api/me")).body;
  remember("me", me);
  if (me?.kind === "device") call("POST", "/api/session").catch(() => {}); // its cookie lasts longer from now on
  return me;
}

/**
 * Let worker.js keep the pages on this device, so that they open without the server, too. When it has taken in others,
 * after an upgrade, this page is loaded anew once nobody is at it. Browsers offer this over HTTPS and on
 * localhost only.
 */
async function keepPages() {
  const container = navigator.serviceWorker;
  if (!container) return;
  let kept = Boolean(container.controller);
  let touched = -Infinity;
  for (const touch of ["pointerdown", "keydown"]) addEventListener(touch, () => (touched = performance.now()), true);
  const reload = () => {
    const rest = document.querySelector("dialog[open], input:focus") ? LEFT_ALONE : AT_REST;
    if (performance.now() - touched > rest) location.reload();
  };
  container.addEventListener("controllerchange", () => {
    if (kept) setInterval(reload, RELOAD_LOOKS);
    kept = true;
  });
  const registration = await container.register("/screens/worker.js", { scope: "/" }).catch(() => null);
  seekUpgrade = () => registration?.update().catch(() => {});
}

/** Ask whether there are other pages now: a server that was away may have come back as another. */
let seekUpgrade = () => {};

/** Show how fresh this screen is. */
export function showState(/** @type {import("./feed.js").State} */ state, /** @type {Date} */ since) {
  const pill = byId("state");
  pill.dataset.state = state;
  setText(pill, t(`state_${state}`));
  document.documentElement.dataset.connection = state;
  if (state === "LIVE") {
    byId("banner").hidden = true;
    seekUpgrade();
  }
  const alarm = byId("stale");
  alarm.hidden = state !== "STALE";
  setText(alarm, state === "STALE" ? t("stale_since", { time: clockTime(since.getTime()) }) : "");
}

/**
 * Tell something, for a while, with something that can be done about it.
 *
 * @param {string} text
 * @param {{kind?: "info" | "error", about?: number, label?: string, act?: () => void}} [options] a notice about the same
 *   thing as an earlier one takes its place
 */
export function notify(text, { kind = "info", about, label, act } = {}) {
  const place = byId("notices");
  for (const earlier of [...place.children]) if (about !== undefined && earlier.dataset.about === String(about)) earlier.remove();
  const notice = h("div", { class: "notice", data: { kind, about } }, h("span", {}, text));
  const leave = () => notice.remove();
  if (act) notice.append(h("button", { class: "button small", onclick: () => (leave(), act()) }, label));
  place.append(notice);
  while (place.children.length > 3) place.firstElementChild.remove();
  setTimeout(leave, NOTICE_STAYS);
}

/**
 * Ask for a yes, with a reason if need be. Resolves with the reason, or null for a no.
 *
 * @param {string} question
 * @param {{yes: string, reason?: string}} options `reason` is the label of the field to give one
 * @returns {Promise<string | null>}
 */
export function ask(question, { yes, reason }) {
  const field = h("input", { name: "reason", maxLength: 280, autocomplete: "off" });
  const dialog = /** @type {HTMLDialogElement} */ (
    h("dialog", { class: "dialog", "aria-label": question },
      h("form", { method: "dialog", class: "stack" },
        h("p", { class: "question" }, question),
        reason && h("label", { class: "field" }, reason, field),
        h("div", { class: "row end" },
          h("button", { class: "button", type: "button", onclick: () => dialog.close() }, t("no")),
          h("button", { class: "button danger", value: "yes" }, yes))))
  );
  document.body.append(dialog);
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(dialog.returnValue === "yes" ? /** @type {HTMLInputElement} */ (field).value.trim() : null);
    });
  });
}

/** What a screen remembers on this device; `fallback` where there is nothing yet. */
export function remembered(/** @type {string} */ name, /** @type {any} */ fallback) {
  try {
    return JSON.parse(localStorage.getItem(`bistro92.${name}`) ?? "") ?? fallback;
  } catch {
    return fallback;
  }
}

export function remember(/** @type {string} */ name, /** @type {any} */ value) {
  localStorage.setItem(`bistro92.${name}`, JSON.stringify(value));
}
