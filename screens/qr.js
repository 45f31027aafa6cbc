/**
 * QR codes (ISO/IEC 18004): bytes, error correction level M, as an SVG image.
 */

import { svg } from "./dom.js";

// Of each version, from 1: codewords of error correction in a block, and how many blocks (level M).
const CORRECTION = [10, 16, 26, 18, 24, 16, 18, 22, 22, 26, 30, 22, 22, 24, 24];
const BLOCKS = [1, 1, 1, 2, 2, 4, 4, 4, 5, 5, 5, 8, 9, 9, 10];
const QUIET = 4; // modules of white around it

/** A code that says a text, for a camera. */
export function drawCode(/** @type {string} */ text) {
  const modules = encode(text);
  const size = modules.length + 2 * QUIET;
  const path = modules.flatMap((row, y) => row.map((dark, x) => (dark ? `M${x + QUIET},${y + QUIET}h1v1h-1z` : ""))).join("");
  return svg("svg", { viewBox: `0 0 ${size} ${size}`, role: "img", "aria-label": "QR", "shape-rendering": "crispEdges" },
    svg("rect", { width: size, height: size, fill: "#fff" }), svg("path", { d: path, fill: "#000" }));
}

/** @returns {boolean[][]} rows of modules, true for dark */
export function encode(/** @type {string} */ text) {
  const bytes = [...new TextEncoder().encode(text)];
  const version = CORRECTION.findIndex((_, place) => bytes.length + (place + 1 < 10 ? 2 : 3) <= dataCodewords(place + 1)) + 1;
  if (version === 0) throw new RangeError("the text is too long for a QR code");
  const codewords = interleave(pack(bytes, version), version);
  const size = version * 4 + 17;
  /** @type {(boolean | undefined)[][]} undefined where data go */
  const fixed = Array.from({ length: size }, () => Array(size).fill(undefined));
  drawPatterns(fixed, version);
  const candidates = Array.from({ length: 8 }, (_, mask) => {
    const modules = place(fixed, codewords, mask);
    drawFormat(modules, mask);
    return modules;
  });
  return candidates.reduce((best, each) => (penalty(each) < penalty(best) ? each : best));
}

function rawModules(/** @type {number} */ version) {
  const alignments = version === 1 ? 0 : Math.floor(version / 7) + 2;
  const plain = (16 * version + 128) * version + 64;
  if (version === 1) return plain;
  return plain - ((25 * alignments - 10) * alignments - 55) - (version >= 7 ? 36 : 0);
}

function dataCodewords(/** @type {number} */ version) {
  return Math.floor(rawModules(version) / 8) - CORRECTION[version - 1] * BLOCKS[version - 1];
}

/** Mode, length, the bytes, and padding up to the capacity. */
function pack(/** @type {number[]} */ bytes, /** @type {number} */ version) {
  const lengthBits = version < 10 ? 8 : 16;
  const bits = [4, bytes.length, ...bytes].map((value, at) => value.toString(2).padStart(at === 0 ? 4 : at === 1 ? lengthBits : 8, "0")).join("");
  const capacity = dataCodewords(version);
  const closed = bits + "0".repeat(Math.min(4, capacity * 8 - bits.length));
  const whole = closed.padEnd(Math.ceil(closed.length / 8) * 8, "0");
  const codewords = (whole.match(/.{8}/g) ?? []).map((octet) => parseInt(octet, 2));
  for (let pad = 0xec; codewords.length < capacity; pad ^= 0xec ^ 0x11) codewords.push(pad);
  return codewords;
}

/** The blocks' data, one codeword of each in turn, and then their error correction likewise. */
function interleave(/** @type {number[]} */ data, /** @type {number} */ version) {
  const count = BLOCKS[version - 1];
  const short = Math.floor(data.length / count);
  const longOnes = data.length % count;
  const divisor = generator(CORRECTION[version - 1]);
  let at = 0;
  const blocks = Array.from({ length: count }, (_, block) => {
    const part = data.slice(at, (at += short + (block >= count - longOnes ? 1 : 0)));
    return { part, correction: remainder(part, divisor) };
  });
  const turn = (/** @type {number[][]} */ lists) =>
    Array.from({ length: Math.max(...lists.map((list) => list.length)) }, (_, place) => lists.flatMap((list) => list[place] ?? [])).flat();
  return [...turn(blocks.map(({ part }) => part)), ...turn(blocks.map(({ correction }) => correction))];
}

/** In the field GF(2^8) with the polynomial 0x11d. */
function multiply(/** @type {number} */ a, /** @type {number} */ b) {
  let product = 0;
  for (let bit = 7; bit >= 0; bit--) {
    product = (product << 1) ^ ((product >>> 7) * 0x11d);
    product ^= ((b >>> bit) & 1) * a;
  }
  return product;
}

/** The Reed–Solomon generator polynomial of a degree, without its leading 1. */
function generator(/** @type {number} */ degree) {
  const polynomial = [...Array(degree - 1).fill(0), 1];
  for (let step = 0, root = 1; step < degree; step++, root = multiply(root, 2)) {
    for (let place = 0; place < degree; place++) {
      polynomial[place] = multiply(polynomial[place], root) ^ (polynomial[place + 1] ?? 0);
    }
  }
  return polynomial;
}

function remainder(/** @type {number[]} */ data, /** @type {number[]} */ divisor) {
  const rest = divisor.map(() => 0);
  for (const codeword of data) {
    const factor = codeword ^ /** @type {number} */ (rest.shift());
    rest.push(0);
    divisor.forEach((coefficient, place) => (rest[place] ^= multiply(coefficient, factor)));
  }
  return rest;
}

