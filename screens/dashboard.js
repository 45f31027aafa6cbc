/**
 * The dashboard: asks every other second, and is told mostly that nothing has changed (ETag, 304).
 */

import { call, nextPage, poller } from "./api.js";
import { bars, lines } from "./chart.js";
import { byId, fill, h, keep, setText } from "./dom.js";
import { enteredAt, isRush } from "./orders.js";
import { openShell, showState } from "./shell.js";
import { clockTime, duration, shortTime, t } from "./texts.js";

/** @typedef {import("./api.js").Order} Order */

const PERIOD = 2_000;
const DAY_PERIOD = 20_000; // the charts look at a whole day, which changes slowly
const STALE_AFTER = 9_000;
const PAGE = 25;
const DAY_PAGES = 10; // of 1000 orders each
const HOUR = 3_600_000;
const HOURS = 24;
const STATES = ["received", "preparing", "ready", "completed", "cancelled", "scheduled"];
const MOST_METERS = 10;

openShell();

const pollStats = poller("/api/stats");
let pollPage = poller(firstPage());
/** @type {Order[]} those that older pages brought */
let older = [];
/** @type {Order[]} */
let newest = [];
/** @type {string | null} */
let next = null;
let heard = new Date();
let drawnDay = -Infinity;
let dayTag = "";

// --- Figures and charts ---------------------------------------------------------------------------------------------

function showStats(/** @type {any} */ stats) {
  const { by_status: counts, prep_seconds: prep } = stats;
  const time = (/** @type {number | null} */ seconds) => (seconds === null ? "–" : duration(seconds * 1000));
  const figures = {
    open_now: counts.received + counts.preparing,
    ready_now: counts.ready,
    scheduled_now: counts.scheduled,
    oldest_open: time(stats.oldest_open_seconds),
    last_hour: stats.orders_last_hour,
    prep_p50: time(prep.p50),
    prep_p90: time(prep.p90),
    subscribers: stats.subscribers,
  };
  for (const [id, figure] of Object.entries(figures)) setText(byId(id), String(figure));
  const most = stats.all_day[0]?.quantity ?? 1;
  const shown = stats.all_day.slice(0, MOST_METERS);
  keep(byId("all-day"), shown.length ? shown : [{ name: "", quantity: 0 }], ({ name }) => name, ({ quantity }) => `${quantity}/${most}`, ({ name, quantity }) =>
    quantity
      ? h("li", {}, h("span", {}, name), h("meter", { max: most, value: quantity, "aria-label": name }), h("b", {}, quantity))
      : h("li", { class: "empty small" }, t("nothing_to_cook")));
}

/** Orders of the last day, all of them while they fit into some pages. */
async function readDay(/** @type {string} */ since) {
  /** @type {Order[]} */
  const day = [];
  /** @type {string | null} */
  let page = `/api/orders?${new URLSearchParams({ since, limit: "1000" })}`;
  for (let pages = 0; page && pages < DAY_PAGES; pages++) {
    const answer = await call("GET", page);
    day.push(...answer.body);
    page = nextPage(answer.headers);
  }
  return day;
}

async function showDay(/** @type {any} */ stats) {
  const now = Date.parse(stats.server_time);
  const start = Math.floor(now / HOUR) * HOUR - (HOURS - 1) * HOUR;
  const tag = `${stats.cursor} ${start}`;
  if (tag === dayTag) return;
  const day = await readDay(new Date(start).toISOString());
  dayTag = tag;
  const hours = Array.from({ length: HOURS }, (_, place) => start + place * HOUR);
  const inHour = (/** @type {number} */ hour, /** @type {number} */ moment) => moment >= hour && moment < hour + HOUR;
  const counts = hours.map((hour) => ({ hour: clockTime(hour), value: day.filter((order) => inHour(hour, Date.parse(order.created_at))).length }));
  const most = Math.max(...counts.map(({ value }) => value));
  fill(byId("per-hour"), most ? bars(t("per_hour_label", { most }), counts) : h("p", { class: "empty small" }, t("no_data")));
  const cooked = day.filter((order) => order.ready_at).map((order) => ({ at: Date.parse(order.ready_at ?? ""), minutes: (Date.parse(order.ready_at ?? "") - enteredAt(order)) / 60_000 }));
  const percentile = (/** @type {number} */ share) =>
    hours.map((hour) => {
      const times = cooked.filter(({ at }) => inHour(hour, at)).map(({ minutes }) => minutes).sort((a, b) => a - b);
      const value = times.length ? Math.round(times[Math.ceil(times.length * share) - 1] * 10) / 10 : null;
      return { hour: clockTime(hour), value };
    });
  const series = [
    { name: t("median"), kind: "p50", points: percentile(0.5) },
    { name: t("percentile90"), kind: "p90", points: percentile(0.9) },
  ];
  const longest = Math.max(0, ...series[1].points.map(({ value }) => value ?? 0));
  fill(byId("prep"), cooked.length ? lines(t("prep_chart_label", { most: longest }), series) : h("p", { class: "empty small" }, t("no_data")));
}

// --- Orders ---------------------------------------------------------------------------------------------------------

function firstPage() {
  const query = new URLSearchParams({ limit: String(PAGE) });
  if (byId("status").value) query.set("status", byId("status").value);
  if (byId("query").value.trim()) query.set("table", byId("query").value.trim());
  return `/api/orders?${query}`;
}

