// When is "now"? A little behind the pipeline, so that a frame is there when it is due; or slower, or not at all.

const DELAY_MS = 180;
const MAX_FRAMES = 900; // a minute and a half, which slow motion may fall behind

export class Playback {
  constructor(onFrame) {
    this.onFrame = onFrame;
    this.frames = [];
    this.pace = 1;
    this.time = null; // of the pipeline's clock, in ms
    this.offset = Infinity; // of this page's clock; the least seen, so that late frames do not matter
  }

  reset() {
    this.frames = [];
    this.time = null;
    this.offset = Infinity;
  }

  push(frame) {
    this.offset = Math.min(this.offset, performance.now() - frame.now);
    this.frames.push(frame);
    if (this.frames.length > MAX_FRAMES) this.time = Math.max(this.time, this.frames.shift().now);
  }

  setPace(pace) {
    this.pace = pace;
  }

  // Passes on the frames that are due. Returns the time to draw, or null before the first frame.
  advance(elapsed) {
    const live = performance.now() - this.offset - DELAY_MS;
    if (this.time === null) this.time = this.frames.length ? live : null;
    else if (this.pace === 1) this.time = live;
    else this.time = Math.min(live, this.time + this.pace * elapsed);
    while (this.frames.length && this.frames[0].now <= this.time) this.onFrame(this.frames.shift());
    return this.time;
  }
}
