/**
 * The pick-up board, for guests: whose order is being prepared, and whose can be collected.
 */

import { byId, h, keep, setText } from "./dom.js";
import { Feed } from "./feed.js";
import { COOKING, OPEN, enteredAt } from "./orders.js";
import { openShell, showState } from "./shell.js";
import { keepAwake } from "./signals.js";
import { t } from "./texts.js";

/** @typedef {import("./api.js").Order} Order */

const NEW_FOR = 10_000;

openShell();

/** @type {Map<number, Order>} the current ones */
let orders = new Map();
/** @type {Set<number>} orders that have just become ready */
const fresh = new Set();

new Feed({
  initial(all) {
    orders = new Map(all.map((order) => [order.id, order]));
    render();
  },
  event(_, order) {
    if (order.status === "ready" && orders.get(order.id)?.status !== "ready") welcome(order.id);
    if (OPEN.includes(order.status)) orders.set(order.id, order);
    else orders.delete(order.id);
    render();
  },
  state: showState,
});

function welcome(/** @type {number} */ id) {
  fresh.add(id);
  setTimeout(() => (fresh.delete(id), render()), NEW_FOR);
}

function render() {
  const all = [...orders.values()];
  const preparing = all.filter((order) => COOKING.includes(order.status)).sort((a, b) => enteredAt(a) - enteredAt(b) || a.id - b.id);
  const ready = all.filter((order) => order.status === "ready").sort((a, b) => Date.parse(b.ready_at ?? "") - Date.parse(a.ready_at ?? "") || b.id - a.id);
  show("preparing", preparing);
  show("ready", ready);
  byId("empty").hidden = all.length > 0;
  setText(byId("empty"), t("board_empty"));
}

function show(/** @type {string} */ id, /** @type {Order[]} */ shown) {
  const stamp = (/** @type {Order} */ order) => `${order.table}|${fresh.has(order.id)}`;
  keep(byId(id), shown, (order) => String(order.id), stamp, (order) =>
    h("li", { "data-new": fresh.has(order.id) }, h("b", {}, order.id), h("span", {}, order.table)));
}

keepAwake();
