/**
 * The till: pick a table, tap what the guests want, send. It takes orders whether or not the server can be reached.
 *
 * An order gets its Idempotency-Key when its first line is tapped, and carries it through reloads and retries; besides,
 * the key is its `external_id`, so that even another log-in can't make a second order of it.
 */

import { call, uniqueName } from "./api.js";
import { byId, drawing, h, keep, setText } from "./dom.js";
import { Feed } from "./feed.js";
import { Menu } from "./menu.js";
import { OPEN, isAlarming, isRush } from "./orders.js";
import { Outbox } from "./outbox.js";
import { ask, may, notify, openShell, remember, remembered, showState } from "./shell.js";
import { localInput, plural, shortTime, t } from "./texts.js";

/** @typedef {import("./api.js").Order} Order */
/** @typedef {import("./api.js").Line} Line */
/** @typedef {import("./outbox.js").Entry} Entry */
/**
 * @typedef {object} Draft
 * @property {string} key
 * @property {string} table
 * @property {Line[]} lines
 * @property {string} note
 * @property {boolean} rush
 * @property {string} fireAt as the browser's field has it, or ""
 * @property {number | null} order the order that the lines are for, or null for a new one
 */

const LISTED = 50;

const whoAsks = openShell();

/** @type {string} this till's name for the server */
const till = remembered("till", `till-${uniqueName().slice(0, 6)}`);
remember("till", till);
/** @type {Map<number, Order>} */
const orders = new Map();
const menu = new Menu();
/** @type {Draft} */
let draft = remembered("draft", emptyDraft(""));
/** @type {number | null} the line whose note and station are open */
let edited = null;
const draw = drawing(render);

const outbox = await Outbox.open("pos");

// --- What is known --------------------------------------------------------------------------------------------------

function take(/** @type {Order} */ order) {
  const before = orders.get(order.id);
  if (!before || before.version < order.version) orders.set(order.id, order);
}

const feed = new Feed({
  initial(all) {
    orders.clear();
    byId("orders").replaceChildren(); // an order may be another one with the same number and version
    for (const order of all) take(order);
    catchUp();
    draw();
  },
  event(type, order) {
    take(order);
    if (type === "new_order") menu.learn([order]);
    draw();
  },
  state(state, since) {
    showState(state, since);
    if (state === "LIVE") outbox.kick();
  },
});

/** What this till sent before, and what is ordered here. */
async function catchUp() {
  const [own, latest] = await Promise.all(
    [`/api/orders?source=${till}&limit=${LISTED}`, "/api/orders?limit=200"].map((path) => call("GET", path).catch(() => null)),
  );
  own?.body.forEach((/** @type {Order} */ order) => take(order));
  if (latest) menu.learn(latest.body, true);
  draw();
}

outbox.addEventListener("change", draw);
outbox.addEventListener("delivered", (/** @type {any} */ { detail }) => detail.order && take(detail.order));
outbox.addEventListener("refused", (/** @type {any} */ { detail: { entry, refusal } }) => {
  if (refusal.order) take(refusal.order);
  const why = refusal.status === 412 ? t("changed_meanwhile") : refusal.message;
  const text = entry.order ? t("refused", { id: entry.order, why }) : t("order_refused", { table: entry.body.table, why });
  notify(text, { kind: "error" });
});

// --- The order that is being composed -------------------------------------------------------------------------------

/** @returns {Draft} */
function emptyDraft(/** @type {string} */ table) {
  return { key: uniqueName(), table, lines: [], note: "", rush: false, fireAt: "", order: null };
}

/** Change the draft, keep it over a reload, show it. */
function compose(/** @type {Partial<Draft>} */ changes) {
  draft = { ...draft, ...changes };
  remember("draft", draft);
  draw();
}

/** One more of a thing: onto a line that has neither a note nor another station, or as a new line. */
function addItem(/** @type {string} */ name, quantity = 1) {
  const station = menu.stationOf(name);
  const same = draft.lines.findIndex((line) => line.name === name && !line.note && (line.station ?? "") === station);
  if (same >= 0) setLine(same, { quantity: Math.min(999, draft.lines[same].quantity + quantity) });
  else compose({ lines: [...draft.lines, { name, quantity, ...(station && { station }) }] });
}

