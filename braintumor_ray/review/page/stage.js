// The picture: scan with window and zoom, the map over it, boxes over both.

import { blob } from "./server.js";

const KEPT = 24; // pictures in memory
const STEP = 0.01; // of the picture, for a box that is moved by keys

export class Stage {
  constructor(root, boxesChanged) {
    this.root = root;
    this.layers = root.querySelector("#layers");
    this.canvas = root.querySelector("canvas");
    this.heat = root.querySelector("#heat");
    this.svg = root.querySelector("svg");
    this.boxesChanged = boxesChanged; // called with all boxes after one was drawn or removed
    this.cache = new Map();
    this.level = 128;
    this.width = 256;
    this.zoom = 1;
    this.offset = { x: 0, y: 0 };
    this.boxes = [];
    this.draft = null;
    this.drawing = false;
    this.pointers();
  }

  // A picture by its path; the last few are kept, so that going back costs nothing.
  fetch(path) {
    let found = this.cache.get(path);
    if (!found) {
      found = blob(path).then((content) => ({ content, url: URL.createObjectURL(content) }));
      found.catch(() => this.cache.delete(path));
    }
    this.cache.delete(path);
    this.cache.set(path, found);
    while (this.cache.size > KEPT) {
      const [oldest, picture] = this.cache.entries().next().value;
      this.cache.delete(oldest);
      picture.then((gone) => setTimeout(() => URL.revokeObjectURL(gone.url), 10000), () => {});
    }
    return found;
  }

  async showScan(path, alive) {
    const picture = await this.fetch(path);
    const image = await createImageBitmap(picture.content);
    if (!alive()) return;
    this.canvas.width = image.width;
    this.canvas.height = image.height;
    const context = this.canvas.getContext("2d", { willReadFrequently: true });
    context.drawImage(image, 0, 0);
    this.pixels = context.getImageData(0, 0, image.width, image.height);
    this.shape(image.width, image.height);
    this.window();
  }

  // Nothing, until the next scan is there.
  blank() {
    this.pixels = null;
    this.canvas.getContext("2d", { willReadFrequently: true }).clearRect(0, 0, this.canvas.width, this.canvas.height);
    this.hideHeat();
  }

  // The scan cannot be read: an empty picture of its size, for the map.
  showNothing(width, height) {
    this.pixels = null;
    this.canvas.width = width || 1;
    this.canvas.height = height || 1;
    this.shape(this.canvas.width, this.canvas.height);
  }

  shape(width, height) {
    this.ratio = width / height;
    this.root.style.setProperty("--ratio", `${width} / ${height}`);
    this.root.style.setProperty("--wide", this.ratio);
  }

  async showHeat(path, alive) {
    const picture = await this.fetch(path);
    if (alive()) this.heat.src = picture.url;
  }

  hideHeat() { this.heat.removeAttribute("src"); }

  // Gray levels from level - width/2 to level + width/2 become black to white.
  window() {
    if (!this.pixels) return;
    const low = this.level - this.width / 2;
    const table = new Uint8ClampedArray(256).map((_, gray) => ((gray - low) / this.width) * 255);
    const shown = new ImageData(this.pixels.width, this.pixels.height);
    const from = this.pixels.data;
    const to = shown.data;
    for (let i = 0; i < from.length; i += 4) {
      to[i] = to[i + 1] = to[i + 2] = table[from[i]];
      to[i + 3] = 255;
    }
    this.canvas.getContext("2d").putImageData(shown, 0, 0);
  }

  place() {
    const most = (this.zoom - 1) / 2;
    this.offset.x = Math.min(most, Math.max(-most, this.offset.x));
    this.offset.y = Math.min(most, Math.max(-most, this.offset.y));
    this.layers.style.transform = `translate(${this.offset.x * 100}%, ${this.offset.y * 100}%) scale(${this.zoom})`;
    this.root.classList.toggle("zoomed", this.zoom > 1);
  }

  setZoom(zoom) {
    this.zoom = Math.min(8, Math.max(1, zoom));
    this.place();
  }

