// A grid of any number of pictures: only those in sight are elements.
import { cell, clamp, h, mark, number, on, onKeys, suggest } from "./dom.js";
import { watch } from "./selection.js";

// Pictures asked for at once.
export const PAGE = 200;
// Pages remembered.
const KEPT = 40;
// Pixels that browsers can do; beyond that the scroll bar is a scale.
const TALLEST = 8_000_000;
// Milliseconds until suggestions are asked for.
const SEEN = 350;
// Milliseconds until what failed is asked for again.
const AGAIN = 2000;
// Milliseconds: who drags the bar does not ask for all.
const REST = 70;

export class Grid {
  // load(start, count): a promise of pictures. first: those of the first page, if known. at: the place to begin at;
  // row: the picture to have the focus; moved(place): is told where the grid stands; range(from, to): a promise of rows;
  // set: as the address has it; guessed: whether there are suggestions to show.
  constructor(total, load, { first, at = 0, row, moved = () => {}, range, set, guessed } = {}) {
    Object.assign(this, { total, load, row, moved, set, guessed, at: Math.min(at, total - 1), y: 0, last: 0, current: at, age: 0 });
    this.pages = new Map(first ? [[0, first]] : []);
    this.cells = new Map();
    this.space = h("div.space");
    this.host = h("div.scroll", { role: "group", label: `${number(total)} pictures; arrow keys move, x selects` }, this.space);
    on(this.host, "scroll", () => this.later(), { passive: true });
    onKeys(this.host, (key) => this.key(key));
    on(this.host, "focusin", (event) => { if (event.target.dataset.place) this.settle(Number(event.target.dataset.place)); });
    this.host.range = range;
    this.unwatch = watch(() => this.cells.forEach((element) => { if (element.said) mark(element); }));
    this.watcher = new ResizeObserver(() => { this.measure(); this.draw(); });
    this.watcher.observe(this.host);
  }

  close() {
    // What is still to come changes nothing.
    this.closed = true;
    this.watcher.disconnect();
    this.unwatch();
    for (const timer of [this.asking, this.again, this.resting, this.telling]) clearTimeout(timer);
  }

  measure() {
    const style = getComputedStyle(document.documentElement);
    const size = parseFloat(style.getPropertyValue("--cell")), gap = parseFloat(style.getPropertyValue("--gap"));
    const edge = parseFloat(getComputedStyle(this.host).paddingLeft);
    const width = this.host.clientWidth - 2 * edge;
    this.columns = Math.max(1, Math.floor((width + gap) / (size + gap)));
    this.size = (width - gap * (this.columns - 1)) / this.columns;
    this.step = this.size + gap;
    this.left = edge;
    this.height = this.host.clientHeight;
    this.full = Math.ceil(this.total / this.columns) * this.step + edge - gap;
    this.space.style.height = `${Math.min(this.full, TALLEST)}px`;
    // The same pictures at any width.
    this.moveTo(Math.floor(this.at / this.columns) * this.step);
  }

  get scale() {
    const shown = Math.min(this.full, TALLEST) - this.height;
    return this.full > TALLEST && shown > 0 ? (this.full - this.height) / shown : 1;
  }

  moveTo(y) {
    this.y = clamp(y, this.full - this.height);
    this.host.scrollTop = this.y / this.scale;
    this.last = this.host.scrollTop;
  }

  // A wheel or a finger moves pictures by as much as it says, the bar by its scale.
  follow() {
    const scroll = this.host.scrollTop, by = scroll - this.last;
    const end = scroll <= 0 || scroll >= this.host.scrollHeight - this.height - 1;
    if (this.scale === 1 || end || Math.abs(by) > 2 * this.height) this.y = scroll * this.scale;
    else this.y += by;
    this.y = clamp(this.y, this.full - this.height);
    this.last = scroll;
  }

