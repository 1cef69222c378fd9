// Numbers and sentences of the page.

const by = (id) => document.getElementById(id);
const percent = (share) => (share === null ? "–" : `${Math.round(100 * share)} %`);
const rate = (value) => (value === null ? "–" : `${value.toFixed(value < 10 ? 1 : 0)} tokens/s`);

// "1 word", "2 words"
export const counted = (number, noun, plural = `${noun}s`) => `${number} ${number === 1 ? noun : plural}`;

export class Figures {
  constructor() {
    this.sent = []; // rows of the latest batches: [all, useful]
    this.shownAt = -Infinity;
  }

  about({ model, layers }) {
    by("model").textContent = `${model} in ${counted(layers.length, "stage")}`;
    by("stages").textContent = counted(layers.length, "stage");
    by("plain-busy").textContent = percent(1 / layers.length);
    document.title = `${model} · PipeDec, live`;
  }

  // Numbers change four times a second at most: faster than that nobody reads.
  show(frame, time) {
    for (const batch of frame.batches) {
      if (batch.over && !batch.lost && !batch.prompt) this.sent.push([batch.useful + batch.wasted + batch.open, batch.useful]);
    }
    this.sent = this.sent.slice(-50);
    if (time - this.shownAt < 250 && time >= this.shownAt) return;
    this.shownAt = time;
    const { tokensPerSecond: ours, plainTokensPerSecond: plain } = frame;
    const most = Math.max(ours ?? 0, plain ?? 0, 1e-9);
    const times = ours && plain ? ` · ${(ours / plain).toFixed(1)}×` : "";
    by("ours").textContent = rate(ours) + times;
    by("plain").textContent = rate(plain);
    by("ours-bar").style.width = `${(100 * (ours ?? 0)) / most}%`;
    by("plain-bar").style.width = `${(100 * (plain ?? 0)) / most}%`;
    by("hit-rate").textContent = percent(frame.hitRate);
    by("busy").textContent = percent(frame.busy.reduce((sum, each) => sum + each, 0) / frame.busy.length);
    const [rows, useful] = [0, 1].map((i) => this.sent.reduce((sum, each) => sum + each[i], 0) / this.sent.length);
    by("rows").textContent = this.sent.length ? rows.toFixed(1) : "–";
    by("useful").textContent = this.sent.length ? useful.toFixed(1) : "–";
    by("running").textContent = frame.running;
    by("waiting").textContent = frame.waiting || "none";
  }

  status(state, text) {
    by("status").dataset.state = state;
    if (by("status").textContent !== text) by("status").textContent = text;
  }

  // One stage lost is the first thing to see; so is that it came back.
  faults(frame, stages) {
    const latest = frame.faults.at(-1);
    const alert = by("alert");
    const recent = latest && latest.live !== null && frame.now - latest.live < 15000;
    alert.hidden = frame.ready && !recent;
    alert.classList.toggle("over", frame.ready);
    if (!frame.ready) say(alert, `${lostWords(frame, stages)}.`, ` ${rescue(frame)}`);
    else if (recent) say(alert, `Whole again after ${seconds(latest)}.`, " Requests went on where they were: no token was lost, none is different.");
    by("faults-panel").hidden = !frame.faults.length;
    by("faults").replaceChildren(...[...frame.faults].reverse().map((fault) => entry(fault, frame.now)));
  }
}

function lostWords(frame, stages) {
  if (!frame.missing.length) return "The pipeline is being put together";
  const which = frame.missing.join(", ");
  return frame.missing.length === 1 ? `Stage ${which} of ${stages} is lost` : `Stages ${which} of ${stages} are lost`;
}

function rescue(frame) {
  if (!frame.faults.length) return `It is not ready yet: ${frame.reason}.`;
  const waiting = frame.running + frame.waiting ? "Running requests wait, and go on by themselves: no token is lost." : "Requests that come now wait.";
  return `It is started again; the other stages keep their weights. ${waiting}`;
}

function seconds(fault) {
  return `${((fault.live - fault.lost) / 1000).toFixed(1)} s`;
}

function say(element, strong, rest) {
  const text = strong + rest;
  if (element.textContent === text) return; // else a screen reader would say it ten times a second
  const bold = document.createElement("b");
  bold.textContent = strong;
  element.replaceChildren(bold, rest);
}

function entry(fault, now) {
  const item = document.createElement("li");
  item.className = fault.live === null ? "open" : "over";
  const time = document.createElement("time");
  time.textContent = new Date(Date.now() - (now - fault.lost)).toLocaleTimeString();
  const end = document.createElement("b");
  end.textContent = fault.live === null ? "not over yet" : `over after ${seconds(fault)}`;
  item.append(time, `${fault.reason}: `, end);
  return item;
}
