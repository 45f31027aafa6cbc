/**
 * The kitchen display: what is to be cooked, most urgent first. `?station=grill` shows one station's work.
 *
 * What a cook does is shown at once and sent through the outbox: without a connection it is kept and sent later. Each
 * change names the version of the order that the cook saw, so one that overlooks news is refused, and undone visibly.
 */

import { call } from "./api.js";
import { byId, drawing, fill, h, keep, setText } from "./dom.js";
import { Feed } from "./feed.js";
import { OPEN, allDay, byUrgency, changesOf, concerns, enteredAt, isAlarming, isDueAt, isRush, withMarks } from "./orders.js";
import { Outbox } from "./outbox.js";
import { may, notify, openShell, remember, remembered, showState } from "./shell.js";
import { chime, keepAwake, soundIsReady, wakeSound } from "./signals.js";
import { duration, plural, t } from "./texts.js";

/** @typedef {import("./api.js").Order} Order */
/** @typedef {import("./outbox.js").Entry} Entry */

const AMBER_AFTER = 8 * 60_000; // from its arrival; a rush order takes half as long to get there
const RED_AFTER = 15 * 60_000;
const NEW_FOR = 8_000;
const RECALLABLE = 12;
const KEPT = 500; // orders in memory, beyond which those that are closed are forgotten

const whoAsks = openShell();

/** @type {Map<number, Order>} every order that this screen has heard of, as the server has it */
const orders = new Map();
/** @type {Map<number, Set<string>>} what nobody has seen yet, of each order: see changesOf() */
const unseen = new Map(Object.entries(remembered("unseen", {})).map(([id, changes]) => [Number(id), new Set(changes)]));
/** @type {Map<number, number>} when orders arrived here that are still new; when changes of others were refused */
const arrived = new Map();
const refused = new Map();
/** @type {(() => any) | null} how to undo what was done last */
let lastDeed = null;
let station = new URLSearchParams(location.search).get("station") ?? "";
/** @type {number | null} */
let selected = null;
let loaded = false;
const draw = drawing(render);

const outbox = await Outbox.open("kitchen");

// --- What is known --------------------------------------------------------------------------------------------------

/**
 * Take in an order as the server has it, and note what a cook has to be told of. Answers and events can overtake each
 * other, so the older version is left out, except in an `initial`: then it comes from a backup.
 */
function take(/** @type {Order} */ order, /** @type {boolean} */ isAll = false, before = orders.get(order.id)) {
  if ((orders.get(order.id)?.version ?? 0) >= order.version && !isAll) return;
  orders.set(order.id, order);
  const isSame = before?.created_at === order.created_at; // numbers are given again after a backup was restored
  const changes = before && isSame && isOpen(before) ? changesOf(before, order) : [];
  if (changes.length) mark(order.id, changes);
  if (orders.size > KEPT) forgetOldest();
}

const isOpen = (/** @type {Order} */ order) => OPEN.includes(order.status);

function forgetOldest() {
  const closed = [...orders.values()].filter((order) => !isOpen(order) && !unseen.has(order.id));
  closed.sort((a, b) => Date.parse(a.updated_at) - Date.parse(b.updated_at));
  for (const order of closed.slice(0, -RECALLABLE)) orders.delete(order.id);
}

function mark(/** @type {number} */ id, /** @type {string[]} */ changes) {
  unseen.set(id, new Set([...(unseen.get(id) ?? []), ...changes]));
  saveUnseen();
}

function markSeen(/** @type {number} */ id) {
  unseen.delete(id);
  saveUnseen();
  draw();
}

const saveUnseen = () => remember("unseen", Object.fromEntries([...unseen].map(([id, changes]) => [id, [...changes]])));

/** An order as it will be once everything that was done here has been sent. */
function foreseen(/** @type {Order} */ order) {
  return outbox.waiting.filter((entry) => entry.order === order.id).reduce(applied, order);
}

/** @returns {Order} */
function applied(/** @type {Order} */ order, /** @type {Entry} */ { about }) {
  if (about.line) return withMarks(order, new Map([[about.line, about.to === "pending" ? undefined : about.to]]));
  if (about.to !== "ready") return { ...order, status: about.to };
  return { ...order, status: "ready", items: order.items.map((line) => ({ ...line, status: line.status ?? "ready" })) };
}

/** The changes of an order that matter at this station. */
function newsOf(/** @type {Order} */ order) {
  return [...(unseen.get(order.id) ?? [])].filter((change) => {
    const line = order.items[Number(/^(?:line|void) (\d+)$/.exec(change)?.[1]) - 1];
    return !line || concerns(line, station);
  });
}

