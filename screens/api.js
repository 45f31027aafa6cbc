/**
 * The HTTP API as the screens use it. The session is a cookie; who has none is told so by one event on `session`.
 */

const PATIENCE = 10_000; // milliseconds that an answer may take

/** Fires "lost" when the server no longer knows who asks (401), and "refused" when it serves nobody else (403). */
export const session = new EventTarget();

/** An answer that refuses, as RFC 9457 describes it, or no answer at all (`status` 0). */
export class Refusal extends Error {
  /**
   * @param {number} status
   * @param {{code?: string, detail?: string, order?: Order}} problem
   */
  constructor(status, problem) {
    super(problem.detail ?? "");
    this.status = status;
    this.code = problem.code ?? "";
    this.order = problem.order;
  }

  /** Whether asking again later can help. */
  get passing() {
    return this.status === 0 || this.status === 401 || this.status === 408 || this.status === 429 || this.status >= 500;
  }
}

/**
 * @typedef {{name: string, quantity: number, note?: string, station?: string, status?: "ready" | "voided"}} Line
 * @typedef {{id: number, table: string, items: Line[], note?: string, priority?: "normal" | "rush", fire_at?: string,
 *   source?: string, external_id?: string, created_at: string, status: string, version: number, updated_at: string,
 *   fired_at?: string, ready_at?: string, completed_at?: string, cancelled_at?: string, cancel_reason?: string}} Order
 */

/**
 * Ask the server. Resolves with status, headers and the parsed body; rejects with a Refusal.
 *
 * @param {string} method
 * @param {string} path
 * @param {any} [body]
 * @param {Record<string, string>} [headers]
 * @returns {Promise<{status: number, headers: Headers, body: any}>}
 */
export async function call(method, path, body, headers = {}) {
  let response;
  let text;
  try {
    response = await fetch(path, {
      method,
      headers: body === undefined ? headers : { "Content-Type": "application/json", ...headers },
      body: body === undefined ? undefined : JSON.stringify(body),
      cache: "no-store",
      signal: AbortSignal.timeout(PATIENCE),
    });
    text = await response.text();
  } catch {
    throw new Refusal(0, {});
  }
  const parsed = parse(text);
  if (response.ok || response.status === 304) return { status: response.status, headers: response.headers, body: parsed };
  const refusal = new Refusal(response.status, parsed ?? {});
  if (refusal.status === 401 && refusal.code !== "wrong_credentials") session.dispatchEvent(new Event("lost"));
  if (refusal.code === "protected_mode") session.dispatchEvent(new Event("refused"));
  throw refusal;
}

function parse(/** @type {string} */ text) {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

/**
 * A GET that is answered from here while the server says that nothing changed (ETag, 304).
 *
 * @param {string} path
 * @returns {() => Promise<{changed: boolean, body: any, next: string | null}>}
 */
export function poller(path) {
  /** @type {{body: any, next: string | null} | null} */
  let known = null;
  let tag = "";
  return async () => {
    const answer = await call("GET", path, undefined, tag ? { "If-None-Match": tag } : {});
    if (answer.status === 304 && known) return { changed: false, ...known };
    tag = answer.headers.get("ETag") ?? "";
    known = { body: answer.body, next: nextPage(answer.headers) };
    return { changed: true, ...known };
  };
}

/** The path of the next page that a Link header names, or null. */
export function nextPage(/** @type {Headers} */ headers) {
  const found = /<([^>]+)>; rel="next"/.exec(headers.get("Link") ?? "");
  if (!found) return null;
  const url = new URL(found[1], location.origin);
  return url.pathname + url.search;
}

/** Whether there are accounts: without a cookie, only a server in protected mode answers. */
export async function accountsExist() {
  const response = await fetch("/api/stats", { credentials: "omit", cache: "no-store", signal: AbortSignal.timeout(PATIENCE) });
  return response.status === 401;
}

/** A name that nobody else has. `crypto.randomUUID` would need HTTPS. */
export function uniqueName() {
  return [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}
