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

// load(start, count): a promise of pictures. first: those of the first page, if known. at: the place to begin at;
// row: the picture that gets the focus; moved(place): called when the grid scrolls; range(from, to): promises rows;
// set: as the address has it; guessed: whether there are suggestions to show.
export function gridOf(total, load, { first, at = 0, row, moved = () => {}, range, set, guessed } = {}) {
  const pages = new Map(first ? [[0, first]] : []), cells = new Map(), space = h("div.space");
  const host = h("div.scroll", { group: `${number(total)} pictures; arrow keys move, x selects` }, space);
  // In pixels: of a cell, from one to the next, of the window, of all.
  let columns, size, step, left, height, full;
  // y: where the window stands among all; scrolled: where the bar does; current: the cell that the Tab key comes to; wanted: that is to have the focus.
  let y = 0, scrolled = 0, current, wanted, age = 0, lost = null, closed, waiting;
  let asking, again, resting, telling;

  function measure() {
    const style = getComputedStyle(document.documentElement), pixels = (name) => parseFloat(style.getPropertyValue(name)), gap = pixels("--gap");
    left = parseFloat(getComputedStyle(host).paddingLeft);
    const width = host.clientWidth - 2 * left;
    columns = Math.max(1, Math.floor((width + gap) / (pixels("--cell") + gap)));
    size = (width - gap * (columns - 1)) / columns;
    step = size + gap;
    height = host.clientHeight;
    full = Math.ceil(total / columns) * step + left - gap;
    space.style.height = `${Math.min(full, TALLEST)}px`;
    // The same pictures at any width.
    moveTo(Math.floor(at / columns) * step);
  }

  function scale() {
    const shown = Math.min(full, TALLEST) - height;
    return full > TALLEST && shown > 0 ? (full - height) / shown : 1;
  }

  function moveTo(to) {
    y = clamp(to, full - height);
    host.scrollTop = y / scale();
    scrolled = host.scrollTop;
  }

  // A wheel or a finger moves pictures by as much as it says, the bar by its scale.
  function follow() {
    const scroll = host.scrollTop, by = scroll - scrolled;
    const end = scroll <= 0 || scroll >= host.scrollHeight - height - 1;
    if (scale() === 1 || end || Math.abs(by) > 2 * height) y = scroll * scale();
    else y += by;
    y = clamp(y, full - height);
    scrolled = scroll;
  }

  function later() {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => {
      waiting = false;
      if (closed) return;
      follow();
      draw();
      at = Math.round(y / step) * columns;
      clearTimeout(telling);
      telling = setTimeout(() => {
        if (host.scrollTop !== scrolled) return;
        if (scale() !== 1) { moveTo(y); draw(); }
        moved(at);
      }, 250);
    });
  }

  function draw() {
    if (!height) return;
    const top = Math.max(0, Math.floor(y / step) - 2), bottom = Math.ceil((y + height) / step) + 2;
    const from = top * columns, to = Math.min(total, bottom * columns);
    for (const [place, element] of cells) {
      if ((place < from || place >= to) && element !== document.activeElement) {
        // It need not come.
        element.querySelector("img")?.removeAttribute("src");
        element.remove();
        cells.delete(place);
      } else put(element, place);
    }
    const missing = new Set();
    // In the order in which they are read aloud.
    let before = space;
    for (let place = from; place < to; place++) {
      const page = Math.floor(place / PAGE), picture = known(page)?.[place % PAGE];
      if (!picture) missing.add(page);
      let element = cells.get(place);
      if (element && picture && element.age !== age) {
        if (element === document.activeElement) wanted = place;
        element.remove();
        element = undefined;
      }
      if (!element) {
        element = picture ? cell(picture, { set, tabIndex: place === current ? 0 : -1 }) : h("div.cell");
        element.age = picture ? age : -1;
        element.dataset.place = place;
        cells.set(place, element);
        before.after(element);
      }
      put(element, place);
      if (row !== undefined && picture?.row === row) { wanted = place; row = undefined; }
      before = element;
    }
    if (!(current >= from && current < to) && cells.has(from)) settle(from + (y > 0 ? 2 * columns : 0));
    const found = cells.get(wanted);
    if (found?.dataset.row !== undefined) {
      wanted = undefined;
      found.focus({ preventScroll: true });
    }
    clearTimeout(asking);
    if (guessed) asking = setTimeout(guess, SEEN);
    clearTimeout(resting);
    if (missing.size) resting = setTimeout(() => missing.forEach(fetch), pages.size ? REST : 0);
  }

  function put(element, place) {
    const down = Math.floor(place / columns), along = place % columns;
    element.style.width = `${size}px`;
    element.style.transform = `translate(${left + along * step}px, ${scrolled + down * step - y}px)`;
  }

  // One cell is in the order of the Tab key.
  function settle(place) {
    place = Math.min(place, total - 1);
    const before = cells.get(current), now = cells.get(place);
    if (before) before.tabIndex = -1;
    if (now?.dataset.row !== undefined) now.tabIndex = 0;
    current = place;
  }

  function known(page) {
    const found = pages.get(page);
    // The newest last.
    if (found) { pages.delete(page); pages.set(page, found); }
    return found;
  }

  function fetch(page) {
    if (pages.has(page)) return;
    const asked = age;
    pages.set(page, undefined);
    load(page * PAGE, PAGE).then((found) => {
      if (asked !== age) return;
      pages.set(page, found);
      told(false);
      later();
    }, () => {
      pages.delete(page);
      told(true);
      clearTimeout(again);
      if (!closed) again = setTimeout(draw, AGAIN);
    });
    while (pages.size > KEPT) pages.delete(pages.keys().next().value);
  }

  function told(gone) {
    if (gone === Boolean(lost) || closed) return;
    lost?.remove();
    lost = gone ? h("p.lost", { role: "status" }, "Lost connection to instdisc. Retrying …") : null;
    if (gone) host.before(lost);
  }

  function guess() {
    const asked = age;
    suggest([...cells.values()], () => !closed && asked === age);
  }

  function focus(place) {
    place = clamp(place, total - 1);
    const top = Math.floor(place / columns) * step;
    if (top < y) moveTo(top);
    else if (top + size > y + height) moveTo(top + size + left - height);
    wanted = place;
    draw();
  }

  on(host, "scroll", later, { passive: true });
  onKeys(host, (key) => {
    const place = Number(document.activeElement.dataset.place ?? NaN), screen = Math.max(1, Math.floor(height / step)) * columns;
    const to = { ArrowRight: place + 1, ArrowLeft: place - 1, ArrowDown: place + columns, ArrowUp: place - columns,
      PageDown: place + screen, PageUp: place - screen, Home: 0, End: total - 1 }[key];
    if (to === undefined || Number.isNaN(place)) return false;
    focus(to);
    return true;
  });
  on(host, "focusin", ({ target }) => { if (target.dataset.place) settle(Number(target.dataset.place)); });
  current = at = Math.min(at, total - 1);
  host.range = range;
  const unwatch = watch(() => cells.forEach((element) => { if (element.said) mark(element); }));
  const resize = () => { measure(); draw(); }, watcher = new ResizeObserver(resize);
  watcher.observe(host);

  return {
    host, resize,
    close() {
      // What is still to come changes nothing.
      closed = true;
      watcher.disconnect();
      unwatch();
      for (const timer of [asking, again, resting, telling]) clearTimeout(timer);
    },
    // The labels are others now; what is seen stays until they have come.
    refresh(suggested) {
      guessed = suggested;
      age += 1;
      pages.clear();
      draw();
    },
  };
}