/** The order whose number was searched for; the list itself searches by table. */
async function searchedOrder() {
  const number = /^#?(\d{1,15})$/.exec(byId("query").value.trim())?.[1];
  if (!number) return [];
  const answer = await call("GET", `/api/order/${number}`).catch(() => null);
  return answer && (!byId("status").value || answer.body.status === byId("status").value) ? [answer.body] : [];
}

async function showPage() {
  const asked = pollPage;
  const { changed, body, next: following } = await pollPage();
  if (!changed) return;
  const found = await searchedOrder();
  if (asked !== pollPage) return; // another search has begun
  newest = [...found, ...body];
  if (older.length === 0) next = following;
  showRows();
}

function showRows() {
  const known = new Map([...older, ...newest].map((order) => [order.id, order]));
  const shown = [...known.values()].sort((a, b) => b.id - a.id);
  keep(byId("rows"), shown, (order) => String(order.id), (order) => JSON.stringify(order), row);
  byId("nothing").hidden = shown.length > 0;
  setText(byId("nothing"), t("nothing_found"));
  byId("older").hidden = next === null;
}

function row(/** @type {Order} */ order) {
  return h("tr", {},
    h("td", {}, h("button", { class: "link", data: { focus: "open" }, onclick: () => showOrder(order) }, `#${order.id}`)),
    h("td", {}, shortTime(order.created_at)),
    h("td", {}, order.table),
    h("td", { class: "items" }, order.items.map((line) => `${line.quantity} × ${line.name}`).join(", ")),
    h("td", {}, h("span", { class: "status", data: { status: order.status } }, t(`status_${order.status}`)), isRush(order) && h("span", { class: "status", data: { status: "rush" } }, t("rush"))));
}

async function showOrder(/** @type {Order} */ order) {
  setText(byId("order-title"), `#${order.id} · ${order.table}`);
  fill(byId("order-lines"), order.note && h("li", { class: "note" }, order.note), order.items.map((line) =>
    h("li", { data: { status: line.status ?? "pending" } }, `${line.quantity} × ${line.name}`, line.note && h("span", { class: "note" }, line.note))));
  fill(byId("order-events"), h("li", { class: "muted" }, t("loading")));
  byId("order").showModal();
  const answer = await call("GET", `/api/order/${order.id}/events`).catch(() => ({ body: [] }));
  fill(byId("order-events"), answer.body.map((/** @type {any} */ event) =>
    h("li", {}, h("time", { class: "muted" }, shortTime(event.at)), h("b", {}, t(`event_${event.type}`)),
      h("span", { class: "grow" }, describe(order, event.changes)), event.by && h("span", { class: "muted" }, t("by", { who: event.by })))));
}

/**
 * What changed of an order, in words: "Received → Ready", "Burger: Ready", "Note: no nuts".
 *
 * @param {Order} order
 * @param {Record<string, [any, any]>} changes by JSON pointer, before and after
 */
function describe(order, changes) {
  const status = (/** @type {string} */ name) => t(`status_${name ?? "pending"}`);
  return Object.entries(changes).flatMap(([pointer, [before, after]]) => {
    const [, place, field] = /^\/items\/(\d+)\/(\w+)$/.exec(pointer) ?? [];
    if (field === "status") return [`${order.items[Number(place)]?.name ?? place}: ${status(after)}`];
    if (field === "name") return [`+ ${after}`];
    if (pointer === "/status") return [before ? `${status(before)} → ${status(after)}` : status(after)];
    if (pointer === "/table" || pointer === "/note") return [`${t(pointer.slice(1))}: ${after ?? "–"}`];
    if (pointer === "/priority") return [`${t("rush")}: ${after === "rush" ? "✓" : "–"}`];
    if (pointer === "/cancel_reason") return [`${t("reason")}: ${after}`];
    if (pointer === "/fire_at") return [`${t("later")}: ${shortTime(after)}`];
    return [];
  }).join(" · ");
}

byId("older").addEventListener("click", async () => {
  if (!next) return;
  const answer = await call("GET", next).catch(() => null);
  if (!answer) return;
  older.push(...answer.body);
  next = nextPage(answer.headers);
  showRows();
});

function search() {
  older = [];
  next = null;
  pollPage = poller(firstPage());
  showPage().catch(() => {});
}
byId("search").addEventListener("submit", (/** @type {SubmitEvent} */ event) => (event.preventDefault(), search()));
for (const id of ["query", "status"]) byId(id).addEventListener("input", search);
fill(byId("status"), h("option", { value: "" }, t("any_status")), h("option", { value: "open" }, t("open_now")), STATES.map((status) => h("option", { value: status }, t(`status_${status}`))));

// --- Polling --------------------------------------------------------------------------------------------------------

async function poll() {
  try {
    const { body } = await pollStats();
    showStats(body);
    await showPage();
    heard = new Date();
    showState("LIVE", heard);
    if (performance.now() - drawnDay > DAY_PERIOD) {
      drawnDay = performance.now();
      await showDay(body);
    }
  } catch {
    showState(Date.now() - heard.getTime() > STALE_AFTER ? "STALE" : "RECONNECTING", heard);
  }
  setTimeout(poll, PERIOD);
}

poll();
