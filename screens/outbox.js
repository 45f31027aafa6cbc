/**
 * Writes that must arrive exactly once, whatever happens to the network, the server or this tablet.
 *
 * An entry is kept in IndexedDB, with the Idempotency-Key that it was given when it was made, until the server has
 * answered it for good. Entries are delivered in order, one at a time; one without an answer is sent again as it was,
 * and the server gives the first answer again. Fires "change", "delivered" ({entry, order}) and "refused"
 * ({entry, refusal}).
 */

import { Refusal, call, uniqueName } from "./api.js";

/** @typedef {import("./api.js").Order} Order */
/**
 * @typedef {object} Entry
 * @property {string} key the Idempotency-Key
 * @property {string} lane whose it is: each screen has its own
 * @property {number} place entries are delivered in this order
 * @property {string} method
 * @property {string} path
 * @property {any} body
 * @property {number} [order] the order that it changes
 * @property {number} [version] the version of it that the person saw
 * @property {string} madeAt
 * @property {boolean} tried whether the server may have seen it
 * @property {boolean} [precious] whether it stays here when it is refused, for somebody to decide what becomes of it
 * @property {string} [problem] why it was refused
 * @property {any} [about] what the screen wants to remember
 */

const BACK_OFF = { first: 300, most: 3_000 };

export class Outbox extends EventTarget {
  /** @type {Entry[]} in the order of delivery */
  entries = [];
  #lane;
  #database;
  #delivering = false;
  #failures = 0; // in a row
  /** @type {number | undefined} */ #retry = undefined;

  /** @param {string} lane */
  static async open(lane) {
    const database = await openDatabase();
    const outbox = new Outbox(lane, database);
    const all = await settle(database.transaction("entries").objectStore("entries").getAll());
    outbox.entries = all.filter((/** @type {Entry} */ entry) => entry.lane === lane).sort(byPlace);
    outbox.kick();
    return outbox;
  }

  constructor(/** @type {string} */ lane, /** @type {IDBDatabase} */ database) {
    super();
    this.#lane = lane;
    this.#database = database;
  }

  /** Entries that are on their way; the others were refused. */
  get waiting() {
    return this.entries.filter((entry) => !entry.problem);
  }

  /**
   * Keep a write, and send it as soon as possible. It is in `entries` at once; resolves when it is safe on this device,
   * rejects when this device can't keep it, and then it isn't sent.
   *
   * @param {Pick<Entry, "method" | "path" | "body"> & Partial<Entry>} write
   * @returns {Promise<Entry>}
   */
  async add(write) {
    const place = Math.max(Date.now(), (this.entries.at(-1)?.place ?? 0) + 1);
    const entry = { key: uniqueName(), madeAt: new Date().toISOString(), tried: false, ...write, lane: this.#lane, place };
    this.entries.push(entry);
    this.#changed();
    try {
      await this.#store((entries) => entries.put(entry));
    } catch (error) {
      this.#drop(entry);
      throw error;
    }
    this.kick();
    return entry;
  }

  /** Take back what the server can't have seen yet. False where it is too late. */
  async withdraw(/** @type {string} */ key) {
    const entry = this.entries.find((each) => each.key === key);
    if (!entry || (entry.tried && !entry.problem)) return false;
    this.#drop(entry);
    await this.#store((entries) => entries.delete(entry.key));
    return true;
  }

  /** Deliver now what is waiting, without waiting for a timer. */
  kick() {
    clearTimeout(this.#retry);
    this.#deliver();
  }

  async #deliver() {
    if (this.#delivering) return;
    this.#delivering = true;
    try {
      for (let entry; (entry = this.waiting[0]); this.#failures = 0) {
        if (!(await this.#send(entry))) {
          const longest = Math.min(BACK_OFF.most, BACK_OFF.first * 2 ** this.#failures++);
          this.#retry = setTimeout(() => this.#deliver(), longest * (0.5 + Math.random() / 2));
          return;
        }
      }
    } finally {
      this.#delivering = false;
    }
  }

  /** Whether the server gave its last word on an entry. */
  async #send(/** @type {Entry} */ entry) {
    if (!entry.tried) {
      entry.tried = true;
      await this.#store((entries) => entries.put(entry));
    }
    /** @type {Record<string, string>} */
    const headers = { "Idempotency-Key": entry.key };
    if (entry.version !== undefined) headers["If-Match"] = `"${entry.version}"`;
    try {
      const { body } = await call(entry.method, entry.path, entry.body, headers);
      await this.#delivered(entry, body);
    } catch (error) {
      if (!(error instanceof Refusal)) throw error;
      if (error.passing) return false;
      if (error.code === "duplicate_order" && error.order) await this.#delivered(entry, error.order);
      else await this.#refused(entry, error);
    }
    return true;
  }

  /**
   * Who made further changes while this one was on its way saw the order as this change leaves it. All hear of it at
   * once: a change that is made from now on has the new version.
   */
  async #delivered(/** @type {Entry} */ entry, /** @type {Order} */ order) {
    const isLater = (/** @type {Entry} */ each) => each !== entry && each.order === entry.order && each.version === entry.version;
    const later = entry.version === undefined ? [] : this.waiting.filter(isLater);
    for (const each of later) each.version = order.version;
    this.dispatchEvent(new CustomEvent("delivered", { detail: { entry, order } }));
    this.#drop(entry);
    await this.#store((entries) => {
      entries.delete(entry.key);
      for (const each of later) entries.put(each);
    });
  }

  async #refused(/** @type {Entry} */ entry, /** @type {Refusal} */ refusal) {
    this.dispatchEvent(new CustomEvent("refused", { detail: { entry, refusal } }));
    if (!entry.precious) {
      this.#drop(entry);
      await this.#store((entries) => entries.delete(entry.key));
      return;
    }
    entry.problem = refusal.message || String(refusal.status);
    this.#changed();
    await this.#store((entries) => entries.put(entry));
  }

  #drop(/** @type {Entry} */ entry) {
    this.entries = this.entries.filter((each) => each !== entry);
    this.#changed();
  }

  #changed() {
    this.dispatchEvent(new Event("change"));
  }

  /** Change what is kept on this device; resolves when it is on its disk. */
  async #store(/** @type {(entries: IDBObjectStore) => void} */ change) {
    const transaction = this.#database.transaction("entries", "readwrite", { durability: "strict" });
    change(transaction.objectStore("entries"));
    await finish(transaction);
  }
}

const byPlace = (/** @type {Entry} */ a, /** @type {Entry} */ b) => a.place - b.place;

/** @returns {Promise<IDBDatabase>} */
function openDatabase() {
  const request = indexedDB.open("bistro92", 1);
  request.onupgradeneeded = () => request.result.createObjectStore("entries", { keyPath: "key" });
  return settle(request);
}

/**
 * @param {IDBRequest} request
 * @returns {Promise<any>}
 */
function settle(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

/**
 * @param {IDBTransaction} transaction
 * @returns {Promise<void>}
 */
function finish(transaction) {
  return new Promise((resolve, reject) => {
    transaction.oncomplete = () => resolve();
    transaction.onabort = () => reject(transaction.error);
  });
}
