/**
 * Building the page. Whatever comes from outside reaches it as text nodes and plain attributes, never as markup.
 */

const LONGEST_TAP = 800; // milliseconds

/** @typedef {Node | string | number | null | undefined | false} Child */

/**
 * An HTML element. Properties that start with "on" are listeners, `class` and names with a dash are attributes, the
 * others are set as properties of the element.
 *
 * @param {string} tag
 * @param {Record<string, any>} [properties]
 * @param {...(Child | Child[])} children
 * @returns {HTMLElement}
 */
export function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "class" || name === "role" || name === "for" || name.includes("-")) {
      element.setAttribute(name, value === true ? "" : String(value));
    } else if (name === "data") Object.assign(element.dataset, value);
    else Object.assign(element, { [name]: value });
  }
  element.append(...shown(children));
  return element;
}

/**
 * An SVG element.
 *
 * @param {string} tag
 * @param {Record<string, string | number>} [attributes]
 * @param {...(Child | Child[])} children
 * @returns {SVGElement}
 */
export function svg(tag, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, String(value));
  element.append(...shown(children));
  return element;
}

/**
 * The element of the page with an id.
 *
 * @param {string} id
 * @returns {any}
 */
export const byId = (id) => document.getElementById(id);

/**
 * Fill an element anew.
 *
 * @param {Element} parent
 * @param {...(Child | Child[])} children
 */
export const fill = (parent, ...children) => parent.replaceChildren(...shown(children));

/** Text that is only touched when it changes, so that nothing is laid out or read aloud for nothing. */
export function setText(/** @type {Element} */ element, /** @type {string} */ text) {
  if (element.textContent !== text) element.textContent = text;
}

/** @param {(Child | Child[])[]} children */
function shown(children) {
  return /** @type {(Node | string)[]} */ (
    children.flat().filter((child) => child || child === 0).map((child) => (child instanceof Node ? child : String(child)))
  );
}

/**
 * Make one element for each item and keep it for as long as the item stays: only what changed is built again.
 *
 * @template Item
 * @param {Element} parent
 * @param {Item[]} items in the order that they are to stand in
 * @param {(item: Item) => string} keyOf
 * @param {(item: Item) => string} stampOf changes when the item has to be built again
 * @param {(item: Item) => HTMLElement} build
 */
export function keep(parent, items, keyOf, stampOf, build) {
  const present = new Map([...parent.children].map((child) => [/** @type {HTMLElement} */ (child).dataset.key, child]));
  let place = parent.firstElementChild;
  for (const item of items) {
    const key = keyOf(item);
    const stamp = stampOf(item);
    let element = /** @type {HTMLElement | undefined} */ (present.get(key));
    present.delete(key);
    if (!element || element.dataset.stamp !== stamp) {
      const fresh = build(item);
      fresh.dataset.key = key;
      fresh.dataset.stamp = stamp;
      if (element) {
        const focused = focusPath(element);
        if (place === element) place = fresh;
        element.replaceWith(fresh);
        restoreFocus(fresh, focused);
      }
      element = fresh;
    }
    if (element === place) place = element.nextElementSibling;
    else parent.insertBefore(element, place);
  }
  for (const gone of present.values()) gone.remove();
}

/**
 * Coalesce drawing: once for all that one message or one tap changes, and never between a finger's coming down and its
 * going up, because the tap would then miss what it was aimed at. Frames are no clock: a covered window has few.
 *
 * @param {() => void} render
 * @returns {() => void} call it whenever something has changed
 */
export function drawing(render) {
  let wanted = false;
  /** @type {Map<number, number>} fingers that are down → the timer after which one no longer counts as tapping */
  const down = new Map();
  const draw = () => {
    if (wanted) return;
    wanted = true;
    queueMicrotask(flush);
  };
  const flush = () => {
    if (!wanted || down.size) return;
    wanted = false;
    render();
  };
  const lift = (/** @type {number} */ finger, /** @type {number | undefined} */ tap) => {
    if (down.get(finger) !== tap) return; // it is down again, for another tap
    clearTimeout(tap);
    down.delete(finger);
    flush();
  };
  addEventListener("pointerdown", ({ pointerId }) => {
    clearTimeout(down.get(pointerId));
    const tap = setTimeout(() => lift(pointerId, tap), LONGEST_TAP);
    down.set(pointerId, tap);
  }, true);
  for (const end of /** @type {const} */ (["pointerup", "pointercancel"])) {
    addEventListener(end, ({ pointerId }) => {
      const tap = down.get(pointerId);
      setTimeout(() => lift(pointerId, tap));
    }, true);
  }
  return draw;
}

/** Which control inside an element has the focus: its `data-focus`, or "" for the element itself, or null. */
function focusPath(/** @type {Element} */ element) {
  const active = /** @type {HTMLElement | null} */ (document.activeElement);
  return active && element.contains(active) ? (active.dataset.focus ?? "") : null;
}

function restoreFocus(/** @type {HTMLElement} */ element, /** @type {string | null} */ path) {
  if (path === null) return;
  const targets = /** @type {NodeListOf<HTMLElement>} */ (element.querySelectorAll("[data-focus]"));
  const target = [...targets].find((found) => found.dataset.focus === path);
  (target ?? element).focus({ preventScroll: true });
}
