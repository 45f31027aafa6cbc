/**
 * The start page: the screens, whether the server is well, the first account, logging in, and pairing a tablet.
 *
 * `?next=/pos` names where to go after logging in. `#pair=…` is a link that /account made: its token becomes this
 * device's session. A fragment never leaves the browser, so it is in no log.
 */

import { accountsExist, call } from "./api.js";
import { byId, fill, h, setText } from "./dom.js";
import { openShell } from "./shell.js";
import { t } from "./texts.js";

/** @typedef {import("./api.js").Refusal} Refusal */

const HEALTH_PERIOD = 5_000;
const PAIRED_FOR = 400 * 86_400; // seconds: the longest that browsers keep a cookie

openShell();

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
  byId("health").dataset.state = well ? "LIVE" : "STALE";
  setText(byId("health"), t(well ? "server_ok" : "server_down"));
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
  forgetPairing();
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
  forgetPairing();
  location.replace("/");
});

const forgetPairing = () => setCookie("", 0);

function setCookie(/** @type {string} */ token, /** @type {number} */ seconds) {
  const secure = location.protocol === "https:" ? "; Secure" : "";
  document.cookie = `bistro92_session=${token}; Path=/; Max-Age=${seconds}; SameSite=Strict${secure}`;
}

/** Ask before a link makes this device somebody: links come from anywhere. */
function offerPairing() {
  const link = new URLSearchParams(location.hash.slice(1));
  const token = link.get("pair") ?? "";
  if (!/^[\w-]+$/.test(token)) return;
  history.replaceState(null, "", location.pathname);
  const [name, role, to] = ["name", "role", "to"].map((key) => link.get(key) ?? "");
  const accept = async () => {
    await call("POST", "/api/logout").catch(() => {});
    setCookie(token, PAIRED_FOR);
    const page = new URL(to || "/", location.origin);
    location.replace(page.origin === location.origin ? page.href : "/");
  };
  fill(byId("pairing"),
    h("h2", {}, t("pair_question", { name })),
    h("p", {}, t("pair_about", { role: t(`role_${role}`) })),
    h("button", { class: "button primary big", onclick: accept }, t("pair")));
  byId("pairing").hidden = false;
}

offerPairing();
showAccess();
showHealth();
setInterval(showHealth, HEALTH_PERIOD);
