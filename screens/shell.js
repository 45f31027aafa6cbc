/**
 * What every screen has: its texts, the state of its connection, notices, and the way back to the log-in.
 */

import { session } from "./api.js";
import { byId, fill, h, setText } from "./dom.js";
import { clockTime, t, translate } from "./texts.js";

const NOTICE_STAYS = 7_000;

/** Put the texts in place, and say so when the session is lost. To be called once, first. */
export function openShell() {
  translate(document);
  const login = `/?next=${encodeURIComponent(location.pathname + location.search)}`;
  const banner = (/** @type {string} */ text) => {
    const place = byId("banner");
    if (!place) return;
    fill(place, h("p", {}, text, " ", h("a", { href: login }, t("log_in"))));
    place.hidden = false;
  };
  session.addEventListener("lost", () => banner(t("session_lost")));
  session.addEventListener("refused", () => banner(t("protected_elsewhere")));
  const clock = byId("clock");
  if (clock) {
    const show = () => setText(clock, clockTime(Date.now()));
    show();
    setInterval(show, 1_000);
  }
}

/** Show how fresh this screen is. */
export function showState(/** @type {import("./feed.js").State} */ state, /** @type {Date} */ since) {
  const pill = byId("state");
  pill.dataset.state = state;
  setText(pill, t(`state_${state}`));
  document.documentElement.dataset.connection = state;
  if (state === "LIVE") byId("banner").hidden = true;
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
