/**
 * The feed: every order there is, and every change of one, as it happens.
 *
 *     const feed = new Feed({ initial, event, state });
 *
 * It connects, reconnects and resumes by itself; whoever uses it hears of `initial` (forget what you knew, this is all)
 * and of events that follow without a gap. Nothing of it draws anything.
 */

import { call } from "./api.js";

/** @typedef {import("./api.js").Order} Order */
/** @typedef {"LIVE" | "RECONNECTING" | "STALE"} State */

const ASK_AFTER = 4_000; // milliseconds of silence after which the server is asked for a sign of life
const STALE_AFTER = 9_000; // of silence after which what is shown may be wrong
const GIVE_UP_AFTER = 14_000; // of silence after which a connection counts as dead
const OPEN_WITHIN = 5_000; // for a connection to be made
const TICK = 1_000;
const BACK_OFF = { first: 200, most: 2_500 };

export class Feed {
  /** @type {WebSocket | null} */ #socket = null;
  /** @type {string | null} */ #cursor = null; // where to resume; null until the first `initial`
  #heard = performance.now(); // when the server last said anything
  #opened = 0; // when the present connection was begun
  #attempts = 0; // that failed in a row
  #asked = false; // for a sign of life, since it last spoke
  #offset = 0; // milliseconds that the server's clock is ahead of ours
  /** @type {number | undefined} */ #retry = undefined; // the timer of the next attempt
  /** @type {State} */ #state = "RECONNECTING";
  #hears;

  /**
   * @param {{
   *   initial: (orders: Order[]) => void,
   *   event: (type: string, order: Order) => void,
   *   state: (state: State, since: Date) => void,
   * }} hears what to call; `since` is when the server was last heard
   */
  constructor(hears) {
    this.#hears = hears;
    this.#connect();
    setInterval(() => this.#watch(), TICK);
    addEventListener("online", () => this.#hurry());
    document.addEventListener("visibilitychange", () => document.hidden || this.#hurry());
  }

  /** The server's clock, in milliseconds. */
  now() {
    return Date.now() + this.#offset;
  }

  #connect() {
    clearTimeout(this.#retry);
    this.#retry = undefined;
    const query = new URLSearchParams({ batch: "true" });
    if (this.#cursor) query.set("after", this.#cursor);
    const scheme = location.protocol === "https:" ? "wss" : "ws";
    const socket = new WebSocket(`${scheme}://${location.host}/ws/orders?${query}`);
    this.#socket = socket;
    this.#opened = performance.now();
    socket.onmessage = (message) => this.#socket === socket && this.#hear(JSON.parse(message.data));
    socket.onclose = () => this.#socket === socket && this.#lose();
  }

  /** @param {any} message */
  #hear(message) {
    this.#heard = performance.now();
    this.#asked = false;
    this.#attempts = 0;
    if (message.cursor) this.#cursor = message.cursor;
    // Whole seconds reach us: on average half a second has passed since.
    if (message.server_time) this.#offset = Date.parse(message.server_time) + 500 - Date.now();
    if (message.type === "initial") this.#hears.initial(message.orders);
    else if (message.type === "batch") for (const event of message.events) this.#hears.event(event.type, event.order);
    else if (message.order) this.#hears.event(message.type, message.order);
    this.#judge();
  }

  #lose() {
    const socket = this.#socket;
    this.#socket = null;
    if (socket) socket.onclose = socket.onmessage = null;
    socket?.close();
    this.#judge();
    const longest = Math.min(BACK_OFF.most, BACK_OFF.first * 2 ** this.#attempts++);
    this.#retry = setTimeout(() => this.#try(), longest * (0.5 + Math.random() / 2));
  }

  /** A request shows whether the server is back, and whether it still knows us; browsers slow down sockets that fail. */
  async #try() {
    this.#retry = undefined;
    this.#opened = performance.now();
    try {
      await call("GET", "/api/changes");
      this.#connect();
    } catch {
      this.#lose();
    }
  }

  #watch() {
    const now = performance.now();
    const silence = now - this.#heard;
    if (this.#socket?.readyState === WebSocket.OPEN) {
      if (silence > GIVE_UP_AFTER && now - this.#opened > GIVE_UP_AFTER) this.#lose();
      else if (silence > ASK_AFTER && !this.#asked) {
        this.#asked = true;
        this.#socket.send("?");
      }
    } else if (this.#socket && now - this.#opened > OPEN_WITHIN) this.#lose();
    this.#judge();
  }

  /** The network is back, or somebody looks: don't wait for a timer that was set in worse times. */
  #hurry() {
    this.#attempts = 0;
    if (this.#retry !== undefined) {
      clearTimeout(this.#retry);
      this.#try();
    }
    this.#watch();
  }

  #judge() {
    const silence = performance.now() - this.#heard;
    const listening = this.#socket?.readyState === WebSocket.OPEN && this.#heard >= this.#opened;
    const state = silence > STALE_AFTER ? "STALE" : listening ? "LIVE" : "RECONNECTING";
    if (state === this.#state) return;
    this.#state = state;
    this.#hears.state(state, new Date(Date.now() - silence));
  }
}
