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

// version: of the plane's points, as the server has it.
export function mosaicOf(plane, version) {
  const sheets = new Map();
  // Cells of a part; the parts in sight; whether one was drawn in this frame.
  let columns = 0, rows = 0, now = [], made, resting;

  const level = () => clamp(Math.floor(Math.log2(plane.scale) + 0.3), DEEPEST);
  const name = (part) => `api/map/sheet/${part.level}/${(part.down << part.level) + part.right}?columns=${columns}&rows=${rows}&version=${version}`;
  const moving = () => performance.now() < plane.zoomed + REST;

  function drop(sheet, key) {
    sheet.stop.abort();
    sheet.picture?.close();
    sheets.delete(key);
  }

  // In how many cells the window is cut.
  function cut() {
    const { wide, high, count } = plane;
    const side = Math.max(CELL, Math.sqrt(wide * high / MOST), Math.min(LARGEST, Math.sqrt(wide * high / (2 * count))));
    columns = Math.max(1, Math.floor(wide / side));
    rows = Math.max(1, Math.floor(high / side));
  }

  // Width and height of a cell on the screen.
  const size = () => [plane.wide * plane.scale / (columns << level()), plane.high * plane.scale / (rows << level())];

  // The cell of a level in which a place lies.
  const cell = (u, v, at = level()) => [[u, columns << at], [v, rows << at]].map(([one, many]) => clamp(Math.floor(one * many), many - 1));

  // act(point, column, row) for the points of the cells from one to another.
  function each([i, j], [k, l], act, at = level()) {
    const wide = columns << at, high = rows << at, places = plane.at;
    plane.each(Math.min(i, k) / wide, Math.min(j, l) / high, (Math.max(i, k) + 1) / wide, (Math.max(j, l) + 1) / high, (point) => {
      const [x, y] = cell(places[2 * point], places[2 * point + 1], at);
      if ((x - i) * (x - k) <= 0 && (y - j) * (y - l) <= 0) act(point, x, y);
    });
  }

  function between(one, other) {
    const found = [];
    each(one, other, (point) => found.push(point));
    return found;
  }

  // The point that is drawn for a cell, -1 for none; null while that is not known.
  function standing([i, j]) {
    const part = { level: level(), right: Math.floor(i / columns), down: Math.floor(j / rows) }, sheet = mosaic.pictures && sheets.get(name(part));
    return sheet?.picture ? sheet.points[sheet.cells.indexOf((j - part.down * rows) * columns + i - part.right * columns)] ?? -1 : null;
  }

  // The parts that are in sight.
  function seen() {
    const here = level(), found = [], part = (corner) => corner.map((one) => clamp(Math.floor(one * (1 << here)), (1 << here) - 1));
    const [left, top] = part(plane.point(0, 0)), [right, bottom] = part(plane.point(plane.width, plane.height));
    for (let down = top; down <= bottom; down++) for (let along = left; along <= right; along++) found.push({ level: here, right: along, down });
    return found;
  }

  // Whether no dots are needed.
  function covers() {
    if (!mosaic.pictures || !columns) return false;
    now = seen();
    clearTimeout(resting);
    if (now.some((part) => !sheets.has(name(part)))) resting = setTimeout(load, REST);
    return now.every((part) => sheets.get(name(part))?.picture || coarse(part));
  }

  function load() {
    const wanted = new Set(now.map(name));
    sheets.forEach((sheet, key) => {
      // The oldest first.
      if (!wanted.has(key) && (!sheet.picture || sheets.size + wanted.size > KEPT)) drop(sheet, key);
    });
    for (const key of wanted) if (!sheets.has(key)) fetch(key).catch((error) => { if (error.name !== "AbortError") complain(error); });
  }

  // A JPEG; behind it which cells have tiles, which points these show, and how many there are, as int32.
  async function fetch(key) {
    const sheet = { stop: new AbortController() }, { signal } = sheet.stop;
    sheets.set(key, sheet);
    const content = await (await answered(key, { signal })).arrayBuffer(), [many] = new Int32Array(content.slice(-4)), list = new Int32Array(content.slice(-8 * many - 4, -4));
    const picture = await createImageBitmap(new Blob([content]));
    if (signal.aborted) { picture.close(); return; }
    Object.assign(sheet, { picture, cells: list.slice(0, many), points: list.slice(many) });
    plane.later();
  }

  function draw(pen, ratio) {
    if (!mosaic.pictures || !columns) return;
    made = false;
    // Quicker.
    pen.imageSmoothingEnabled = !moving();
    for (const part of now) {
      const key = name(part), sheet = sheets.get(key), edges = box(part, ratio);
      // The newest last.
      if (sheet) { sheets.delete(key); sheets.set(key, sheet); }
      const shown = sheet?.picture && prepared(sheet, part, ratio) ? part : coarse(part);
      pen.clearRect(...edges);
      if (!shown) continue;
      pen.save();
      pen.beginPath();
      pen.rect(...edges);
      pen.clip();
      pen.drawImage(sheets.get(name(shown)).canvas, ...box(shown, ratio));
      pen.restore();
    }
  }

  // The finest part drawn that holds this one.
  function coarse(part) {
    for (let up = 1; up <= part.level; up++) {
      const found = { level: part.level - up, right: part.right >> up, down: part.down >> up };
      if (sheets.get(name(found))?.canvas) return found;
    }
    return null;
  }

  // x, y, width and height of a part on the screen, in whole pixels.
  function box(part, ratio) {
    const { left, top, wide, high, scale } = plane, end = (from, length, place) => Math.round(ratio * (from + length * scale * place / (1 << part.level)));
    const x = end(left, wide, part.right), y = end(top, high, part.down);
    return [x, y, end(left, wide, part.right + 1) - x, end(top, high, part.down + 1) - y];
  }

  // A part is drawn once, one in a frame, and stretched as it is until a hand rests.
  function prepared(sheet, part, ratio) {
    const [, , width, height] = box(part, ratio), look = [plane.found, plane.chosen, plane.only, ratio], { canvas = document.createElement("canvas") } = sheet;
    if (sheet.look && look.every((one, place) => one === sheet.look[place]) && (moving() || Math.hypot(canvas.width - width, canvas.height - height) < 2)) return true;
    if (made) plane.later();
    else {
      made = true;
      Object.assign(canvas, { width, height });
      Object.assign(sheet, { look, canvas });
      tiles(sheet, part, Math.round(FRAME * ratio));
    }
    return sheet.canvas;
  }

  function tiles({ canvas, picture, cells, points }, part, frame) {
    const { colours, codes, chosen } = plane, pen = canvas.getContext("2d"), tile = picture.width / ACROSS, wide = canvas.width / columns, high = canvas.height / rows;
    const side = Math.max(3, Math.floor(Math.min(wide, high)) - 1), marked = new Set(), first = [part.right * columns, part.down * rows];
    if (chosen) each(first, [first[0] + columns - 1, first[1] + rows - 1], (point, i, j) => { if (chosen[point]) marked.add((j - first[1]) * columns + i - first[0]); }, part.level);
    cells.forEach((one, slot) => {
      const column = one % columns, x = Math.round(column * wide), y = Math.round((one - column) / columns * high), point = points[slot], faint = (chosen && !marked.has(one)) || plane.faint(point), inner = faint || codes[point] < 0 ? 0 : frame;
      pen.globalAlpha = faint ? FADED : 1;
      pen.fillStyle = `rgb(${colours[point] & 255} ${(colours[point] >> 8) & 255} ${(colours[point] >> 16) & 255})`;
      if (inner) pen.fillRect(x, y, side, side);
      pen.drawImage(picture, slot % ACROSS * tile, Math.floor(slot / ACROSS) * tile, tile, tile, x + inner, y + inner, side - 2 * inner, side - 2 * inner);
    });
  }

  const mosaic = {
    pictures: true, cut, size, cell, between, standing, covers, draw,
    // How many columns and rows of cells the whole map has.
    get across() { return [columns << level(), rows << level()]; },
    close() {
      clearTimeout(resting);
      sheets.forEach(drop);
    },
  };
  return mosaic;
}
