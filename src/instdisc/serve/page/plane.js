// Points in the plane on a canvas. Dots are written straight into pixels.
import { clamp } from "./dom.js";

// Pixels around the whole map.
const MARGIN = 16;
// Of the lattice by which the points of a place are found, a side.
const BUCKETS = 256;
const LEAST = 0.8, MOST = 360;

const bucket = (one) => clamp(Math.floor(one * BUCKETS), BUCKETS - 1);

export const packed = (colour) => {
  const number = parseInt(colour.slice(1), 16);
  return ((255 << 24) | ((number & 255) << 16) | (number & 0xff00) | (number >> 16)) >>> 0;
};

export class Plane {
  // at: x and y of each point in 0..1. moved(): is told after every pan and zoom.
  constructor(canvas, at, moved) {
    const count = at.length / 2, starts = new Uint32Array(BUCKETS ** 2 + 1), members = new Uint32Array(count), key = (point) => bucket(at[2 * point + 1]) * BUCKETS + bucket(at[2 * point]);
    Object.assign(this, { canvas, at, moved, count, starts, members, scale: 1, left: 0, top: 0, width: 0, height: 0, zoomed: 0, line: [], chosen: null, only: null, layers: [], colours: new Uint32Array(count), pen: canvas.getContext("2d") });
    for (let point = 0; point < count; point++) starts[key(point) + 1] += 1;
    for (let one = 0; one < BUCKETS ** 2; one++) starts[one + 1] += starts[one];
    const next = starts.slice();
    for (let point = 0; point < count; point++) members[next[key(point)]++] = point;
  }

  // act(point) for the points from one corner to another, and for some around.
  each(u, v, beyond, below, act) {
    for (let b = bucket(v - 0.001); b <= bucket(below + 0.001); b++) {
      const end = this.starts[b * BUCKETS + bucket(beyond + 0.001) + 1];
      for (let place = this.starts[b * BUCKETS + bucket(u - 0.001)]; place < end; place++) act(this.members[place]);
    }
  }

