/**
 * What a display does besides showing: it makes itself heard, and it stays awake.
 */

/** @type {AudioContext | null} */
let audio = null;

/** Whether the browser lets us make sounds, and we want to. */
export const soundIsReady = () => audio?.state === "running";

/** Switch sounds on, from within a tap or a key press, or off. */
export async function wakeSound(/** @type {boolean} */ on) {
  if (on) {
    audio ??= new AudioContext();
    await audio.resume();
  } else await audio?.suspend();
}

/** Two rising notes for an order; three quick ones for one in a hurry. */
export function chime(/** @type {boolean} */ hurry) {
  if (!audio || !soundIsReady()) return;
  const notes = hurry ? [880, 1109, 1319] : [659, 880];
  const pace = hurry ? 0.11 : 0.17;
  notes.forEach((frequency, place) => ring(/** @type {AudioContext} */ (audio), frequency, place * pace));
}

function ring(/** @type {AudioContext} */ context, /** @type {number} */ frequency, /** @type {number} */ delay) {
  const start = context.currentTime + delay;
  const volume = new GainNode(context, { gain: 0 });
  volume.gain.setValueAtTime(0, start);
  volume.gain.linearRampToValueAtTime(0.35, start + 0.01);
  volume.gain.exponentialRampToValueAtTime(0.001, start + 0.5);
  const tone = new OscillatorNode(context, { type: "triangle", frequency });
  tone.connect(volume).connect(context.destination);
  tone.start(start);
  tone.stop(start + 0.5);
}

/** Keep the screen on while it is looked at. Browsers offer this over HTTPS and on localhost only. */
export function keepAwake() {
  const request = () => document.hidden || navigator.wakeLock?.request("screen").catch(() => {});
  document.addEventListener("visibilitychange", request);
  request();
}