function setLine(/** @type {number} */ place, /** @type {Partial<Line>} */ changes) {
  const lines = draft.lines.map((line, at) => (at === place ? { ...line, ...changes } : line)).filter((line) => line.quantity > 0);
  if (lines.length < draft.lines.length) edited = null;
  compose({ lines });
}

async function send() {
  if (!may("place")) return;
  if (draft.lines.length === 0) return notify(t("no_lines"), { kind: "error" });
  if (!draft.table && draft.order === null) return notify(t("no_table"), { kind: "error" });
  const sent = draft;
  const lines = sent.lines.map(({ note, station, ...line }) => ({ ...line, ...(note && { note }), ...(station && { station }) }));
  edited = null;
  compose(emptyDraft(""));
  try {
    if (sent.order === null) {
      await outbox.add({ key: sent.key, method: "POST", path: "/api/order", body: orderOf(sent, lines), precious: true });
    } else {
      const path = `/api/order/${sent.order}/items`;
      await outbox.add({ key: sent.key, method: "POST", path, body: { items: lines }, order: sent.order, precious: true });
    }
  } catch (error) {
    compose(sent);
    notify(t("not_kept"), { kind: "error" });
    throw error;
  }
}

function orderOf(/** @type {Draft} */ sent, /** @type {Line[]} */ items) {
  return {
    table: sent.table,
    items,
    ...(sent.note && { note: sent.note }),
    ...(sent.rush && { priority: "rush" }),
    ...(sent.fireAt && { fire_at: new Date(sent.fireAt).toISOString() }),
    source: till,
    external_id: sent.key,
  };
}

/** Take what was refused, or not yet sent, back to where it was composed. */
async function editAgain(/** @type {Entry} */ entry) {
  if (!(await outbox.withdraw(entry.key))) return;
  const { body, order = null } = entry;
  const fireAt = body.fire_at ? localInput(body.fire_at) : "";
  const { table = orders.get(order ?? 0)?.table ?? "", items, note = "", priority } = body;
  compose({ ...emptyDraft(table), lines: items, note, rush: priority === "rush", fireAt });
  showTab("new");
}

// --- Orders that were sent ------------------------------------------------------------------------------------------

/** @returns {Promise<Entry>} */
function change(/** @type {Order} */ order, /** @type {Pick<Entry, "method" | "path" | "body">} */ write) {
  return outbox.add({ ...write, order: order.id, version: order.version });
}

async function voidLine(/** @type {Order} */ order, /** @type {number} */ line) {
  const { name, quantity } = order.items[line - 1];
  if ((await ask(t("void_question", { what: `${quantity} × ${name}` }), { yes: t("void") })) === null) return;
  change(orders.get(order.id) ?? order, { method: "PATCH", path: `/api/order/${order.id}/items/${line}`, body: { status: "voided" } });
}

async function cancel(/** @type {Order} */ order) {
  const reason = await ask(t("cancel_question", { id: order.id, table: order.table }), { yes: t("cancel_order"), reason: t("reason") });
  if (reason === null) return;
  change(orders.get(order.id) ?? order, { method: "POST", path: `/api/order/${order.id}/cancel`, body: reason ? { reason } : {} });
}

function amend(/** @type {Order} */ order) {
  const dialog = byId("amend");
  const scheduled = order.status === "scheduled";
  setText(byId("amend-title"), t("amend_title", { id: order.id }));
  byId("amend-table").value = order.table;
  byId("amend-note").value = order.note ?? "";
  byId("amend-rush").checked = isRush(order);
  byId("amend-later").hidden = !scheduled;
  byId("amend-fire-at").value = scheduled ? localInput(order.fire_at ?? "") : "";
  dialog.returnValue = "";
  dialog.onclose = () => {
    if (dialog.returnValue !== "yes") return;
    const body = amendment(order);
    if (Object.keys(body).length) change(order, { method: "PATCH", path: `/api/order/${order.id}`, body });
  };
  dialog.showModal();
}

