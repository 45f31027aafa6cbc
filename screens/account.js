/**
 * Accounts: people who log in, and devices that are paired with a link, shown as a QR code. A manager sees all of them,
 * everybody else who has logged in their own.
 */

import { call } from "./api.js";
import { byId, fill, h, setText } from "./dom.js";
import { drawCode } from "./qr.js";
import { ask, may, notify, openShell } from "./shell.js";
import { shortTime, t } from "./texts.js";

/** @typedef {{username: string, role: string, created_at: string}} User */
/** @typedef {import("./shell.js").Me} Me */
/** @typedef {{id: number, name: string, role: string, created_at: string, expires_at: string | null, token?: string}} Token */

const ROLES = ["kitchen", "pos", "viewer", "manager"];
const PAGE_OF = /** @type {Record<string, string>} */ ({ kitchen: "/kitchen", pos: "/pos", viewer: "/ready", manager: "/" });
const LOOPBACK = ["localhost", "127.0.0.1", "[::1]"];

/** @type {Me | null} */
let me = null;

openShell().then((known) => {
  me = known;
  if (!me) return block(t("no_answer"));
  byId("blocked").hidden = true;
  const manages = may("manage") && me.kind !== "local";
  byId("own-panel").hidden = me.kind !== "session" || manages;
  setText(byId("own-title"), t("you_are", { name: me.name, role: t(`role_${me.role}`) }));
  byId("devices-panel").hidden = byId("people-panel").hidden = !manages;
  if (manages) show();
  else if (me.kind === "local") block(t("first_needed"));
  else if (me.kind === "device") block(t("manager_only"));
});

for (const id of ["device-role", "person-role"]) fill(byId(id), ROLES.map((role) => h("option", { value: role }, t(`role_${role}`))));

async function show() {
  await attempt(async () => {
    const [tokens, users] = await Promise.all(["/api/tokens", "/api/users"].map((path) => call("GET", path)));
    fill(byId("devices"), tokens.body.length ? tokens.body.map(device) : h("li", { class: "muted" }, t("no_devices")));
    fill(byId("people"), users.body.map(person));
  });
}

/** Say why nothing can be done here. */
function block(/** @type {string} */ text) {
  fill(byId("blocked"), text, " ", h("a", { href: "/" }, t("home")));
  byId("blocked").hidden = false;
}

function person(/** @type {User} */ user) {
  const own = me?.kind === "session" && me.name === user.username;
  return h("li", {},
    h("div", { class: "grow" },
      h("b", {}, user.username, own && ` ${t("own_mark")}`),
      h("span", { class: "muted" }, `${t(`role_${user.role}`)} · ${t("since", { time: shortTime(user.created_at) })}`)),
    h("button", { class: "button small", "aria-label": t("password_of", { name: user.username }), onclick: () => changePassword(user.username, own) }, t("password")),
    h("button", { class: "button small", "aria-label": t("remove_name", { name: user.username }), onclick: () => removePerson(user) }, t("remove")));
}

async function removePerson(/** @type {User} */ user) {
  if ((await ask(t("remove_question", { name: user.username }), { yes: t("remove") })) === null) return;
  await attempt(() => call("DELETE", pathOf(user.username)));
  show();
}

const pathOf = (/** @type {string} */ username) => `/api/users/${encodeURIComponent(username)}`;

/** Ask for a new password; for one's own, for the old one, too. */
function changePassword(/** @type {string} */ username, /** @type {boolean} */ own) {
  setText(byId("password-title"), t("password_of", { name: username }));
  setText(byId("password-problem"), "");
  byId("password-form").reset();
  byId("old-field").hidden = !own;
  byId("old").required = own;
  byId("password-form").onsubmit = async (/** @type {SubmitEvent} */ event) => {
    event.preventDefault();
    const wanted = { password: byId("new").value, ...(own && { old_password: byId("old").value }) };
    try {
      await call("PATCH", pathOf(username), wanted);
    } catch (/** @type {any} */ refusal) {
      return setText(byId("password-problem"), refusal.code === "wrong_credentials" ? t("wrong_password") : refusal.message || t("no_answer"));
    }
    byId("password").close();
    notify(t("password_changed", { name: username }));
  };
  byId("password").showModal();
}
byId("password-close").addEventListener("click", () => byId("password").close());
byId("own-password").addEventListener("click", () => changePassword(me?.name ?? "", true));

function device(/** @type {Token} */ token) {
  return h("li", {},
    h("div", { class: "grow" },
      h("b", {}, token.name),
      h("span", { class: "muted" }, [t(`role_${token.role}`), token.expires_at && t("until", { time: shortTime(token.expires_at) })].filter(Boolean).join(" · "))),
    h("button", { class: "button small", "aria-label": t("remove_name", { name: token.name }), onclick: () => remove(token) }, t("remove")));
}

async function remove(/** @type {Token} */ token) {
  if ((await ask(t("remove_question", { name: token.name }), { yes: t("remove") })) === null) return;
  await attempt(() => call("DELETE", `/api/tokens/${token.id}`));
  show();
}

/** Do something; where it is refused, say why. Resolves with whether it was done. */
async function attempt(/** @type {() => Promise<any>} */ act) {
  try {
    await act();
    return true;
  } catch (/** @type {any} */ refusal) {
    notify(t("failed", { why: refusal.message || t("no_answer") }), { kind: "error" });
    return false;
  }
}

function showLink(/** @type {Token} */ token, /** @type {string} */ station) {
  const to = PAGE_OF[token.role] + (station ? `?station=${encodeURIComponent(station)}` : "");
  const link = `${location.origin}/#${new URLSearchParams({ pair: token.token ?? "", name: token.name, role: token.role, to })}`;
  setText(byId("link-title"), t("link_title", { name: token.name }));
  byId("link-text").value = link;
  byId("link-local").hidden = !LOOPBACK.includes(location.hostname);
  fill(byId("qr"), drawCode(link));
  byId("link").showModal();
}

const showStation = () => (byId("device-station-field").hidden = byId("device-role").value !== "kitchen");
byId("device-role").addEventListener("change", showStation);

byId("device").addEventListener("submit", async (/** @type {SubmitEvent} */ event) => {
  event.preventDefault();
  const [name, role, days] = ["device-name", "device-role", "device-days"].map((id) => byId(id).value.trim());
  const station = role === "kitchen" ? byId("device-station").value.trim() : "";
  const wanted = { name, role, ...(days && { expires_in_days: Number(days) }) };
  await attempt(async () => showLink((await call("POST", "/api/tokens", wanted)).body, station));
  byId("device").reset();
  showStation();
  show();
});

byId("person").addEventListener("submit", async (/** @type {SubmitEvent} */ event) => {
  event.preventDefault();
  const [username, password, role] = ["person-name", "person-password", "person-role"].map((id) => byId(id).value);
  const done = await attempt(() => call("POST", "/api/register", { username, password, role }));
  if (!done) return;
  notify(t("account_created", { name: username }));
  byId("person").reset();
  show();
});

byId("copy").addEventListener("click", () => {
  byId("link-text").select();
  // The Clipboard API needs HTTPS; this works in a restaurant's network, too.
  if (document.execCommand("copy")) notify(t("copied"));
});
