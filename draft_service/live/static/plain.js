// What the same stages would do without predictions: one word after the other goes through all of them.

export class PlainPipeline {
  constructor(lanes) {
    this.lanes = lanes;
    this.next = null; // when stage 0 is given the next word
    this.number = 0;
  }

  // While requests are decoded, words go through the stages up to `now`; `requests` of them share the pipeline.
  run(now, stepMs, requests, since) {
    if (!requests || since === null) {
      this.next = null;
      return;
    }
    const trip = stepMs.reduce((sum, each) => sum + each, 0);
    const period = Math.max(trip / requests, Math.max(...stepMs));
    if (this.next === null || this.next < now - 60000) this.next = since;
    while (this.next <= now) {
      const spans = [];
      let at = this.next;
      for (const each of stepMs) {
        spans.push(at, at + each);
        at += each;
      }
      this.lanes.blocks.set(`plain ${this.number++}`, { spans, useful: 1, open: 0, wasted: 0, prompt: 0, rows: 0 });
      this.lanes.marks.push(at);
      this.next += period;
    }
  }
}