/** What the dialog says otherwise than the order. */
function amendment(/** @type {Order} */ order) {
  const [table, note, fireAt] = ["amend-table", "amend-note", "amend-fire-at"].map((id) => byId(id).value.trim());
  const rush = byId("amend-rush").checked;
  const moved = order.status === "scheduled" && fireAt && fireAt !== localInput(order.fire_at ?? "");
  return {
    ...(table !== order.table && { table }),
    ...(note !== (order.note ?? "") && { note: note || null }),
    ...(rush !== isRush(order) && { priority: rush ? "rush" : "normal" }),
    ...(moved && { fire_at: new Date(fireAt).toISOString() }),
  };
}

function addTo(/** @type {Order} */ order) {
  compose({ ...emptyDraft(order.table), lines: draft.lines, order: order.id });
  showTab("new");
}

// --- What is shown --------------------------------------------------------------------------------------------------

function render() {
  byId("no-till").hidden = may("place");
  byId("catalog").hidden = byId("tab-new").hidden = !may("place");
  byId("till").toggleAttribute("data-read-only", !may("place"));
  renderCatalog();
  renderDraft();
  renderOrders();
}

function renderCatalog() {
  const tables = menu.tables();
  keep(byId("tables"), tables, (table) => table, (table) => String(draft.table === table), (table) =>
    h("button", { type: "button", class: "chip", "aria-pressed": String(draft.table === table), data: { focus: "table" }, onclick: () => compose({ table, order: null }) }, table));
  const typed = parseEntry(byId("item").value).name.toLowerCase();
  const names = menu.names().filter((name) => name.toLowerCase().includes(typed));
  const chosen = (/** @type {string} */ name) => draft.lines.reduce((sum, line) => sum + (line.name === name ? line.quantity : 0), 0);
  keep(byId("tiles"), names, (name) => name, (name) => `${chosen(name)}|${menu.stationOf(name)}`, (name) =>
    h("button", { type: "button", class: "tile", data: { focus: "tile" }, "data-chosen": chosen(name) > 0, onclick: () => pick(name) },
      h("span", { class: "name" }, name),
      h("small", {}, menu.stationOf(name)),
      chosen(name) > 0 && h("b", { class: "badge" }, chosen(name))));
  keep(byId("stations"), menu.stations(), (name) => name, () => "", (name) => h("option", { value: name }));
}

function pick(/** @type {string} */ name) {
  addItem(name, parseEntry(byId("item").value).quantity);
  byId("item").value = "";
}

/** "3 Burger", "3x burger" or "Burger". */
function parseEntry(/** @type {string} */ text) {
  const found = /^\s*(\d{1,3})\s*[x×*]?\s+(.*)$/i.exec(text) ?? /^\s*(\d{1,3})\s*[x×*]?\s*()$/i.exec(text);
  return { quantity: Math.max(1, Number(found?.[1] ?? 1)), name: (found ? found[2] : text).trim() };
}

function renderDraft() {
  const adding = draft.order !== null;
  const place = draft.table || t("choose_table");
  setText(byId("heading"), adding ? t("adding_to", { id: draft.order, table: draft.table }) : place);
  byId("heading").classList.toggle("muted", !draft.table);
  byId("clear").hidden = !draft.lines.length && !draft.table && !adding;
  byId("other-table").hidden = adding;
  byId("options").hidden = adding;
  keep(byId("draft"), draft.lines.map((line, at) => ({ line, at })), ({ at }) => String(at), ({ line, at }) => draftStamp(line, at), ({ line, at }) => draftLine(line, at));
  for (const [id, value] of [["note", draft.note], ["fire-at", draft.fireAt], ["table", draft.table]]) {
    if (document.activeElement !== byId(id)) byId(id).value = value;
  }
  byId("rush").checked = draft.rush;
  byId("later").checked = draft.fireAt !== "";
  byId("fire-at").hidden = draft.fireAt === "";
  const items = draft.lines.reduce((sum, line) => sum + line.quantity, 0);
  setText(byId("send"), items ? plural("send", items) : t("send_nothing"));
  byId("send").toggleAttribute("data-idle", items === 0 || (!draft.table && !adding));
}

/** While a line is edited its fields stay as they are: they hold what is typed. */
const draftStamp = (/** @type {Line} */ line, /** @type {number} */ at) =>
  edited === at ? `edited ${line.name} ${line.quantity}` : JSON.stringify(line);

