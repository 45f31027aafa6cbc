/**
 * What can be ordered here. The API has no menu, so a till learns one from the orders that it sees: what is ordered
 * most comes first. It is kept on this device, because a till has to work without the server, too.
 */

import { remember, remembered } from "./shell.js";
import { suggestedItems, suggestedTables } from "./texts.js";

/** @typedef {import("./api.js").Order} Order */

const SHOWN = 60; // names
const ENOUGH = 12; // names, or tables, below which suggestions fill up

export class Menu {
  /** @type {Record<string, {count: number, station: string}>} */ #names;
  /** @type {Set<string>} */ #tables;
  /** @type {number} the newest order that was learnt from */ #last;

  constructor() {
    const { names = {}, tables = [], last = 0 } = remembered("menu", {});
    this.#names = Object.assign(Object.create(null), names);
    this.#tables = new Set(tables);
    this.#last = last;
  }

  /** Take note of what some orders are made of; each order counts once. Numbers begin anew where `areLatest` end lower. */
  learn(/** @type {Order[]} */ orders, areLatest = false) {
    if (areLatest) this.#last = Math.min(this.#last, Math.max(0, ...orders.map((order) => order.id)));
    const news = orders.filter((order) => order.id > this.#last).sort((a, b) => a.id - b.id);
    if (news.length === 0) return;
    for (const order of news) {
      this.#tables.add(order.table);
      this.#last = order.id;
      for (const line of order.items) {
        const known = (this.#names[line.name] ??= { count: 0, station: "" });
        known.count += line.quantity;
        if (line.station) known.station = line.station;
      }
    }
    remember("menu", { names: this.#names, tables: [...this.#tables], last: this.#last });
  }

  /** Names to tap, those ordered most first. */
  names() {
    const learnt = Object.keys(this.#names).sort((a, b) => this.#names[b].count - this.#names[a].count || a.localeCompare(b));
    const suggested = Object.keys(suggestedItems).filter((name) => !(name in this.#names));
    return [...learnt.slice(0, SHOWN), ...suggested.slice(0, Math.max(0, ENOUGH - learnt.length))];
  }

  /** The station that a thing usually comes from, or "". */
  stationOf(/** @type {string} */ name) {
    return this.#names[name]?.station ?? suggestedItems[name] ?? "";
  }

  stations() {
    return [...new Set(this.names().map((name) => this.stationOf(name)))].filter(Boolean).sort();
  }

  tables() {
    const all = new Set([...suggestedTables, ...this.#tables]);
    return [...all].sort((a, b) => a.localeCompare(b, undefined, { numeric: true }));
  }
}
