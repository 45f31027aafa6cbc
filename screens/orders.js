/**
 * What the screens know about orders. Plain functions: nothing here asks, stores or draws.
 */

/** @typedef {import("./api.js").Order} Order */
/** @typedef {import("./api.js").Line} Line */

/** On the stove: what a kitchen works on. */
export const COOKING = ["received", "preparing"];
export const OPEN = [...COOKING, "ready"];

/** When an order entered the kitchen, in milliseconds. */
export const enteredAt = (/** @type {Order} */ order) => Date.parse(order.fired_at ?? order.created_at);

export const isRush = (/** @type {Order} */ order) => order.priority === "rush";

/** Rush orders first, then the oldest. */
export const byUrgency = (/** @type {Order} */ a, /** @type {Order} */ b) =>
  Number(isRush(b)) - Number(isRush(a)) || enteredAt(a) - enteredAt(b) || a.id - b.id;

/** Whether a line is one station's business; without a station, all of them are. */
export const concerns = (/** @type {Line} */ line, /** @type {string} */ station) => !station || line.station === station;

/** Whether a kitchen screen shows an order: while something of it is to be done there, or it was recalled. */
export function isDueAt(/** @type {Order} */ order, /** @type {string} */ station) {
  if (!COOKING.includes(order.status) || !order.items.some((line) => concerns(line, station))) return false;
  const pending = order.items.filter((line) => !line.status);
  return pending.length === 0 || pending.some((line) => concerns(line, station));
}

/**
 * What is still to be cooked, over some orders: [name, quantity], most first.
 *
 * @param {Order[]} orders
 * @param {string} station
 * @returns {[string, number][]}
 */
export function allDay(orders, station) {
  /** @type {Map<string, number>} */
  const counts = new Map();
  for (const line of orders.flatMap((order) => (COOKING.includes(order.status) ? order.items : []))) {
    if (!line.status && concerns(line, station)) counts.set(line.name, (counts.get(line.name) ?? 0) + line.quantity);
  }
  return [...counts].sort((a, b) => b[1] - a[1] || a[0].localeCompare(b[0]));
}

/**
 * Which things about an order a cook has to be told of, as short names: "line 3", "void 1", "note", "table", "rush",
 * "cancelled".
 *
 * @param {Order} before
 * @param {Order} after
 * @returns {string[]}
 */
export function changesOf(before, after) {
  const changes = [];
  after.items.forEach((line, place) => {
    const old = before.items[place];
    if (!old) changes.push(`line ${place + 1}`);
    else if (line.status === "voided" && old.status !== "voided") changes.push(`void ${place + 1}`);
  });
  if (before.note !== after.note) changes.push("note");
  if (before.table !== after.table) changes.push("table");
  if (isRush(after) && !isRush(before)) changes.push("rush");
  if (after.status === "cancelled" && before.status !== "cancelled") changes.push("cancelled");
  return changes;
}

/** An order as it will be once lines are marked, by place; the status follows its lines as on the server. */
export function withMarks(/** @type {Order} */ order, /** @type {Map<number, Line["status"]>} */ marks) {
  const items = order.items.map((line, place) => (marks.has(place + 1) ? { ...line, status: marks.get(place + 1) } : line));
  const done = items.every((line) => line.status);
  const status = done ? "ready" : order.status === "ready" ? "preparing" : order.status;
  return { ...order, items, status };
}

/** Whether a note speaks of something that can harm a guest. */
export const isAlarming = (/** @type {string} */ note) =>
  /allerg|anaphyla|intoleran|unverträglich|gluten|zöliak|coeliac|celiac|la[ck]tose|\bnuts?\b|nuss|nüss|peanut|shellfish/i.test(note);