function isShown(/** @type {Order} */ order) {
  if (isDueAt(order, station)) return true;
  return order.status === "cancelled" && newsOf(order).length > 0 && order.items.some((line) => concerns(line, station));
}

/** Orders that left for the pass or the guests, the last one first. */
function recallable() {
  const left = [...orders.values()].map(foreseen).filter((order) => ["ready", "completed"].includes(order.status));
  const when = (/** @type {Order} */ order) => Date.parse(order.ready_at ?? order.completed_at ?? order.updated_at);
  return left.sort((a, b) => when(b) - when(a) || b.version - a.version || b.id - a.id).slice(0, RECALLABLE);
}

const feed = new Feed({
  initial(all) {
    loaded = true;
    const listed = new Set(all.map((order) => order.id));
    for (const order of all) take(order, true);
    byId("tickets").replaceChildren(); // an order may be another one with the same number and version
    lookUpMissing([...orders.keys(), ...unseen.keys()].filter((id) => !listed.has(id)));
    learnWhatLeft();
    draw();
  },
  event(type, order) {
    const fresh = type === "new_order";
    take(order);
    if (fresh && isDueAt(order, station)) welcome(order);
    draw();
  },
  state(state, since) {
    showState(state, since);
    if (state === "LIVE") outbox.kick();
  },
});

/** What became of orders that are no longer current; those to be told of are asked for one by one: there are few. */
async function lookUpMissing(/** @type {number[]} */ ids) {
  const missing = new Map(ids.map((id) => [id, orders.get(id)]));
  for (const id of missing.keys()) orders.delete(id);
  for (const [id, before] of missing) {
    if (before && !isOpen(before) && !unseen.has(id)) continue;
    try {
      take((await call("GET", `/api/order/${id}`)).body, false, before);
    } catch (/** @type {any} */ refusal) {
      if (refusal.status === 404) unseen.delete(id);
    }
  }
  draw();
}

async function learnWhatLeft() {
  const answer = await call("GET", `/api/orders?status=completed&limit=${RECALLABLE}`).catch(() => null);
  answer?.body.forEach((/** @type {Order} */ order) => take(order));
  draw();
}

function welcome(/** @type {Order} */ order) {
  arrived.set(order.id, Date.now());
  chime(isRush(order));
  setTimeout(() => (arrived.delete(order.id), draw()), NEW_FOR);
}

// --- What a cook does -----------------------------------------------------------------------------------------------

/** @returns {Promise<Entry>} */
function setLine(/** @type {Order} */ order, /** @type {number} */ line, /** @type {string} */ to) {
  const path = `/api/order/${order.id}/items/${line}`;
  return outbox.add({ method: "PATCH", path, body: { status: to }, order: order.id, version: order.version, about: { line, to } });
}

function setStatus(/** @type {Order} */ order, /** @type {string} */ to) {
  const path = `/api/order/${order.id}`;
  return outbox.add({ method: "PATCH", path, body: { status: to }, order: order.id, version: order.version, about: { to } });
}

/** Undo some changes: those that nobody has seen yet are taken back, the others are reversed. */
async function reverse(/** @type {Promise<Entry>[]} */ made, /** @type {(order: Order) => Promise<any>} */ opposite) {
  const entries = await Promise.all(made);
  const left = [];
  for (const entry of entries.toReversed()) if (!(await outbox.withdraw(entry.key))) left.push(entry);
  const order = left.length && orders.get(left[0].order ?? 0);
  if (order) await opposite(order);
}

/** Strike a line, or take that back. */
function toggle(/** @type {Order} */ order, /** @type {number} */ line) {
  const struck = foreseen(order).items[line - 1].status === "ready";
  const entry = setLine(order, line, struck ? "pending" : "ready");
  const gone = !isDueAt(foreseen(orders.get(order.id) ?? order), station);
  const undo = () => reverse([entry], (now) => setLine(now, line, struck ? "ready" : "pending"));
  remind(order.id, gone ? t("bumped", { id: order.id }) : "", [entry], undo);
}

/** All of it is done here: the whole order, or one station's lines of it. */
function bump(/** @type {Order} */ order) {
  const pending = foreseen(order).items.flatMap((line, place) => (!line.status && concerns(line, station) ? [place + 1] : []));
  const whole = !station || pending.length === 0;
  if (selected === order.id) selected = null;
  const entries = whole ? [setStatus(order, "ready")] : pending.map((line) => setLine(order, line, "ready"));
  remind(order.id, t("bumped", { id: order.id }), entries, () =>
    reverse(entries, (now) => (pending.length ? Promise.all(pending.map((line) => setLine(now, line, "pending"))) : setStatus(now, "preparing"))),
  );
}

