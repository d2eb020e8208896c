// The map as pictures: a grid of cells, each drawn as the picture next to its centre.
// Level L cuts the map into 2^L x 2^L parts of as many cells each; the tiles of a part come as one sheet.
import { answered, clamp, complain } from "./dom.js";

// Pixels of a cell where the whole map is seen; where there are few pictures.
const CELL = 40, LARGEST = 90;
// Cells of a part; levels; tiles in a line of a sheet.
const MOST = 2048, DEEPEST = 8, ACROSS = 32;
// Sheets.
const KEPT = 10;
// Milliseconds: who zooms through a level does not ask for it.
const REST = 90;
const FRAME = 2, FADED = 0.2;

export class Mosaic {
  // version: of the plane's points, as the server has it.
  constructor(plane, version) {
    Object.assign(this, { plane, version, pictures: true, columns: 0, rows: 0, sheets: new Map() });
  }

  close() {
    clearTimeout(this.resting);
    this.sheets.forEach((sheet, name) => this.drop(name, sheet));
  }

  drop(name, sheet) {
    sheet.stop.abort();
    sheet.picture?.close();
    this.sheets.delete(name);
  }

  // In how many cells the window is cut.
  cut() {
    const { wide, high, count } = this.plane;
    const side = Math.max(CELL, Math.sqrt(wide * high / MOST), Math.min(LARGEST, Math.sqrt(wide * high / (2 * count))));
    this.columns = Math.max(1, Math.floor(wide / side));
    this.rows = Math.max(1, Math.floor(high / side));
  }

  get level() { return clamp(Math.floor(Math.log2(this.plane.scale) + 0.3), DEEPEST); }

  // Width and height of a cell on the screen.
  size(level = this.level) {
    const { wide, high, scale } = this.plane;
    return [wide * scale / (this.columns << level), high * scale / (this.rows << level)];
  }

  // The cell of the level in which a place lies.
  cell(u, v, level = this.level) {
    return [[u, this.columns << level], [v, this.rows << level]].map(([one, many]) => clamp(Math.floor(one * many), many - 1));
  }

  // act(point, column, row) for the points of the cells from one to another.
  each([i, j], [k, l], level, act) {
    const wide = this.columns << level, high = this.rows << level, { at } = this.plane;
    this.plane.each(Math.min(i, k) / wide, Math.min(j, l) / high, (Math.max(i, k) + 1) / wide, (Math.max(j, l) + 1) / high, (point) => {
      const [x, y] = this.cell(at[2 * point], at[2 * point + 1], level);
      if ((x - i) * (x - k) <= 0 && (y - j) * (y - l) <= 0) act(point, x, y);
    });
  }

  between(one, other) {
    const found = [];
    this.each(one, other, this.level, (point) => found.push(point));
    return found;
  }

  // The point that is drawn for a cell, -1 for none; null while that is not known.
  standing([i, j]) {
    const { columns, rows, level } = this, part = { level, right: Math.floor(i / columns), down: Math.floor(j / rows) }, sheet = this.pictures && this.sheets.get(this.name(part));
    return sheet?.picture ? sheet.points[sheet.cells.indexOf((j - part.down * rows) * columns + i - part.right * columns)] ?? -1 : null;
  }

  name({ level, right, down }) { return `api/map/sheet/${level}/${(down << level) + right}?columns=${this.columns}&rows=${this.rows}&version=${this.version}`; }

  // The parts that are in sight.
  seen() {
    const { level, plane } = this, found = [], part = (corner) => corner.map((one) => clamp(Math.floor(one * (1 << level)), (1 << level) - 1));
    const [left, top] = part(plane.point(0, 0)), [right, bottom] = part(plane.point(plane.width, plane.height));
    for (let down = top; down <= bottom; down++) for (let along = left; along <= right; along++) found.push({ level, right: along, down });
    return found;
  }

  // Whether no dots are needed.
  covers() {
    if (!this.pictures || !this.columns) return false;
    this.now = this.seen();
    clearTimeout(this.resting);
    if (this.now.some((part) => !this.sheets.has(this.name(part)))) this.resting = setTimeout(() => this.load(), REST);
    return this.now.every((part) => this.sheets.get(this.name(part))?.picture || this.coarse(part));
  }

  load() {
    const wanted = new Set(this.now.map((part) => this.name(part)));
    this.sheets.forEach((sheet, name) => {
      // The oldest first.
      if (!wanted.has(name) && (!sheet.picture || this.sheets.size + wanted.size > KEPT)) this.drop(name, sheet);
    });
    for (const name of wanted) if (!this.sheets.has(name)) this.fetch(name).catch((error) => { if (error.name !== "AbortError") complain(error); });
  }