  later() {
    if (this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(() => {
      this.waiting = false;
      if (this.closed) return;
      this.follow();
      this.draw();
      this.at = Math.round(this.y / this.step) * this.columns;
      clearTimeout(this.telling);
      this.telling = setTimeout(() => {
        if (this.host.scrollTop !== this.last) return;
        if (this.scale !== 1) { this.moveTo(this.y); this.draw(); }
        this.moved(this.at);
      }, 250);
    });
  }

  draw() {
    if (!this.height) return;
    const y = this.y;
    const first = Math.max(0, Math.floor(y / this.step) - 2), last = Math.ceil((y + this.height) / this.step) + 2;
    const from = first * this.columns, to = Math.min(this.total, last * this.columns);
    for (const [place, element] of this.cells) {
      if ((place < from || place >= to) && element !== document.activeElement) {
        // It need not come.
        element.querySelector("img")?.removeAttribute("src");
        element.remove();
        this.cells.delete(place);
      } else this.put(element, place);
    }
    const missing = new Set();
    // In the order in which they are read aloud.
    let before = this.space;
    for (let place = from; place < to; place++) {
      const number = Math.floor(place / PAGE), picture = this.known(number)?.[place % PAGE];
      if (!picture) missing.add(number);
      let element = this.cells.get(place);
      if (element && picture && element.age !== this.age) {
        if (element === document.activeElement) this.wanted = place;
        element.remove();
        element = undefined;
      }
      if (!element) {
        element = picture ? cell(picture, { set: this.set, tabIndex: place === this.current ? 0 : -1 }) : h("div.cell");
        element.age = picture ? this.age : -1;
        element.dataset.place = place;
        this.cells.set(place, element);
        before.after(element);
      }
      this.put(element, place);
      if (this.row !== undefined && picture?.row === this.row) { this.wanted = place; this.row = undefined; }
      before = element;
    }
    if (!(this.current >= from && this.current < to) && this.cells.has(from)) this.settle(from + (y > 0 ? 2 * this.columns : 0));
    const found = this.cells.get(this.wanted);
    if (found?.dataset.row !== undefined) {
      this.wanted = undefined;
      found.focus({ preventScroll: true });
    }
    clearTimeout(this.asking);
    if (this.guessed) this.asking = setTimeout(() => this.guess(), SEEN);
    clearTimeout(this.resting);
    if (missing.size) this.resting = setTimeout(() => missing.forEach((number) => this.fetch(number)), this.pages.size ? REST : 0);
  }

  put(element, place) {
    const row = Math.floor(place / this.columns), column = place % this.columns;
    element.style.width = `${this.size}px`;
    element.style.transform = `translate(${this.left + column * this.step}px, ${this.last + row * this.step - this.y}px)`;
  }

  // One cell is in the order of the Tab key.
  settle(place) {
    place = Math.min(place, this.total - 1);
    const before = this.cells.get(this.current), now = this.cells.get(place);
    if (before) before.tabIndex = -1;
    if (now?.dataset.row !== undefined) now.tabIndex = 0;
    this.current = place;
  }

  known(number) {
    const page = this.pages.get(number);
    // The newest last.
    if (page) { this.pages.delete(number); this.pages.set(number, page); }
    return page;
  }

  fetch(number) {
    if (this.pages.has(number)) return;
    const age = this.age;
    this.pages.set(number, undefined);
    this.load(number * PAGE, PAGE).then((page) => {
      if (age !== this.age) return;
      this.pages.set(number, page);
      this.told(false);
      this.later();
    }, () => {
      this.pages.delete(number);
      this.told(true);
      clearTimeout(this.again);
      if (!this.closed) this.again = setTimeout(() => this.draw(), AGAIN);
    });
    while (this.pages.size > KEPT) this.pages.delete(this.pages.keys().next().value);
  }

  told(lost) {
    if (lost === Boolean(this.lost) || this.closed) return;
    this.lost?.remove();
    this.lost = lost ? h("p.lost", { role: "status" }, "Lost connection to instdisc. Retrying …") : null;
    if (lost) this.host.before(this.lost);
  }

  // The labels are others now; what is seen stays until they have come.
  refresh(guessed) {
    Object.assign(this, { guessed, age: this.age + 1 });
    this.pages.clear();
    this.draw();
  }

  guess() {
    const age = this.age;
    return suggest([...this.cells.values()], () => !this.closed && age === this.age);
  }

  focus(place) {
    place = clamp(place, this.total - 1);
    const top = Math.floor(place / this.columns) * this.step;
    if (top < this.y) this.moveTo(top);
    else if (top + this.size > this.y + this.height) this.moveTo(top + this.size + this.left - this.height);
    this.wanted = place;
    this.draw();
  }

  key(pressed) {
    const place = Number(document.activeElement.dataset.place ?? NaN);
    const screen = Math.max(1, Math.floor(this.height / this.step)) * this.columns;
    const to = { ArrowRight: place + 1, ArrowLeft: place - 1, ArrowDown: place + this.columns, ArrowUp: place - this.columns,
      PageDown: place + screen, PageUp: place - screen, Home: 0, End: this.total - 1 }[pressed];
    if (to === undefined || Number.isNaN(place)) return false;
    this.focus(to);
    return true;
  }
}