function draftLine(/** @type {Line} */ line, /** @type {number} */ at) {
  const open = edited === at;
  const step = (/** @type {number} */ by, /** @type {string} */ sign) =>
    h("button", { type: "button", class: "step", "aria-label": t(by > 0 ? "one_more" : "one_less", { name: line.name }), data: { focus: sign }, onclick: () => setLine(at, { quantity: Math.min(999, line.quantity + by) }) }, sign);
  const field = (/** @type {"note" | "station"} */ name, /** @type {number} */ longest, more = {}) =>
    h("label", { class: "field" }, t(name), h("input", { value: line[name] ?? "", maxLength: longest, data: { focus: name }, oninput: (/** @type {any} */ { target }) => setLine(at, { [name]: target.value.trim() }), ...more }));
  const station = /** @type {HTMLElement} */ (field("station", 32));
  station.querySelector("input")?.setAttribute("list", "stations");
  return h("li", { class: "draft-line" },
    h("div", { class: "row" },
      step(-1, "−"), h("b", { class: "quantity" }, line.quantity), step(1, "+"),
      h("button", { type: "button", class: "name", "aria-expanded": String(open), data: { focus: "name" }, onclick: () => ((edited = open ? null : at), draw()) },
        h("span", {}, line.name),
        line.station && h("small", {}, line.station),
        line.note && h("span", { class: "note", "data-alarm": isAlarming(line.note) }, line.note),
        !line.note && h("small", { class: "hint" }, t("add_note")))),
    open && h("div", { class: "row fields" }, field("note", 280, { placeholder: t("note_hint") }), station));
}

function renderOrders() {
  const all = byId("all-tills").checked;
  const rank = (/** @type {Order} */ order) => (OPEN.includes(order.status) || order.status === "scheduled" ? 0 : 1);
  const shown = [...orders.values()].filter((order) => all || order.source === till);
  shown.sort((a, b) => rank(a) - rank(b) || b.id - a.id);
  const unsent = outbox.entries.filter((entry) => entry.precious);
  keep(byId("outbox"), unsent, (entry) => entry.key, (entry) => `${entry.tried}|${entry.problem ?? ""}`, unsentCard);
  const waiting = new Set(outbox.waiting.map((entry) => entry.order));
  keep(byId("orders"), shown.slice(0, LISTED), (order) => String(order.id), (order) => `${order.version}|${waiting.has(order.id)}|${may("amend")}`, (order) => orderCard(order, waiting.has(order.id)));
  byId("no-orders").hidden = shown.length + unsent.length > 0;
  setText(byId("tab-orders"), plural("my_orders", shown.filter((order) => rank(order) === 0).length + unsent.length));
  const refused = outbox.entries.length - outbox.waiting.length;
  byId("sent").dataset.kind = refused ? "error" : outbox.waiting.length ? "waiting" : "sent";
  setText(byId("sent"), refused ? plural("refused_count", refused) : outbox.waiting.length ? plural("waiting", outbox.waiting.length) : t("all_sent"));
}

function unsentCard(/** @type {Entry} */ entry) {
  const table = entry.body.table ?? orders.get(entry.order ?? 0)?.table ?? "";
  return h("li", { class: "card", data: { kind: entry.problem ? "error" : "waiting" } },
    h("div", { class: "row" },
      h("b", { class: "grow" }, table, entry.order && ` #${entry.order}`),
      h("span", { class: "status", data: { status: entry.problem ? "refused" : "waiting" } }, t(entry.problem ? "status_refused" : "status_waiting"))),
    entry.problem && h("p", { class: "problem" }, entry.problem),
    h("ul", { class: "plain" }, entry.body.items.map((/** @type {Line} */ line) => h("li", {}, `${line.quantity} × ${line.name}`, line.note && ` – ${line.note}`))),
    (entry.problem || !entry.tried) && h("div", { class: "row end" },
      h("button", { class: "button small", onclick: () => outbox.withdraw(entry.key) }, t("discard")),
      h("button", { class: "button small", onclick: () => editAgain(entry) }, t("edit_again"))));
}