function recall(/** @type {Order} */ order) {
  const back = foreseen(order).status;
  const entry = setStatus(order, "preparing");
  remind(order.id, t("recalled", { id: order.id }), [entry], () => reverse([entry], (now) => setStatus(now, back)));
}

function handOut(/** @type {Order} */ order) {
  const entry = setStatus(order, "completed");
  remind(order.id, t("handed_out", { id: order.id }), [entry], () =>
    reverse([entry], (now) => Promise.all(["preparing", "ready"].map((status) => setStatus(now, status)))));
}

/**
 * Keep the last deed at hand for "undo" from the moment that it is done, before it is stored or sent; offer it where
 * the screen would otherwise not show what happened. A deed is undone once, from wherever.
 *
 * @param {number} id
 * @param {string} text
 * @param {Promise<Entry>[]} made
 * @param {() => Promise<any>} undo
 */
function remind(id, text, made, undo) {
  const failed = () => notify(t("not_stored"), { kind: "error", about: id });
  const deed = () => {
    if (lastDeed === deed) lastDeed = null;
    if (!undone) undo().catch(failed);
    undone = true;
  };
  let undone = false;
  lastDeed = deed;
  Promise.all(made).catch(failed);
  if (text) notify(text, { about: id, label: t("undo"), act: deed });
  draw();
}

outbox.addEventListener("change", draw);
outbox.addEventListener("delivered", (/** @type {any} */ { detail }) => (take(detail.order), draw()));
outbox.addEventListener("refused", (/** @type {any} */ { detail }) => {
  const { entry, refusal } = detail;
  if (refusal.order) take(refusal.order);
  else lookUp(entry.order);
  refused.set(entry.order, Date.now());
  setTimeout(() => (refused.delete(entry.order), draw()), NEW_FOR);
  const why = refusal.status === 412 ? t("changed_meanwhile") : refusal.message;
  notify(t("refused", { id: entry.order, why }), { kind: "error", about: entry.order });
  draw();
});

async function lookUp(/** @type {number} */ id) {
  const answer = await call("GET", `/api/order/${id}`).catch(() => null);
  if (answer) take(answer.body);
  draw();
}

// --- What is shown --------------------------------------------------------------------------------------------------

function render() {
  const now = [...orders.values()].map(foreseen);
  const shown = now.filter(isShown).sort(byUrgency);
  if (!shown.some((order) => order.id === selected)) selected = null; // Enter must not reach what nobody sees
  keep(byId("tickets"), shown, (order) => String(order.id), ticketStamp, ticket);
  [...byId("tickets").children].forEach((element, place) => {
    const slot = element.querySelector(".slot");
    setText(slot, place < 9 ? String(place + 1) : "");
    element.toggleAttribute("data-selected", Number(element.dataset.key) === selected);
  });
  tellAges();
  const empty = byId("empty");
  empty.hidden = shown.length > 0;
  setText(empty, loaded ? t("nothing_to_cook") : t("loading"));
  setText(byId("count"), plural("open_orders", shown.length));
  document.title = `${shown.length ? `(${shown.length}) ` : ""}${t("kitchen")}${station ? ` · ${station}` : ""} · Bistro92`;
  const unsent = outbox.waiting.length;
  byId("unsent").hidden = unsent === 0;
  setText(byId("unsent"), plural("unsent_changes", unsent));
  const counts = allDay(now, station);
  keep(byId("allday-list"), counts.length ? counts : [/** @type {[string, number]} */ (["", 0])], ([name]) => name, ([, quantity]) => String(quantity), ([name, quantity]) =>
    h("li", {}, quantity ? [h("b", {}, quantity), h("span", {}, name)] : t("nothing_to_cook")));
  const ready = now.filter((order) => order.status === "ready" && order.items.some((line) => concerns(line, station)));
  byId("pass").hidden = ready.length === 0;
  byId("recall-open").hidden = !may("cook");
  keep(byId("pass-list"), ready.sort((a, b) => a.id - b.id), (order) => String(order.id), (order) => `${order.table}|${may("cook")}`, (order) => {
    const content = [h("b", {}, `#${order.id}`), " ", order.table];
    if (!may("cook")) return h("li", { class: "at-pass" }, content);
    return h("li", {}, h("button", { class: "button", "aria-label": t("hand_out", { id: order.id, table: order.table }), onclick: () => handOut(known(order)) },
      content, h("span", { class: "tick", "aria-hidden": "true" }, "✓")));
  });
  showStations(now);
}

