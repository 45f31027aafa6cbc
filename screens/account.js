/**
 * Accounts: people who log in, and devices that are paired with a link, shown as a QR code.
 */

import { accountsExist, call } from "./api.js";
import { byId, fill, h, setText } from "./dom.js";
import { drawCode } from "./qr.js";
import { ask, notify, openShell } from "./shell.js";
import { shortTime, t } from "./texts.js";

/** @typedef {{id: number, name: string, role: string, created_at: string, expires_at: string | null, token?: string}} Token */

const ROLES = ["kitchen", "pos", "viewer", "manager"];
const PAGE_OF = /** @type {Record<string, string>} */ ({ kitchen: "/kitchen", pos: "/pos", viewer: "/ready", manager: "/" });
const LOOPBACK = ["localhost", "127.0.0.1", "[::1]"];

openShell();

for (const id of ["device-role", "person-role"]) fill(byId(id), ROLES.map((role) => h("option", { value: role }, t(`role_${role}`))));

async function showDevices() {
  let tokens;
  try {
    tokens = (await call("GET", "/api/tokens")).body;
  } catch (/** @type {any} */ refusal) {
    return block(refusal.status === 403 ? t("manager_only") : refusal.message || t("no_answer"));
  }
  if (!(await accountsExist())) return block(t("first_needed"));
  fill(byId("devices"), tokens.length ? tokens.map(device) : h("li", { class: "muted" }, t("no_devices")));
}

/** Say why nothing can be done here. */
function block(/** @type {string} */ text) {
  fill(byId("blocked"), text, " ", h("a", { href: "/" }, t("home")));
  byId("blocked").hidden = false;
  byId("devices-panel").hidden = byId("people-panel").hidden = true;
}

function device(/** @type {Token} */ token) {
  return h("li", {},
    h("div", { class: "grow" },
      h("b", {}, token.name),
      h("span", { class: "muted" }, [t(`role_${token.role}`), token.expires_at && t("until", { time: shortTime(token.expires_at) })].filter(Boolean).join(" · "))),
    h("button", { class: "button small", onclick: () => remove(token) }, t("remove")));
}

async function remove(/** @type {Token} */ token) {
  if ((await ask(t("remove_question", { name: token.name }), { yes: t("remove") })) === null) return;
  await attempt(() => call("DELETE", `/api/tokens/${token.id}`));
  showDevices();
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
  showDevices();
});

byId("person").addEventListener("submit", async (/** @type {SubmitEvent} */ event) => {
  event.preventDefault();
  const [username, password, role] = ["person-name", "person-password", "person-role"].map((id) => byId(id).value);
  const done = await attempt(() => call("POST", "/api/register", { username, password, role }));
  if (!done) return;
  notify(t("account_created", { name: username }));
  byId("person").reset();
});

byId("copy").addEventListener("click", () => {
  byId("link-text").select();
  // The Clipboard API needs HTTPS; this works in a restaurant's network, too.
  if (document.execCommand("copy")) notify(t("copied"));
});

showDevices();