function orderCard(/** @type {Order} */ order, /** @type {boolean} */ isWaiting) {
  const isOpen = OPEN.includes(order.status) || order.status === "scheduled";
  const mayAmend = isOpen && may("amend");
  return h("li", { class: "card", data: { status: order.status }, "data-closed": !isOpen },
    h("div", { class: "row" },
      h("b", {}, `#${order.id}`), h("span", { class: "grow" }, order.table),
      isRush(order) && h("span", { class: "status", data: { status: "rush" } }, t("rush")),
      h("span", { class: "status", data: { status: order.status } }, t(`status_${order.status}`)),
      h("time", { class: "muted" }, shortTime(order.status === "scheduled" ? order.fire_at : order.created_at))),
    order.note && h("p", { class: "note", "data-alarm": isAlarming(order.note) }, order.note),
    h("ul", { class: "plain" }, order.items.map((line, at) =>
      h("li", { class: "row", data: { status: line.status ?? "pending" } },
        h("span", { class: "grow" }, `${line.quantity} × ${line.name}`, line.note && h("span", { class: "note", "data-alarm": isAlarming(line.note) }, line.note)),
        line.status === "ready" && h("span", { class: "tick", "aria-label": t("status_ready"), role: "img" }, "✓"),
        line.status === "voided" && h("span", { class: "muted" }, t("voided")),
        mayAmend && line.status !== "voided" && h("button", { class: "button tiny", "aria-label": t("void_line", { name: line.name }), onclick: () => voidLine(order, at + 1) }, t("void"))))),
    isWaiting && h("p", { class: "muted" }, t("being_sent")),
    mayAmend && h("div", { class: "row end" },
      h("button", { class: "button small", data: { focus: "cancel" }, onclick: () => cancel(order) }, t("cancel_order")),
      h("button", { class: "button small", data: { focus: "amend" }, onclick: () => amend(order) }, t("amend")),
      h("button", { class: "button small", data: { focus: "add" }, onclick: () => addTo(order) }, t("add_items"))));
}

// --- Controls -------------------------------------------------------------------------------------------------------

function showTab(/** @type {"new" | "orders"} */ name) {
  for (const each of ["new", "orders"]) {
    byId(`pane-${each}`).hidden = each !== name;
    byId(`tab-${each}`).setAttribute("aria-selected", String(each === name));
    byId(`tab-${each}`).tabIndex = each === name ? 0 : -1;
  }
}
for (const [name, other] of /** @type {const} */ ([["new", "orders"], ["orders", "new"]])) {
  byId(`tab-${name}`).addEventListener("click", () => showTab(name));
  byId(`tab-${name}`).addEventListener("keydown", (/** @type {KeyboardEvent} */ { key }) => {
    if (!["ArrowLeft", "ArrowRight"].includes(key)) return;
    showTab(other);
    byId(`tab-${other}`).focus();
  });
}

byId("entry").addEventListener("submit", (/** @type {SubmitEvent} */ event) => {
  event.preventDefault();
  const { name, quantity } = parseEntry(byId("item").value);
  if (name) addItem(menu.names().find((known) => known.toLowerCase() === name.toLowerCase()) ?? name, quantity);
  byId("item").value = "";
  draw();
});
byId("item").addEventListener("input", draw);
byId("compose").addEventListener("submit", (/** @type {SubmitEvent} */ event) => (event.preventDefault(), send()));
byId("clear").addEventListener("click", () => ((edited = null), compose(emptyDraft(""))));
byId("table").addEventListener("input", () => compose({ table: byId("table").value.trim() }));
byId("note").addEventListener("input", () => compose({ note: byId("note").value.trim() }));
byId("rush").addEventListener("change", () => compose({ rush: byId("rush").checked }));
byId("later").addEventListener("change", () => {
  compose({ fireAt: byId("later").checked ? localInput(new Date(feed.now() + 30 * 60_000).toISOString()) : "" });
});
byId("fire-at").addEventListener("input", () => compose({ fireAt: byId("fire-at").value }));
byId("all-tills").addEventListener("change", draw);
byId("amend-close").addEventListener("click", () => byId("amend").close());
addEventListener("keydown", (event) => {
  if (event.key === "Enter" && event.ctrlKey) send();
  else if (event.key === "/" && !(/** @type {HTMLElement} */ (event.target).closest("input, dialog"))) byId("item").focus();
  else return;
  event.preventDefault();
});

whoAsks.then(() => {
  if (!may("place")) showTab("orders");
  draw();
});
draw();
