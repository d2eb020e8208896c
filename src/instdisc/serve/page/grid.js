// A grid of any number of pictures: only those in sight are elements, and a page of their names is fetched when needed.
import { cell, h } from "./dom.js";

const PAGE = 200, KEPT = 40; // pictures asked for at once; pages remembered
const TALLEST = 8_000_000; // pixels: browsers give up on taller elements, so beyond that the scroll bar is a scale

export class Grid {
  constructor(total, load) {
    this.total = total;
    this.load = load;
    this.pages = new Map();
    this.cells = new Map();
    this.space = h("div", { class: "space" });
    this.host = h("div", { class: "scroll", role: "group", "aria-label": `${total.toLocaleString("en")} pictures` }, this.space);
    this.host.addEventListener("scroll", () => this.later(), { passive: true });
    this.host.addEventListener("keydown", (event) => this.keys(event));
    this.watcher = new ResizeObserver(() => { this.measure(); this.draw(); });
    this.watcher.observe(this.host);
  }

  close() { this.watcher.disconnect(); }

  measure() {
    const style = getComputedStyle(document.documentElement);
    const size = parseFloat(style.getPropertyValue("--cell")), gap = parseFloat(style.getPropertyValue("--gap"));
    const width = this.host.clientWidth - 32;
    this.columns = Math.max(1, Math.floor((width + gap) / (size + gap)));
    this.size = (width - gap * (this.columns - 1)) / this.columns; // the whole width is used
    this.step = this.size + gap;
    this.left = 16;
    this.height = this.host.clientHeight;
    this.full = Math.ceil(this.total / this.columns) * this.step;
    this.space.style.height = `${Math.min(this.full, TALLEST)}px`;
  }

  get scale() {
    const shown = Math.min(this.full, TALLEST) - this.height;
    return this.full > TALLEST && shown > 0 ? (this.full - this.height) / shown : 1;
  }

  later() {
    if (this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(() => { this.waiting = false; this.draw(); });
  }

  draw() {
    if (!this.height) return;
    const scroll = this.host.scrollTop, y = scroll * this.scale;
    const first = Math.max(0, Math.floor(y / this.step) - 2), last = Math.ceil((y + this.height) / this.step) + 2;
    const from = first * this.columns, to = Math.min(this.total, last * this.columns);
    for (const [place, element] of this.cells) {
      if ((place < from || place >= to) && element !== document.activeElement) {
        element.remove();
        this.cells.delete(place);
      }
    }
    for (let place = from; place < to; place++) {
      const picture = this.page(Math.floor(place / PAGE))?.[place % PAGE];
      let element = this.cells.get(place);
      if (element && picture && element.dataset.row === undefined) {
        element.remove();
        element = undefined;
      }
      if (!element) {
        element = picture ? cell(picture) : h("div", { class: "cell" });
        element.dataset.place = place;
        this.cells.set(place, element);
        this.host.append(element);
      }
      const row = Math.floor(place / this.columns), column = place % this.columns;
      element.style.width = `${this.size}px`;
      element.style.transform = `translate(${this.left + column * this.step}px, ${scroll + row * this.step - y}px)`;
    }
    if (this.wanted !== undefined && this.cells.get(this.wanted)?.dataset.row !== undefined) {
      this.cells.get(this.wanted).focus({ preventScroll: true });
      this.wanted = undefined;
    }
  }

  page(number) {
    if (this.pages.has(number)) {
      const page = this.pages.get(number);
      this.pages.delete(number);
      this.pages.set(number, page); // the newest last
      return page;
    }
    this.pages.set(number, undefined);
    this.load(number * PAGE, PAGE).then((page) => { this.pages.set(number, page); this.later(); }, () => this.pages.delete(number));
    while (this.pages.size > KEPT) this.pages.delete(this.pages.keys().next().value);
    return undefined;
  }

  focus(place) {
    place = Math.max(0, Math.min(this.total - 1, place));
    const top = Math.floor(place / this.columns) * this.step, y = this.host.scrollTop * this.scale;
    if (top < y) this.host.scrollTop = top / this.scale;
    else if (top + this.step > y + this.height) this.host.scrollTop = (top + this.step - this.height) / this.scale;
    this.wanted = place;
    this.draw();
  }

  keys(event) {
    const place = Number(document.activeElement?.dataset?.place ?? NaN);
    if (Number.isNaN(place)) return;
    const screen = Math.max(1, Math.floor(this.height / this.step)) * this.columns;
    const to = { ArrowRight: place + 1, ArrowLeft: place - 1, ArrowDown: place + this.columns, ArrowUp: place - this.columns,
      PageDown: place + screen, PageUp: place - screen, Home: 0, End: this.total - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    this.focus(to);
  }
}