/** Everything that is the same for all texts of a version; where the format goes is reserved. */
function drawPatterns(/** @type {(boolean | undefined)[][]} */ modules, /** @type {number} */ version) {
  const size = modules.length;
  const square = (/** @type {number} */ row, /** @type {number} */ column, /** @type {number} */ radius, /** @type {(distance: number) => boolean} */ dark) => {
    for (let y = -radius; y <= radius; y++) {
      for (let x = -radius; x <= radius; x++) {
        if (modules[row + y] && column + x >= 0 && column + x < size) modules[row + y][column + x] = dark(Math.max(Math.abs(x), Math.abs(y)));
      }
    }
  };
  for (let at = 0; at < size; at++) modules[6][at] = modules[at][6] = at % 2 === 0;
  const centres = alignmentCentres(version);
  const last = centres.length - 1;
  centres.forEach((row, i) => centres.forEach((column, j) => {
    const atFinder = (i === 0 && j === 0) || (i === 0 && j === last) || (i === last && j === 0);
    if (!atFinder) square(row, column, 2, (distance) => distance !== 1);
  }));
  for (const [row, column] of [[3, 3], [3, size - 4], [size - 4, 3]]) square(row, column, 4, (distance) => distance !== 2 && distance !== 4);
  drawFormat(/** @type {boolean[][]} */ (modules), 0);
  if (version >= 7) drawVersion(modules, version);
}

function alignmentCentres(/** @type {number} */ version) {
  if (version === 1) return [];
  const count = Math.floor(version / 7) + 2;
  const step = Math.ceil((version * 4 + 4) / (count * 2 - 2)) * 2;
  const end = version * 4 + 10;
  return [6, ...Array.from({ length: count - 1 }, (_, place) => end - (count - 2 - place) * step)];
}

/** Append the remainder of a division by a generator, as BCH codes do. */
function withRemainder(/** @type {number} */ data, /** @type {number} */ bits, /** @type {number} */ divisor) {
  let rest = data;
  for (let step = 0; step < bits; step++) rest = (rest << 1) ^ ((rest >>> (bits - 1)) * divisor);
  return (data << bits) | rest;
}

function drawVersion(/** @type {(boolean | undefined)[][]} */ modules, /** @type {number} */ version) {
  const bits = withRemainder(version, 12, 0x1f25);
  for (let at = 0; at < 18; at++) {
    const far = modules.length - 11 + (at % 3);
    const near = Math.floor(at / 3);
    modules[near][far] = modules[far][near] = ((bits >>> at) & 1) === 1;
  }
}

/** Level M and the mask, twice. */
function drawFormat(/** @type {boolean[][]} */ modules, /** @type {number} */ mask) {
  const size = modules.length;
  const bits = withRemainder(mask, 10, 0x537) ^ 0x5412;
  const bit = (/** @type {number} */ at) => ((bits >>> at) & 1) === 1;
  for (let at = 0; at < 15; at++) {
    const near = at < 6 ? at : at < 8 ? at + 1 : 14 - at;
    if (at < 8) modules[near][8] = bit(at);
    else modules[8][at === 8 ? 7 : near] = bit(at);
    if (at < 8) modules[8][size - 1 - at] = bit(at);
    else modules[size - 15 + at][8] = bit(at);
  }
  modules[size - 8][8] = true;
}

const MASKS = /** @type {((x: number, y: number) => boolean)[]} */ ([
  (x, y) => (x + y) % 2 === 0,
  (_, y) => y % 2 === 0,
  (x) => x % 3 === 0,
  (x, y) => (x + y) % 3 === 0,
  (x, y) => (Math.floor(x / 3) + Math.floor(y / 2)) % 2 === 0,
  (x, y) => ((x * y) % 2) + ((x * y) % 3) === 0,
  (x, y) => (((x * y) % 2) + ((x * y) % 3)) % 2 === 0,
  (x, y) => (((x + y) % 2) + ((x * y) % 3)) % 2 === 0,
]);

/** Lay the codewords in: two columns at a time, from the right, up and down in turns. */
function place(/** @type {(boolean | undefined)[][]} */ fixed, /** @type {number[]} */ codewords, /** @type {number} */ mask) {
  const size = fixed.length;
  const modules = fixed.map((row) => [...row]);
  let bit = 0;
  for (let right = size - 1; right >= 1; right -= right === 8 ? 3 : 2 /* past the timing column */) {
    const upward = ((right + 1) & 2) === 0;
    for (let step = 0; step < size; step++) {
      const y = upward ? size - 1 - step : step;
      for (const x of [right, right - 1]) {
        if (fixed[y][x] !== undefined) continue;
        const dark = (((codewords[bit >>> 3] ?? 0) >>> (7 - (bit & 7))) & 1) === 1;
        modules[y][x] = dark !== MASKS[mask](x, y);
        bit++;
      }
    }
  }
  return /** @type {boolean[][]} */ (modules);
}

/** How hard a code is to read: runs, blocks, false finders, imbalance. */
function penalty(/** @type {boolean[][]} */ modules) {
  const size = modules.length;
  const columns = modules.map((_, x) => modules.map((row) => row[x]));
  let points = 0;
  for (const row of [...modules, ...columns]) {
    const text = row.map(Number).join("");
    for (const run of text.match(/0{5,}|1{5,}/g) ?? []) points += run.length - 2;
    points += 40 * [...text.matchAll(/(?=00001011101|10111010000)/g)].length;
  }
  for (let y = 1; y < size; y++) {
    for (let x = 1; x < size; x++) {
      const dark = modules[y][x];
      if (dark === modules[y - 1][x] && dark === modules[y][x - 1] && dark === modules[y - 1][x - 1]) points += 3;
    }
  }
  const share = modules.flat().filter(Boolean).length / size ** 2;
  return points + 10 * Math.floor(Math.abs(share - 0.5) * 20);
}
