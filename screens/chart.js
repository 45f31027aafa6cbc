/**
 * Small charts over the last hours, drawn as SVG.
 */

import { h, svg } from "./dom.js";

const WIDTH = 480;
const HEIGHT = 240;
const BASE = 212; // where the axis is; hours stand below
const LEFT = 34;

/** @typedef {{hour: string, value: number | null}} Point */

/** A round number that is not less than any value, to end an axis with. */
function ceiling(/** @type {number} */ most) {
  const step = 10 ** Math.floor(Math.log10(Math.max(most, 1)));
  return [1, 2, 4, 5, 10].map((factor) => factor * step).find((end) => end >= most && end >= 4) ?? 10 * step;
}

/**
 * @param {string} label
 * @param {Point[]} points
 * @param {number} top
 * @param {(SVGElement | null)[]} drawn
 */
function frame(label, points, top, drawn) {
  const grid = [0, top / 2, top].flatMap((value) => [
    svg("line", { class: "grid", x1: LEFT, x2: WIDTH, y1: y(value, top), y2: y(value, top) }),
    svg("text", { class: "axis", x: LEFT - 6, y: y(value, top) + 4, "text-anchor": "end" }, value),
  ]);
  const hours = points.map((point, place) =>
    place % 4 === 3 ? svg("text", { class: "axis", x: x(place, points), y: HEIGHT - 6, "text-anchor": "middle" }, point.hour) : null);
  return svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": label }, ...grid, ...hours, ...drawn);
}

const width = (/** @type {Point[]} */ points) => (WIDTH - LEFT) / points.length;
const x = (/** @type {number} */ place, /** @type {Point[]} */ points) => LEFT + (place + 0.5) * width(points);
const y = (/** @type {number} */ value, /** @type {number} */ top) => BASE - (value / top) * (BASE - 10);

/** @param {string} label @param {Point[]} points */
export function bars(label, points) {
  const top = ceiling(Math.max(...points.map((point) => point.value ?? 0)));
  const drawn = points.map(({ hour, value }, place) =>
    value
      ? svg("rect", { class: "value", x: x(place, points) - width(points) * 0.35, width: width(points) * 0.7, y: y(value, top), height: BASE - y(value, top), rx: 2 },
          svg("title", {}, `${hour}: ${value}`))
      : null);
  return frame(label, points, top, drawn);
}

/** @param {string} label @param {{name: string, kind: string, points: Point[]}[]} series */
export function lines(label, series) {
  const top = ceiling(Math.max(...series.flatMap(({ points }) => points.map((point) => point.value ?? 0))));
  const drawn = series.flatMap(({ name, kind, points }) => {
    const known = points.flatMap(({ hour, value }, place) => (value === null ? [] : [{ hour, value, at: x(place, points) }]));
    const path = known.map(({ value, at }) => `${at.toFixed(1)},${y(value, top).toFixed(1)}`).join(" ");
    return [
      svg("polyline", { class: `trend ${kind}`, points: path }),
      ...known.map(({ hour, value, at }) =>
        svg("circle", { class: `dot ${kind}`, cx: at, cy: y(value, top), r: 3.5 }, svg("title", {}, `${hour}, ${name}: ${value}`))),
    ];
  });
  const legend = h("p", { class: "legend" }, series.map(({ name, kind }) => h("span", { data: { kind } }, name)));
  return [frame(label, series[0].points, top, drawn), legend];
}
