// The prediction tree as a drawing that follows the frames: nodes keep their elements, so that they move and fade.

import { counted } from "./figures.js";

const SVG = "http://www.w3.org/2000/svg";
const ROW = 25;
const TOP = 34;
const TALL = 20;
const PRUNED_MS = 600;

export class TreeView {
  constructor(svg) {
    this.svg = svg;
    this.edges = svg.appendChild(document.createElementNS(SVG, "g"));
    this.columns = svg.appendChild(document.createElementNS(SVG, "g"));
    this.chips = new Map(); // node -> its element
    this.request = null;
  }

  clear() {
    for (const chip of this.chips.values()) chip.remove();
    this.chips.clear();
    this.edges.replaceChildren();
    this.columns.replaceChildren();
  }

  show(tree, showsText) {
    if (tree === null) return; // the request is over: its last words stay
    if (tree.request !== this.request) this.clear();
    this.request = tree.request;
    document.getElementById("no-tree").hidden = true;
    const wide = this.svg.clientWidth;
    const column = showsText ? 92 : 52;
    const behind = wide < 600 ? 2 : 5;
    const path = tree.path.slice(-behind);
    const places = this.places(tree, path, column, wide);
    this.headings(places, column);
    this.drawEdges(tree, path, places);
    for (const [id, chip] of this.chips) if (!places.has(id)) this.prune(id, chip);
    for (const [id, place] of places) this.place(id, place, column);
    this.svg.setAttribute("aria-label", describe(tree));
  }

  // Node -> {x, y, kind, text}. The first child of a node is in its row: the likeliest guess is a straight line.
  places(tree, path, column, wide) {
    const places = new Map();
    const cursorX = column / 2 + Math.max(0, path.length - 1) * column + 4;
    path.forEach(([, id, , text], index) => {
      const kind = index === path.length - 1 ? "cursor" : "decided";
      places.set(id < 0 ? "unsent" : id, { x: column / 2 + index * column + 4, y: 0, kind, text });
    });
    if (tree.cursor !== null && !places.has(tree.cursor)) places.set(tree.cursor, { x: cursorX, y: 0, kind: "cursor", text: null });
    const children = new Map();
    for (const node of tree.nodes) children.set(node[1], [...(children.get(node[1]) ?? []), node]);
    const rows = Math.floor((this.svg.clientHeight - TOP) / ROW);
    let row = 0;
    const visit = (parent) => {
      (children.get(parent) ?? []).forEach(([id, , position, , text], index) => {
        const x = cursorX + (position - tree.position) * column;
        if (index > 0) row++;
        if (row >= rows || x + column / 2 > wide) return;
        places.set(id, { x, y: row, kind: "open", text });
        visit(id);
      });
    };
    visit(tree.cursor);
    return places;
  }

  headings(places, column) {
    const ahead = [...places.values()].filter((place) => place.kind === "open").map((place) => place.x);
    const cursor = [...places.values()].find((place) => place.kind === "cursor");
    const texts = cursor ? [[cursor.x, "newest"]] : [];
    [...new Set(ahead)].sort((a, b) => a - b).forEach((x) => texts.push([x, `+${Math.round((x - cursor.x) / column)}`]));
    this.columns.replaceChildren(
      ...texts.map(([x, text]) => {
        const heading = document.createElementNS(SVG, "text");
        heading.setAttribute("class", "column");
        heading.setAttribute("x", x);
        heading.setAttribute("y", 10);
        heading.textContent = text;
        return heading;
      }),
    );
  }

  drawEdges(tree, path, places) {
    const links = tree.nodes.map(([id, parent]) => [parent, id, "open"]);
    const ids = path.map(([, id]) => (id < 0 ? "unsent" : id));
    ids.slice(1).forEach((id, index) => links.push([ids[index], id, "decided"]));
    this.edges.replaceChildren(
      ...links
        .filter(([from, to]) => places.has(from) && places.has(to))
        .map(([from, to, kind]) => {
          const [a, b] = [places.get(from), places.get(to)];
          const [ay, by] = [TOP + a.y * ROW, TOP + b.y * ROW];
          const middle = (a.x + b.x) / 2;
          const edge = document.createElementNS(SVG, "path");
          edge.setAttribute("class", kind);
          edge.setAttribute("d", `M${a.x},${ay}C${middle},${ay} ${middle},${by} ${b.x},${by}`);
          return edge;
        }),
    );
  }

  place(id, { x, y, kind, text }, column) {
    let chip = this.chips.get(id);
    if (!chip) {
      chip = this.svg.appendChild(document.createElementNS(SVG, "g"));
      const box = chip.appendChild(document.createElementNS(SVG, "rect"));
      const wide = text === null ? 22 : column - 14;
      for (const [name, value] of [["x", -wide / 2], ["y", -TALL / 2], ["width", wide], ["height", TALL], ["rx", 6]]) box.setAttribute(name, value);
      if (text !== null) chip.appendChild(document.createElementNS(SVG, "text")).textContent = shortened(text);
      this.chips.set(id, chip);
    }
    chip.setAttribute("class", kind);
    chip.style.transform = `translate(${x}px, ${TOP + y * ROW}px)`;
  }

  prune(id, chip) {
    this.chips.delete(id);
    if (chip.getAttribute("class") !== "open") {
      chip.remove(); // a decided word that has left the window
      return;
    }
    chip.setAttribute("class", "pruned");
    this.edges.before(chip); // behind everything that lives
    setTimeout(() => chip.remove(), PRUNED_MS);
  }
}

function shortened(text) {
  const visible = text.trim() || text.replace(/\n/g, "⏎").replace(/\s/g, "␣");
  return visible.length > 11 ? `${visible.slice(0, 10)}…` : visible;
}

function describe(tree) {
  const depth = Math.max(0, ...tree.nodes.map((node) => node[2] - tree.position));
  const guesses = counted(tree.nodes.length + tree.hidden, "guess", "guesses");
  return `${counted(tree.output, "word")} decided; ${guesses} in the pipeline, up to ${counted(depth, "word")} ahead`;
}