  pointers() {
    let start = null;
    this.root.addEventListener("pointerdown", (event) => {
      if (event.button) return;
      this.root.setPointerCapture(event.pointerId);
      start = { ...this.at(event), px: event.clientX, py: event.clientY, offset: { ...this.offset } };
      if (this.drawing) event.preventDefault();
    });
    this.root.addEventListener("pointermove", (event) => {
      if (!start) return;
      if (this.drawing) {
        this.draft = ordered(start, this.at(event));
        this.drawBoxes();
      } else if (this.zoom > 1) {
        const size = this.root.getBoundingClientRect();
        this.offset.x = start.offset.x + (event.clientX - start.px) / size.width;
        this.offset.y = start.offset.y + (event.clientY - start.py) / size.height;
        this.place();
      }
    });
    this.root.addEventListener("pointerup", () => {
      start = null;
      if (this.drawing && this.draft) this.keep();
    });
    this.root.addEventListener("pointercancel", () => { start = null; });
    this.root.addEventListener("wheel", (event) => {
      if (!event.ctrlKey && this.zoom === 1) return; // the page scrolls
      event.preventDefault();
      this.setZoom(this.zoom * (event.deltaY < 0 ? 1.1 : 1 / 1.1));
      this.root.dispatchEvent(new CustomEvent("zoomed"));
    }, { passive: false });
  }

  // A pointer's place as fractions of the picture.
  at(event) {
    const size = this.layers.getBoundingClientRect();
    return {
      x: Math.min(1, Math.max(0, (event.clientX - size.left) / size.width)),
      y: Math.min(1, Math.max(0, (event.clientY - size.top) / size.height)),
    };
  }

  setDrawing(on) {
    this.drawing = on;
    this.draft = on ? this.draft : null;
    this.root.classList.toggle("drawing", on);
    this.drawBoxes();
  }

  // Keys while a box is drawn; true: the key was for it.
  key(event) {
    const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    if (event.key === "Enter" && this.draft) { this.keep(); return true; }
    const move = moves[event.key];
    if (!move) return false;
    const [x0, y0, x1, y1] = this.draft || [0.4, 0.4, 0.6, 0.6];
    const [dx, dy] = move.map((value) => value * STEP);
    const sized = [x0, y0, Math.min(1, Math.max(x0 + STEP, x1 + dx)), Math.min(1, Math.max(y0 + STEP, y1 + dy))];
    const sx = Math.min(1 - x1, Math.max(-x0, dx));
    const sy = Math.min(1 - y1, Math.max(-y0, dy));
    this.draft = event.shiftKey ? sized : [x0 + sx, y0 + sy, x1 + sx, y1 + sy];
    this.drawBoxes();
    return true;
  }

  keep() {
    const box = this.draft;
    this.draft = null;
    if (box && box[2] - box[0] > 0.005 && box[3] - box[1] > 0.005) {
      this.boxes = [...this.boxes, box.map((value) => Math.round(value * 1e5) / 1e5)];
      this.boxesChanged(this.boxes);
    }
    this.drawBoxes();
  }

  setBoxes(boxes) {
    this.boxes = boxes;
    this.draft = null;
    this.drawBoxes();
  }

  drawBoxes() {
    const shown = [...this.boxes.map((box) => [box, ""]), ...(this.draft ? [[this.draft, "draft"]] : [])];
    this.svg.replaceChildren(...shown.flatMap(([box, kind]) => [rectangle(box, `under ${kind}`), rectangle(box, kind)]));
    const count = this.boxes.length;
    this.svg.setAttribute("aria-label", count === 1 ? "1 box" : `${count || "No"} boxes`);
  }
}

function ordered(a, b) {
  return [Math.min(a.x, b.x), Math.min(a.y, b.y), Math.max(a.x, b.x), Math.max(a.y, b.y)];
}

function rectangle([x0, y0, x1, y1], kind) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", "rect");
  const values = { x: x0, y: y0, width: x1 - x0, height: y1 - y0, class: kind, "vector-effect": "non-scaling-stroke" };
  for (const [name, value] of Object.entries(values)) element.setAttribute(name, value);
  return element;
}
