// What hands do on the map: one finger moves, two or a wheel zoom, Shift draws a line; and a cursor for keys.
import { clamp, on, onKeys, withControl } from "./dom.js";

// Corners of a line.
const MOST = 200;

export class Cursor {
  constructor(plane, mosaic) { Object.assign(this, { plane, mosaic, at: null, from: null }); }

  // The corner cells of what the cursor is extended over; the second is where it stands.
  get range() {
    const here = this.mosaic.cell(...this.at ?? this.plane.middle());
    return [this.from ? this.mosaic.cell(...this.from) : here, here];
  }

  move(step, extend) {
    const { plane, mosaic, at } = this, here = this.range[1], size = mosaic.size();
    this.at = here.map((one, axis) => {
      const many = mosaic.across[axis];
      return (clamp(one + (at ? step[axis] : 0), many - 1) + 0.5) / many;
    });
    this.from = extend ? this.from ?? at ?? this.at : null;
    // The view follows.
    const most = [plane.width, plane.height];
    plane.pan(...plane.place(...this.at).map((one, axis) => Math.min(0, most[axis] - one - size[axis]) + Math.max(0, size[axis] - one)));
  }

  draw(pen, ratio) {
    if (!this.at || document.activeElement !== this.plane.canvas) return;
    const { plane, mosaic } = this, [one, other] = this.range, size = mosaic.size();
    const low = one.map((cell, axis) => [plane.left, plane.top][axis] + Math.min(cell, other[axis]) * size[axis]), spans = one.map((cell, axis) => (Math.abs(cell - other[axis]) + 1) * size[axis] - 1);
    pen.beginPath();
    pen.rect(...[...low, ...spans].map((edge) => edge * ratio));
    plane.stroke(ratio, 4);
  }
}

// hover(point), lassoed(polygon, more), open(point), pick(points), extend(points, whether a block begins).
export function handle(plane, mosaic, cursor, lasso, { hover, lassoed, open, pick, extend }) {
  // Pointers that are down.
  const { canvas } = plane, spots = new Map();
  let moved = 0, drawing = false;
  const spot = (event) => { const box = canvas.getBoundingClientRect(); return [event.clientX - box.left, event.clientY - box.top]; };
  const under = (x, y, pixels = 10) => {
    const at = plane.point(x, y);
    return (at.every((one) => one >= 0 && one <= 1) ? mosaic.standing(mosaic.cell(...at)) : null) ?? plane.near(x, y, pixels);
  };
  on(canvas, "pointerdown", (event) => {
    // Quicker than the first frame.
    if (!plane.wide) plane.fit(false);
    canvas.setPointerCapture(event.pointerId);
    spots.set(event.pointerId, spot(event));
    moved = 0;
    drawing = event.shiftKey || lasso.getAttribute("aria-pressed") === "true";
    if (drawing) plane.line = [plane.point(...spot(event))];
    cursor.at = cursor.from = null;
    hover(-1);
  });
  on(canvas, "pointermove", (event) => {
    const now = spot(event), before = spots.get(event.pointerId);
    if (!before) { hover(under(...now)); return; }
    moved += Math.abs(now[0] - before[0]) + Math.abs(now[1] - before[1]);
    if (drawing) { plane.line.push(plane.point(...now)); plane.later(); } else if (spots.size === 2) {
      const other = [...spots].find(([id]) => id !== event.pointerId)[1];
      const apart = (one) => Math.hypot(one[0] - other[0], one[1] - other[1]);
      plane.zoom(apart(now) / Math.max(1, apart(before)), (now[0] + other[0]) / 2, (now[1] + other[1]) / 2);
    } else plane.pan(now[0] - before[0], now[1] - before[1]);
    spots.set(event.pointerId, now);
  });
  const up = (event) => {
    if (!spots.delete(event.pointerId)) return;
    if (drawing && moved > 8) {
      const every = Math.max(1, Math.ceil(plane.line.length / MOST));
      lassoed(plane.line.filter((_, number) => number % every === 0), withControl(event));
    } else if (moved < 4 && event.type === "pointerup") {
      const point = under(...spot(event), event.pointerType === "touch" ? 22 : 10);
      if (point >= 0) open(point);
    }
    drawing = false;
    plane.later();
  };
  on(canvas, "pointerup", up);
  on(canvas, "pointercancel", up);
  on(canvas, "pointerleave", () => hover(-1));
  on(canvas, "wheel", (event) => { event.preventDefault(); hover(-1); plane.zoom(Math.exp(-event.deltaY * 0.002), ...spot(event)); }, { passive: false });
  on(canvas, "focus", () => plane.later());
  on(canvas, "blur", () => { hover(-1); plane.later(); });
  onKeys(canvas, (key, event) => {
    const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[key];
    const middle = () => plane.place(...cursor.at ?? plane.middle()), found = (cell = cursor.range[1]) => mosaic.standing(cell) ?? mosaic.between(cell, cell)[0] ?? -1, there = (act) => { if (found() >= 0) act(found()); };
    const nearer = () => plane.zoom(1.4, ...middle());
    const acts = {
      "+": nearer, "=": nearer, "-": () => plane.zoom(1 / 1.4, ...middle()), 0: () => plane.fit(false), " ": () => pick(mosaic.between(...cursor.range)), x: () => there((one) => pick([one])),
      X: () => lassoed([[0, 0], [1, 0], [1, 1], [0, 1]].map(([x, y]) => plane.point(x * plane.width, y * plane.height))),
      Enter: () => there(open),
    };
    if (step) {
      const begun = !cursor.from;
      cursor.move(step, event.shiftKey);
      if (event.shiftKey) extend(mosaic.between(...cursor.range), begun);
    } else if (acts[key]) acts[key]();
    else return false;
    if (key !== "Enter") hover(found());
    return true;
  });
}