/** An order as the server has it, for which the screen shows a foreseen one. */
const known = (/** @type {Order} */ order) => orders.get(order.id) ?? order;

function ticketStamp(/** @type {Order} */ order) {
  const states = order.items.map((line) => line.status?.[0] ?? "-").join("");
  return [order.version, order.status, states, newsOf(order), station, arrived.has(order.id), refused.has(order.id), may("cook")].join("|");
}

function ticket(/** @type {Order} */ order) {
  const news = new Set(newsOf(order));
  const cancelled = order.status === "cancelled";
  const data = { status: order.status };
  const heading = `ticket-${order.id}`;
  return h("li", {
    class: "ticket", tabIndex: -1, data, "aria-labelledby": heading,
    "data-rush": isRush(order), "data-new": arrived.has(order.id), "data-refused": refused.has(order.id),
  },
    h("header", { class: "ticket-head" },
      h("kbd", { class: "slot", "aria-hidden": "true" }),
      h("h2", { id: heading, class: "ticket-table" }, order.table, " ", h("small", { class: "ticket-id" }, `#${order.id}`)),
      h("time", { class: "elapsed" })),
    isRush(order) && !cancelled && h("p", { class: "flag rush" }, t("rush")),
    news.size > 0 && h("button", { class: `flag ${cancelled ? "cancelled" : "changed"}`, data: { focus: "seen" }, onclick: () => markSeen(order.id) },
      h("span", {}, cancelled ? [t("status_cancelled"), order.cancel_reason].filter(Boolean).join(" – ") : changeSummary(news)), h("b", {}, t("seen"))),
    order.note && note(order.note),
    h("ol", { class: "lines" }, order.items.map((line, place) => lineOf(order, line, place + 1, news))),
    !cancelled && may("cook") && h("button", { class: "bump", data: { focus: "bump" }, onclick: (/** @type {MouseEvent} */ tap) => onBump(tap, order) }, t("bump")));
}

/** The second tap of a double tap meets the ticket that has just moved up; it isn't meant. */
function onBump(/** @type {MouseEvent} */ tap, /** @type {Order} */ order) {
  if (tap.detail < 2) bump(known(order));
}

function changeSummary(/** @type {Set<string>} */ news) {
  const kinds = new Set([...news].map((change) => change.split(" ")[0]));
  return [...kinds].map((kind) => t(`change_${kind}`)).join(" · ");
}

function lineOf(/** @type {Order} */ order, /** @type {import("./api.js").Line} */ line, /** @type {number} */ place, /** @type {Set<string>} */ news) {
  const voided = line.status === "voided";
  const data = { status: line.status ?? "pending", focus: `line ${place}` };
  const fixed = voided || order.status === "cancelled" || !concerns(line, station) || !may("cook");
  const content = [
    h("b", { class: "quantity" }, line.quantity),
    h("span", { class: "name" }, line.name, line.station && !station && h("small", { class: "station" }, line.station)),
    voided && h("span", { class: "tag" }, t("voided")),
    news.has(`line ${place}`) && h("span", { class: "tag" }, t("added")),
    line.note && note(line.note),
  ];
  const marks = { "data-news": news.has(`line ${place}`) || news.has(`void ${place}`), "data-elsewhere": !concerns(line, station) };
  if (fixed) return h("li", {}, h("div", { class: "line", data, ...marks }, content));
  const pressed = String(line.status === "ready");
  return h("li", {}, h("button", { class: "line", data, ...marks, "aria-pressed": pressed, onclick: () => toggle(known(order), place) }, content));
}

const note = (/** @type {string} */ text) => h("span", { class: "note", "data-alarm": isAlarming(text) }, text);

/** Each second: how long every ticket has been waiting. */
function tellAges() {
  const now = feed.now();
  for (const element of byId("tickets").children) {
    const order = orders.get(Number(element.dataset.key));
    if (!order) continue;
    const age = now - enteredAt(order);
    const urgency = isRush(order) ? 2 : 1;
    setText(element.querySelector(".elapsed"), duration(age));
    element.dataset.age = age * urgency >= RED_AFTER ? "red" : age * urgency >= AMBER_AFTER ? "amber" : "fresh";
  }
}

function showStations(/** @type {Order[]} */ now) {
  const known = new Set(now.filter(isOpen).flatMap((order) => order.items.flatMap((line) => line.station ?? [])));
  if (station) known.add(station);
  const names = ["", ...[...known].sort()];
  keep(byId("station"), names, (name) => name, () => "", (name) => h("option", { value: name }, name || t("all_stations")));
  byId("station").value = station;
}

