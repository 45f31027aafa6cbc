/**
 * Keeps the pages on the device, so that a till or a kitchen opens while the server is down or the Wi-Fi is gone.
 *
 * The server puts VERSION and FILES in front of this: other files make another worker, which fetches all of them before
 * it takes over. While the server answers, it is asked first, so what is kept is only ever shown when it doesn't. A page
 * from here is made of what is here: nothing of two versions meets. Orders are not its business: see outbox.js.
 */

const CACHE = `bistro92-${VERSION}`;
const PATIENCE = 3_000; // milliseconds for a page
const MOST = 50; // pages remembered

/** Pages that came from here, by client id. */
const kept = new Set();

addEventListener("install", (event) => event.waitUntil(keepAll()));
addEventListener("activate", (event) => event.waitUntil(takeOver()));
addEventListener("fetch", (event) => {
  const { method, url } = event.request;
  const { origin, pathname } = new URL(url);
  if (method === "GET" && origin === location.origin && FILES.includes(pathname)) event.respondWith(answer(event, pathname));
});

async function keepAll() {
  const cache = await caches.open(CACHE);
  await cache.addAll(FILES.map((path) => new Request(path, { cache: "reload" })));
  await skipWaiting();
}

async function takeOver() {
  for (const name of await caches.keys()) if (name !== CACHE) await caches.delete(name);
  await clients.claim();
}

async function answer({ request, clientId, resultingClientId }, path) {
  const cache = await caches.open(CACHE);
  if (!kept.has(clientId)) {
    try {
      const response = await fetch(request, { signal: AbortSignal.timeout(PATIENCE) });
      if (response.status < 500) return response; // a proxy without its server says 502
    } catch {
      // no server: what is kept
    }
    if (resultingClientId) {
      if (kept.size >= MOST) kept.clear();
      kept.add(resultingClientId);
    }
  }
  return (await cache.match(path)) ?? Response.error();
}