  // A JPEG; behind it which cells have tiles, which points these show, and how many there are, as int32.
  async fetch(name) {
    const sheet = { stop: new AbortController() };
    this.sheets.set(name, sheet);
    const content = await (await answered(name, { signal: sheet.stop.signal })).arrayBuffer(), [many] = new Int32Array(content.slice(-4)), list = new Int32Array(content.slice(-8 * many - 4, -4));
    const picture = await createImageBitmap(new Blob([content]));
    if (sheet.stop.signal.aborted) { picture.close(); return; }
    Object.assign(sheet, { picture, cells: list.slice(0, many), points: list.slice(many) });
    this.plane.later();
  }

  draw(pen, ratio) {
    if (!this.pictures || !this.columns) return;
    this.made = false;
    // Quicker.
    pen.imageSmoothingEnabled = !this.moving;
    for (const part of this.now) {
      const name = this.name(part), sheet = this.sheets.get(name), box = this.box(part, ratio);
      // The newest last.
      if (sheet) { this.sheets.delete(name); this.sheets.set(name, sheet); }
      const shown = sheet?.picture && this.prepared(sheet, part, ratio) ? part : this.coarse(part);
      pen.clearRect(...box);
      if (!shown) continue;
      pen.save();
      pen.beginPath();
      pen.rect(...box);
      pen.clip();
      pen.drawImage(this.sheets.get(this.name(shown)).canvas, ...this.box(shown, ratio));
      pen.restore();
    }
  }

  // The finest part drawn that holds this one.
  coarse({ level, right, down }) {
    for (let up = 1; up <= level; up++) {
      const found = { level: level - up, right: right >> up, down: down >> up };
      if (this.sheets.get(this.name(found))?.canvas) return found;
    }
    return null;
  }

  // x, y, width and height of a part on the screen, in whole pixels.
  box({ level, right, down }, ratio) {
    const { left, top, wide, high, scale } = this.plane, end = (from, size, place) => Math.round(ratio * (from + size * scale * place / (1 << level)));
    const x = end(left, wide, right), y = end(top, high, down);
    return [x, y, end(left, wide, right + 1) - x, end(top, high, down + 1) - y];
  }

  get moving() { return performance.now() < this.plane.zoomed + REST; }

  // A part is drawn once, one in a frame, and stretched as it is until a hand rests.
  prepared(sheet, part, ratio) {
    const { plane } = this, [, , width, height] = this.box(part, ratio), look = [plane.found, plane.chosen, plane.only, ratio], { canvas = document.createElement("canvas") } = sheet;
    if (sheet.look && look.every((one, place) => one === sheet.look[place]) && (this.moving || Math.hypot(canvas.width - width, canvas.height - height) < 2)) return true;
    if (this.made) plane.later();
    else {
      this.made = true;
      Object.assign(canvas, { width, height });
      Object.assign(sheet, { look, canvas });
      this.tiles(canvas, sheet, part, Math.round(FRAME * ratio));
    }
    return sheet.canvas;
  }

  tiles(canvas, { picture, cells, points }, { level, right, down }, frame) {
    const { plane, columns, rows } = this, { colours, codes, chosen } = plane, pen = canvas.getContext("2d"), tile = picture.width / ACROSS, wide = canvas.width / columns, high = canvas.height / rows;
    const side = Math.max(3, Math.floor(Math.min(wide, high)) - 1), marked = new Set(), first = [right * columns, down * rows];
    if (chosen) this.each(first, [first[0] + columns - 1, first[1] + rows - 1], level, (point, i, j) => { if (chosen[point]) marked.add((j - first[1]) * columns + i - first[0]); });
    cells.forEach((cell, slot) => {
      const column = cell % columns, x = Math.round(column * wide), y = Math.round((cell - column) / columns * high), point = points[slot], faint = (chosen && !marked.has(cell)) || plane.faint(point), inner = faint || codes[point] < 0 ? 0 : frame;
      pen.globalAlpha = faint ? FADED : 1;
      pen.fillStyle = `rgb(${colours[point] & 255} ${(colours[point] >> 8) & 255} ${(colours[point] >> 16) & 255})`;
      if (inner) pen.fillRect(x, y, side, side);
      pen.drawImage(picture, slot % ACROSS * tile, Math.floor(slot / ACROSS) * tile, tile, tile, x + inner, y + inner, side - 2 * inner, side - 2 * inner);
    });
  }
}
