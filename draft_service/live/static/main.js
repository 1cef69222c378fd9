// The page: frames from the stream, in the order and at the pace of the playback, to what is drawn of them.

import { Ask } from "./ask.js";
import { Figures } from "./figures.js";
import { Lanes, windowOf } from "./lanes.js";
import { PlainPipeline } from "./plain.js";
import { Playback } from "./playback.js";
import { Stream } from "./stream.js";
import { TreeView } from "./tree.js";

const lanes = new Lanes(document.getElementById("lanes"), 30);
const plainLanes = new Lanes(document.getElementById("plain-lanes"), 12, "plain");
const plain = new PlainPipeline(plainLanes);
const tree = new TreeView(document.getElementById("tree"));
const figures = new Figures();
const playback = new Playback(show);
const stream = new Stream({ onAbout: begin, onFrame: (frame) => playback.push(frame), onState: connected });
const ask = new Ask(stream, () => connected("key"));
const reducedMotion = matchMedia("(prefers-reduced-motion: reduce)");

let about = null;
let frame = null;
let decodingSince = null;
let span = 2000;

function begin(told) {
  about = told;
  ask.model = about.model;
  playback.reset();
  lanes.clear();
  plainLanes.clear();
  tree.clear();
  const labels = about.layers.map(([from, to], stage) => `Stage ${stage} · ${to - from > 1 ? `layers ${from}–${to - 1}` : `layer ${from}`}`);
  lanes.setLabels(labels);
  plainLanes.setLabels(labels.map((label) => label.split(" · ")[0]));
  figures.about(about);
}

function show(next) {
  frame = next;
  for (const batch of frame.batches) {
    const rows = batch.useful + batch.wasted + batch.open;
    lanes.blocks.set(`${frame.epoch} ${batch.step}`, { ...batch, rows });
    if (batch.decided) lanes.marks.push(batch.spans.at(-1));
  }
  const wanted = windowOf(frame.stepMs);
  span += (wanted - span) * 0.1;
  decodingSince = frame.running && frame.ready ? (decodingSince ?? frame.now) : null;
  outages();
  tree.show(frame.tree, about.showsText);
  figures.show(frame, frame.now);
  figures.faults(frame, about.layers.length);
  figures.status(...statusOf(frame));
  document.getElementById("idle").hidden = frame.running > 0 || lanes.blocks.size > 0 || !frame.ready;
  describe();
}

function outages() {
  for (const fault of frame.faults) {
    let outage = lanes.outages.find((each) => each.lost === fault.lost);
    if (!outage && (fault.live === null || fault.live > frame.now - span)) {
      lanes.outages.push((outage = { lost: fault.lost, live: null, missing: new Set() }));
    }
    if (!outage) continue;
    outage.live = fault.live;
    if (fault.live === null) for (const stage of frame.missing) outage.missing.add(stage);
  }
}

function statusOf({ ready, running, degraded, missing }) {
  if (!ready) return missing.length ? ["lost", `stage ${missing.join(", ")} lost`] : ["lost", "forming"];
  if (degraded) return ["working", `without the draft model: ${degraded}`];
  return running ? ["working", running === 1 ? "answering one request" : `answering ${running} requests`] : ["idle", "ready, idle"];
}

function describe() {
  const busy = frame.busy.map((share, stage) => `stage ${stage} ${Math.round(100 * share)} %`).join(", ");
  document.getElementById("lanes").setAttribute("aria-label", `Time at work: ${busy}`);
}

function connected(state, reason) {
  document.getElementById("key-form").hidden = state !== "key";
  if (state === "key") figures.status("closed", "API key needed");
  if (state === "closed") figures.status("closed", reason ?? "connection lost, trying again");
}

function colours() {
  const style = getComputedStyle(document.documentElement);
  const of = (name) => style.getPropertyValue(`--${name}`).trim();
  const names = ["ink", "soft", "line", "lane", "useful", "open", "wasted", "prompt", "lost", "plain"];
  const own = Object.fromEntries(names.map((name) => [name, of(name)]));
  const lines = Object.fromEntries(["open", "wasted", "prompt"].map((name) => [`${name}Line`, of(`${name}-line`)]));
  return { ...own, ...lines, usefulInk: of("useful-ink"), lostSoft: of("lost-soft"), font: getComputedStyle(document.body).fontFamily };
}

let painted = colours();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => (painted = colours()));

let previous = performance.now();
let drawn = -Infinity;
function draw(now) {
  const time = playback.advance(now - previous);
  previous = now;
  if (frame !== null && now - drawn >= (reducedMotion.matches ? 1000 : 0)) {
    drawn = now;
    const known = decodingSince !== null && frame.plainTokensPerSecond !== null;
    plain.run(time, frame.stepMs, known ? frame.running : 0, decodingSince);
    lanes.draw(time, span, painted);
    plainLanes.draw(time, span, painted);
  }
  requestAnimationFrame(draw);
}

for (const choice of document.querySelectorAll("input[name=pace]")) {
  choice.addEventListener("change", () => playback.setPace(Number(choice.value)));
}
document.getElementById("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const field = document.getElementById("key");
  stream.key = field.value.trim();
  field.value = "";
  stream.connect();
});
stream.connect();
requestAnimationFrame(draw);
