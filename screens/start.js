/**
 * The start page: the screens, whether the server is well, the first account, logging in, and pairing a tablet.
 *
 * `?next=/pos` names where to go after logging in. `#pair=…` is a link that /account made: its token becomes this
 * device's cookie, which no script can read. A fragment never leaves the browser, so it is in no log.
 */

import { accountsExist, call } from "./api.js";
import { byId, fill, h, setText } from "./dom.js";
import { may, openShell } from "./shell.js";
import { plural, t } from "./texts.js";

/** @typedef {import("./api.js").Refusal} Refusal */

const HEALTH_PERIOD = 5_000;

openShell().then((me) => {
  if (!me) return;
  setText(byId("me"), me.kind === "local" ? "" : t("you_are", { name: me.name, role: t(`role_${me.role}`) }));
  for (const door of document.querySelectorAll("[data-may]")) {
    door.toggleAttribute("hidden", !may(/** @type {HTMLElement} */ (door).dataset.may ?? ""));
  }
  byId("door-account").hidden = me.kind === "device" && !may("manage");
});

/** Where to go after logging in: a path of this very server. */
function nextPage() {
  const url = new URL(new URLSearchParams(location.search).get("next") ?? "/", location.origin);
  return url.origin === location.origin ? url.pathname + url.search : "/";
}

async function showAccess() {
  let accounts;
  try {
    accounts = await accountsExist();
  } catch {
    return;
  }
  const inside = await call("GET", "/api/changes").then(() => true, () => false);
  byId("login").hidden = !accounts || inside;
  byId("screens").hidden = accounts && !inside;
  byId("logout").hidden = !accounts || !inside;
  byId("first").hidden = accounts || !inside;
  if (!byId("login").hidden) byId("login-name").focus();
}

async function showHealth() {
  const well = await call("GET", "/readyz").then(() => true, () => false);
  const stats = well && !byId("screens").hidden && (await call("GET", "/api/stats").then(({ body }) => body, () => null));
  byId("health").dataset.state = well ? "LIVE" : "STALE";
  const { received, preparing, ready } = stats ? stats.by_status : { received: 0, preparing: 0, ready: 0 };
  const running = stats ? [plural("orders_open", received + preparing + ready), plural("connected", stats.subscribers)] : [];
  setText(byId("health"), [t(well ? "server_ok" : "server_down"), ...running].join(" · "));
}

/**
 * Do what a form asks for; where it is refused, say why under its fields.
 *
 * @param {string} id
 * @param {() => Promise<any>} act
 */
function onSubmit(id, act) {
  byId(id).addEventListener("submit", async (/** @type {SubmitEvent} */ event) => {
    event.preventDefault();
    const problem = byId(id).querySelector(".problem");
    const button = byId(id).querySelector("button");
    button.disabled = true;
    problem.hidden = true;
    try {
      await act();
    } catch (error) {
      problem.textContent = /** @type {Refusal} */ (error).message || t("no_answer");
      problem.hidden = false;
    } finally {
      button.disabled = false;
    }
  });
}

async function logIn(/** @type {string} */ username, /** @type {string} */ password) {
  await call("POST", "/api/login", { username, password });
  location.replace(nextPage());
}

onSubmit("login", () => logIn(byId("login-name").value, byId("login-password").value));
onSubmit("register", async () => {
  const [username, password] = [byId("register-name").value, byId("register-password").value];
  await call("POST", "/api/register", { username, password, role: "manager" });
  await logIn(username, password);
});
byId("logout").addEventListener("click", async () => {
  await call("POST", "/api/logout").catch(() => {});
  location.replace("/");
});

/** Ask before a link makes this device somebody: links come from anywhere. */
function offerPairing() {
  const link = new URLSearchParams(location.hash.slice(1));
  const token = link.get("pair") ?? "";
  if (!/^[\w-]+$/.test(token)) return;
  history.replaceState(null, "", location.pathname);
  const [name, role, to] = ["name", "role", "to"].map((key) => link.get(key) ?? "");
  const shown = { Authorization: `Bearer ${token}` };
  const accept = async () => {
    try {
      await call("GET", "/api/me", undefined, shown);
      await call("POST", "/api/logout").catch(() => {});
      await call("POST", "/api/session", undefined, shown);
    } catch (/** @type {any} */ refusal) {
      return setText(problem, refusal.status === 401 ? t("pair_failed") : refusal.message || t("no_answer"));
    }
    const page = new URL(to || "/", location.origin);
    location.replace(page.origin === location.origin ? page.href : "/");
  };
  const problem = h("p", { class: "problem", role: "alert" });
  fill(byId("pairing"),
    h("h2", {}, t("pair_question", { name })),
    h("p", {}, t("pair_about", { role: t(`role_${role}`) })),
    problem,
    h("button", { class: "button primary big", onclick: accept }, t("pair")));
  byId("pairing").hidden = false;
}

offerPairing();
showAccess().then(showHealth);
setInterval(showHealth, HEALTH_PERIOD);