  later() {
    if (this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(() => { this.waiting = false; this.draw(); });
  }

  // Whether another colour is isolated.
  faint(point) { return this.only !== null && this.only !== this.codes[point]; }

  draw() {
    const { canvas, pen } = this;
    const ratio = devicePixelRatio || 1, width = Math.round(canvas.clientWidth * ratio), height = Math.round(canvas.clientHeight * ratio);
    if (!width || !height) return;
    if (canvas.width !== width || canvas.height !== height) {
      canvas.width = width;
      canvas.height = height;
      this.frame = null;
    }
    if (this.layers.every((layer) => !layer.covers?.())) this.dots(width, height, ratio);
    else pen.clearRect(0, 0, width, height);
    for (const layer of this.layers) layer.draw(pen, ratio);
    if (this.line.length > 1) this.outline(ratio);
  }

  dots(width, height, ratio) {
    const { at, count, colours, chosen, pale } = this;
    this.frame ??= new ImageData(width, height);
    const pixels = new Uint32Array(this.frame.data.buffer);
    pixels.fill(0);
    const size = Math.max(1, Math.min(24, Math.round(ratio * (count > 30000 ? 1.5 : count > 5000 ? 2.6 : 4.5) * Math.min(3.5, Math.sqrt(this.scale)))));
    const wide = this.wide * this.scale * ratio, high = this.high * this.scale * ratio, dx = this.left * ratio - size / 2, dy = this.top * ratio - size / 2;
    const paint = (point, colour) => {
      const x = Math.round(at[2 * point] * wide + dx), y = Math.round(at[2 * point + 1] * high + dy);
      if (x < 0 || y < 0 || x + size >= width || y + size >= height) return;
      for (let start = y * width + x, end = start + size * width; start < end; start += width) pixels.fill(colour, start, start + size);
    };
    // What is meant lies on top of the rest.
    if (chosen || this.only !== null) {
      const meant = (point) => (!chosen || chosen[point]) && !this.faint(point);
      for (const now of [false, true]) for (let point = 0; point < count; point++) if (meant(point) === now) paint(point, now ? colours[point] : pale);
    } else for (let point = 0; point < count; point++) paint(point, colours[point]);
    this.pen.putImageData(this.frame, 0, 0);
  }

  outline(ratio) {
    const pen = this.pen;
    pen.beginPath();
    for (const [u, v] of this.line) pen.lineTo(...this.place(u, v).map((one) => one * ratio));
    pen.closePath();
    pen.fillStyle = this.ink;
    pen.globalAlpha = 0.14;
    pen.fill();
    pen.globalAlpha = 1;
    this.stroke(ratio, 2);
  }

  // Seen over pictures of any colour.
  stroke(ratio, thick) {
    for (const [strokeStyle, lineWidth] of [["#fff", 2 * thick * ratio], [this.ink, thick * ratio]]) {
      Object.assign(this.pen, { strokeStyle, lineWidth });
      this.pen.stroke();
    }
  }

  place(u, v) { return [u * this.wide * this.scale + this.left, v * this.high * this.scale + this.top]; }

  point(x, y) { return [(x - this.left) / (this.wide * this.scale), (y - this.top) / (this.high * this.scale)]; }

  // The whole map, stretched to the window; keep: what was in the middle.
  fit(keep) {
    const middle = keep && this.wide ? this.middle() : [0.5, 0.5];
    if (!keep) this.scale = 1;
    this.width = this.canvas.clientWidth;
    this.height = this.canvas.clientHeight;
    this.wide = Math.max(50, this.width - 2 * MARGIN);
    this.high = Math.max(50, this.height - 2 * MARGIN);
    this.centre(...middle, this.scale);
  }

  middle() { return this.point(this.width / 2, this.height / 2); }

  changed() { this.later(); this.moved(); }

  centre(u, v, scale) {
    this.scale = clamp(scale, MOST, LEAST);
    this.left = this.width / 2 - u * this.wide * this.scale;
    this.top = this.height / 2 - v * this.high * this.scale;
    this.changed();
  }

  pan(x, y) {
    this.left += x;
    this.top += y;
    this.changed();
  }

  zoom(factor, x = this.width / 2, y = this.height / 2) {
    const next = clamp(this.scale * factor, MOST, LEAST);
    this.left = x - (x - this.left) * (next / this.scale);
    this.top = y - (y - this.top) * (next / this.scale);
    this.scale = next;
    this.zoomed = performance.now();
    this.changed();
  }

  // The point next to a place of the canvas, at most `pixels` away; -1 where there is none.
  near(x, y, pixels = 10) {
    let best = -1, distance = pixels * pixels;
    this.each(...this.point(x - pixels, y - pixels), ...this.point(x + pixels, y + pixels), (point) => {
      const [there, down] = this.place(this.at[2 * point], this.at[2 * point + 1]), away = (there - x) ** 2 + (down - y) ** 2;
      if (away < distance) { distance = away; best = point; }
    });
    return best;
  }

  // The points inside a line that is drawn around them.
  inside(polygon) {
    const found = [], ends = (one, which) => which(...polygon.map((corner) => corner[one]));
    this.each(ends(0, Math.min), ends(1, Math.min), ends(0, Math.max), ends(1, Math.max), (point) => {
      const u = this.at[2 * point], v = this.at[2 * point + 1];
      let within = false;
      for (let i = 0, j = polygon.length - 1; i < polygon.length; j = i++) {
        const [ui, vi] = polygon[i], [uj, vj] = polygon[j];
        if ((vi > v) !== (vj > v) && u < ((uj - ui) * (v - vi)) / (vj - vi) + ui) within = !within;
      }
      if (within) found.push(point);
    });
    return found;
  }
}

// Names of regions over the map, where there is room.
export const naming = (plane) => ({
  regions: [],
  draw(pen, ratio) {
    const taken = [], high = 11 * ratio;
    Object.assign(pen, { font: `600 ${13 * ratio}px system-ui, sans-serif`, textAlign: "center", textBaseline: "middle" });
    for (const { name, x, y } of this.regions) {
      const [at, top] = plane.place(x, y).map((one) => one * ratio), wide = pen.measureText(name).width / 2 + 8 * ratio, width = pen.canvas.width;
      if (at < 0 || at > width) continue;
      const left = clamp(at, width - wide, wide);
      if (taken.some(([a, b, other]) => Math.abs(a - left) < wide + other && Math.abs(b - top) < 2 * high)) continue;
      taken.push([left, top, wide]);
      pen.fillStyle = "rgb(0 0 0 / .72)";
      pen.fillRect(left - wide, top - high, 2 * wide, 2 * high);
      pen.fillStyle = "#fff";
      pen.fillText(name, left, top);
    }
  },
});
