// The list: as many rows as the results have, of which only those in sight are in the page.

import { json } from "./server.js";

const PAGE = 100; // rows fetched at a time
const AROUND = 6; // rows drawn above and below those in sight

export class List {
  constructor(box, spacer, chosen, describe, left) {
    this.box = box;
    this.spacer = spacer;
    this.chosen = chosen; // called with a row when it becomes the current one
    this.left = left; // called when another row is chosen, before its facts are there
    this.describe = describe; // (row) -> {label, kind}
    this.pages = new Map();
    this.drawn = new Map();
    this.current = -1;
    this.total = 0;
    this.height = 64;
    box.addEventListener("scroll", () => this.schedule(), { passive: true });
    box.addEventListener("click", (event) => {
      const row = event.target.closest("[data-index]");
      if (row) this.select(Number(row.dataset.index));
    });
    new ResizeObserver(() => this.schedule()).observe(box);
  }

  async load(order, filter) {
    this.query = new URLSearchParams({ order, filter });
    this.pages.clear();
    this.clear();
    this.total = 0;
    this.current = -1;
    const first = await this.fetch(0);
    if (!first) return;
    this.query.set("as_of", first.as_of); // later labels move no row
    this.total = first.total;
    this.height = parseFloat(getComputedStyle(this.box).getPropertyValue("--row")) || 64;
    this.spacer.style.height = `${this.total * this.height}px`;
    this.box.scrollTop = 0;
    this.draw();
  }

  fetch(number) {
    if (!this.pages.has(number)) {
      const query = new URLSearchParams(this.query);
      query.set("start", number * PAGE);
      query.set("count", PAGE);
      const wanted = this.query;
      const page = json(`/v1/scans?${query}`).then((found) => {
        if (this.query !== wanted) return null; // another order was chosen meanwhile
        this.pages.set(number, found.rows);
        this.schedule();
        return found;
      });
      page.catch(() => this.pages.delete(number));
      this.pages.set(number, page);
    }
    return this.pages.get(number);
  }

  row(index) {
    const page = this.pages.get(Math.floor(index / PAGE));
    return Array.isArray(page) ? page[index % PAGE] : null;
  }

  async rowSoon(index) {
    const number = Math.floor(index / PAGE);
    await this.fetch(number);
    return this.row(index);
  }

  schedule() {
    if (this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(() => { this.waiting = false; this.draw(); });
  }

  clear() {
    for (const element of this.drawn.values()) element.remove();
    this.drawn.clear();
  }

  draw() {
    const top = this.box.scrollTop;
    const first = Math.max(0, Math.floor(top / this.height) - AROUND);
    const last = Math.min(this.total - 1, Math.ceil((top + this.box.clientHeight) / this.height) + AROUND);
    for (const [index, element] of this.drawn) {
      if (index < first || index > last) { element.remove(); this.drawn.delete(index); }
    }
    for (let index = first; index <= last; index++) this.drawRow(index);
    for (let page = Math.floor(first / PAGE); page <= Math.floor(Math.max(last, 0) / PAGE) && this.total; page++) {
      this.fetch(page);
    }
  }

  drawRow(index) {
    let element = this.drawn.get(index);
    const row = this.row(index);
    if (element && element.dataset.filled === String(Boolean(row)) && !element.dataset.stale) return;
    if (!element) {
      element = document.createElement("div");
      element.className = "scan-row";
      element.setAttribute("role", "option");
      element.id = `row-${index}`;
      element.dataset.index = index;
      element.style.transform = `translateY(${index * this.height}px)`;
      element.setAttribute("aria-posinset", index + 1);
      element.setAttribute("aria-setsize", this.total);
      this.spacer.append(element);
      this.drawn.set(index, element);
    }
    element.dataset.filled = Boolean(row);
    if (row) element.dataset.scan = row.scan;
    delete element.dataset.stale;
    element.setAttribute("aria-selected", index === this.current);
    element.replaceChildren(...(row ? this.describe(row, index) : ["…"]));
  }

  // Draws rows of a scan again after a label.
  update(scan, change) {
    for (const page of this.pages.values()) {
      if (Array.isArray(page)) for (const row of page) if (row.scan === scan) Object.assign(row, change);
    }
    for (const element of this.drawn.values()) element.dataset.stale = "1";
    this.schedule();
  }

  refresh() {
    this.pages.clear();
    for (const element of this.drawn.values()) element.dataset.stale = "1";
    this.draw();
  }

  async select(index) {
    if (!this.total) return;
    const wanted = Math.min(Math.max(index, 0), this.total - 1);
    if (wanted === this.current) return; // the first or the last one
    this.current = wanted;
    this.left();
    for (const [at, element] of this.drawn) element.setAttribute("aria-selected", at === wanted);
    this.reveal(wanted);
    this.draw();
    this.box.setAttribute("aria-activedescendant", `row-${wanted}`);
    const row = await this.rowSoon(wanted);
    if (row && this.current === wanted) this.chosen(row, wanted);
  }

  reveal(index) {
    const top = index * this.height;
    const bottom = top + this.height;
    if (top < this.box.scrollTop) this.box.scrollTop = top;
    else if (bottom > this.box.scrollTop + this.box.clientHeight) this.box.scrollTop = bottom - this.box.clientHeight;
  }

  // The next row after the current one for which `wanted` is true; null: none.
  async find(wanted) {
    for (let index = this.current + 1; index < this.total; index++) {
      const row = this.row(index) || await this.rowSoon(index);
      if (row && wanted(row)) return index;
    }
    return null;
  }
}