// --- Controls -------------------------------------------------------------------------------------------------------

byId("station").addEventListener("change", (/** @type {any} */ { target }) => {
  station = target.value;
  history.replaceState(null, "", station ? `?station=${encodeURIComponent(station)}` : location.pathname);
  draw();
});

function showAllDay(/** @type {boolean} */ open) {
  byId("allday").hidden = !open;
  byId("allday-toggle").setAttribute("aria-expanded", String(open));
  remember("allday", open);
}
byId("allday-toggle").addEventListener("click", () => showAllDay(byId("allday").hidden));
showAllDay(remembered("allday", innerWidth >= 1400));

byId("recall-open").addEventListener("click", () => {
  const rows = recallable().map((order) =>
    h("li", {}, h("b", {}, `#${order.id}`), h("span", {}, order.table),
      h("span", { class: "muted grow" }, order.items.map((line) => `${line.quantity} ${line.name}`).join(", ")),
      h("button", { class: "button", onclick: () => recall(known(order)) }, t("recall"))));
  fill(byId("recall-list"), rows.length ? rows : h("li", { class: "muted" }, t("nothing_to_recall")));
  byId("recall").showModal();
});

const SIZES = [100, 125, 150]; // percent
function showSize(/** @type {number} */ size) {
  document.documentElement.dataset.size = String(size);
  setText(byId("size"), t("text_size", { size }));
  remember("size", size);
}
byId("size").addEventListener("click", () => showSize(SIZES[(SIZES.indexOf(remembered("size", 100)) + 1) % SIZES.length]));
showSize(remembered("size", 100));

function showSound() {
  const wanted = remembered("sound", false);
  byId("sound").setAttribute("aria-pressed", String(wanted));
  byId("sound").toggleAttribute("data-waiting", wanted && !soundIsReady());
  setText(byId("sound"), wanted && !soundIsReady() ? t("sound_tap") : wanted ? t("sound_on") : t("sound_off"));
}
byId("sound").addEventListener("click", async () => {
  const on = !remembered("sound", false) || !soundIsReady();
  remember("sound", on);
  await wakeSound(on);
  if (on) chime(false);
  showSound();
});
// A browser lets a page make sounds only after somebody touched it.
for (const touch of ["pointerdown", "keydown"]) {
  addEventListener(touch, async () => {
    if (!remembered("sound", false) || soundIsReady()) return;
    await wakeSound(true);
    showSound();
  });
}
showSound();

addEventListener("keydown", (event) => {
  const target = /** @type {HTMLElement} */ (event.target);
  if (event.ctrlKey || event.altKey || event.metaKey || target.closest("dialog, input, select")) return;
  if (event.repeat && !event.key.startsWith("Arrow")) return; // a key that is held, or stuck, bumps one ticket
  const tickets = [...byId("tickets").children];
  const at = tickets.findIndex((element) => Number(element.dataset.key) === selected);
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (/^[1-9]$/.test(event.key)) select(tickets[Number(event.key) - 1]);
  else if (step) select(tickets[at < 0 ? 0 : Math.min(tickets.length - 1, Math.max(0, at + step))]);
  else if (event.key === "Enter" && !target.closest("button, a")) bumpSelected(tickets);
  else if (event.key === "Escape") select(undefined);
  else if (event.key.toLowerCase() === "r") recallLast();
  else if (event.key.toLowerCase() === "u") lastDeed?.();
  else if (event.key.toLowerCase() === "a") byId("allday-toggle").click();
  else return;
  event.preventDefault();
});

function select(/** @type {HTMLElement | undefined} */ element) {
  selected = element ? Number(element.dataset.key) : null;
  if (element) element.focus({ preventScroll: false });
  else byId("main").focus();
  draw();
}

/** Enter: the chosen ticket; where none is, choose the first, so that nothing leaves by accident. */
function bumpSelected(/** @type {HTMLElement[]} */ tickets) {
  const order = selected === null ? undefined : orders.get(selected);
  if (!order) select(tickets[0]);
  else if (order.status === "cancelled") markSeen(order.id);
  else if (may("cook")) bump(order);
}

function recallLast() {
  const [last] = recallable();
  if (!may("cook")) return;
  if (last) recall(known(last));
  else notify(t("nothing_to_recall"));
}

setInterval(tellAges, 1_000);
keepAwake();
whoAsks.then(draw);
draw();
