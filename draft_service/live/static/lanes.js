// One lane per stage; time goes to the right, and now is at the right edge.

const LABEL = 140;
const NARROW = 600; // pixels, below which labels are short
const GAP = 4;
const MARKS = 16;
const WINDOW_STEPS = 56; // steps of the slowest stage that are in view
const WINDOW_MS = [1000, 12000];

export function windowOf(stepMs) {
  return Math.min(WINDOW_MS[1], Math.max(WINDOW_MS[0], WINDOW_STEPS * Math.max(...stepMs)));
}

export class Lanes {
  constructor(canvas, laneHeight, usefulColour = "useful") {
    Object.assign(this, { canvas, laneHeight, usefulColour, blocks: new Map(), marks: [], outages: [], labels: [] });
    this.context = canvas.getContext("2d");
    this.resize();
    new ResizeObserver(() => this.resize()).observe(canvas);
  }

  clear() {
    this.blocks.clear();
    this.marks = [];
    this.outages = [];
  }

  setLabels(labels) {
    this.labels = labels;
    this.canvas.style.height = `${labels.length * (this.laneHeight + GAP) + MARKS}px`;
    this.resize();
  }

  resize() {
    const scale = window.devicePixelRatio || 1;
    this.width = this.canvas.clientWidth;
    this.height = this.canvas.clientHeight;
    this.canvas.width = Math.round(this.width * scale);
    this.canvas.height = Math.round(this.height * scale);
    this.context.setTransform(scale, 0, 0, scale, 0, 0);
  }

  draw(now, span, colours) {
    const { context: c, laneHeight: tall } = this;
    c.clearRect(0, 0, this.width, this.height);
    c.font = `${tall < 16 ? 11 : 12}px ${colours.font}`;
    c.textBaseline = "middle";
    const label = this.width < NARROW ? 58 : LABEL;
    const x = (at) => label + ((at - now) / span + 1) * (this.width - label);
    const y = (stage) => stage * (tall + GAP);
    this.labels.forEach((text, stage) => {
      c.fillStyle = colours.lane;
      c.fillRect(label, y(stage), this.width - label, tall);
      c.fillStyle = colours.soft;
      c.fillText(this.width < NARROW ? text.split(" · ")[0] : text, 0, y(stage) + tall / 2, label - 6);
    });
    c.save();
    c.beginPath();
    c.rect(label, 0, this.width - label, this.height);
    c.clip();
    for (const [key, block] of this.blocks) {
      if (block.spans.length && block.spans.at(-1) < now - span) this.blocks.delete(key);
      else this.block(block, now, x, y, colours);
    }
    this.marks = this.marks.filter((at) => at > now - span);
    c.fillStyle = colours.ink;
    for (const at of this.marks) if (at <= now) triangle(c, x(at), y(this.labels.length) + 1);
    this.outages = this.outages.filter((outage) => outage.live === null || outage.live > now - span);
    for (const outage of this.outages) this.outage(outage, now, x, y, colours);
    c.restore();
  }

  block(block, now, x, y, colours) {
    const c = this.context;
    const kind = block.lost ? "lost" : kindOf(block);
    for (let stage = 0; 2 * stage < block.spans.length; stage++) {
      const [begin, end] = [block.spans[2 * stage], Math.min(now, block.spans[2 * stage + 1])];
      if (begin >= now) return;
      const [left, right] = [x(begin), x(end)];
      const wide = Math.max(1, right - left - 1);
      c.fillStyle = kind === "lost" ? colours.lane : colours[kind === "useful" ? this.usefulColour : kind];
      c.fillRect(left, y(stage), wide, this.laneHeight);
      if (kind !== "useful" && wide > 3) {
        c.strokeStyle = kind === "lost" ? colours.lost : colours[`${kind}Line`];
        c.strokeRect(left + 0.5, y(stage) + 0.5, wide - 1, this.laneHeight - 1);
      }
      if (kind === "useful" && wide > 16 && block.rows) {
        c.fillStyle = colours.usefulInk;
        c.textAlign = "center";
        c.fillText(wide > 40 ? `${block.useful} of ${block.rows}` : block.useful, left + wide / 2, y(stage) + this.laneHeight / 2, wide);
        c.textAlign = "left";
      }
    }
  }

  outage({ lost, live, missing }, now, x, y, colours) {
    if (lost > now) return;
    const c = this.context;
    const [left, right] = [x(lost), x(Math.min(now, live ?? now))];
    this.labels.forEach((_, stage) => {
      const gone = missing.has(stage);
      c.fillStyle = gone ? colours.lostSoft : colours.lane;
      c.fillRect(left, y(stage), right - left, this.laneHeight);
      hatch(c, left, y(stage), right - left, this.laneHeight, gone ? colours.lost : colours.line);
      const text = gone ? "lost: starts again" : "waits, keeps its weights";
      if (c.measureText(text).width < right - left - 16 && this.laneHeight > 14) {
        c.fillStyle = gone ? colours.lostSoft : colours.lane;
        c.fillRect(Math.max(left, x(now - 1e9)) + 6, y(stage) + 2, c.measureText(text).width + 8, this.laneHeight - 4);
        c.fillStyle = gone ? colours.lost : colours.soft;
        c.fillText(text, left + 10, y(stage) + this.laneHeight / 2);
      }
    });
  }
}

function kindOf(block) {
  if (block.useful) return "useful";
  if (block.open) return "open";
  return block.wasted ? "wasted" : "prompt";
}

function triangle(c, x, y) {
  c.beginPath();
  c.moveTo(x, y);
  c.lineTo(x - 5, y + 9);
  c.lineTo(x + 5, y + 9);
  c.fill();
}

function hatch(c, left, top, wide, tall, colour) {
  c.save();
  c.beginPath();
  c.rect(left, top, wide, tall);
  c.clip();
  c.strokeStyle = colour;
  c.beginPath();
  for (let at = left - tall; at < left + wide; at += 9) {
    c.moveTo(at, top + tall);
    c.lineTo(at + tall, top);
  }
  c.stroke();
  c.restore();
}
