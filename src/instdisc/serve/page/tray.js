// Selecting pictures in any view, and the tray: what can be done with them.
import { all, answered, button, byId, complain, count, fill, goTo, h, json, labelField, mark, modal, number, on, post, save, say, walkable, withControl, working } from "./dom.js";
import { give, undo } from "./journal.js";
import { MOST, add, clear, replace, selection, toggle, watch } from "./selection.js";

// Pictures in one search.
const QUERY = 100;
const tray = byId("tray");
// The picture from which a range goes on.
let anchor = null;
// What must be decided before a label is given.
let asking = null;

const most = () => say(`At most ${number(MOST)} pictures can be selected: the first of them are.`, true);
export const select = (rows) => { if (!replace(rows)) most(); };
export const selectMore = (rows) => { if (!add(rows)) most(); };
export const flip = (rows) => { if (!toggle(rows)) most(); };

const spot = (cell) => ({ cell, host: cell.closest(".scroll, .few"), place: Number(cell.dataset.place), row: Number(cell.dataset.row) });

// The rows from one cell to another of the same list, on the screen or not.
async function between(one, other) {
  if (!one || one.host !== other.host) return [other.row];
  if (one.host.range) return one.host.range(Math.min(one.place, other.place), Math.max(one.place, other.place));
  const cells = all(".cell", one.host), [from, to] = [cells.indexOf(one.cell), cells.indexOf(other.cell)].sort((a, b) => a - b);
  return cells.slice(Math.max(0, from), to + 1).map((element) => Number(element.dataset.row));
}

async function pick(cell, range) {
  const here = spot(cell);
  if (range) selectMore(await between(anchor, here));
  else flip([here.row]);
  anchor = here;
}

function drag() {
  let from = null, before = [], over = null, dragged = false, turn = 0;
  on(document, "pointerdown", (event) => {
    const cell = event.target.closest?.(".cell");
    dragged = false;
    from = event.button === 0 && event.pointerType !== "touch" && cell?.querySelector(".tick") ? cell : null;
    before = selection.rows;
    over = from;
  });
  on(document, "pointermove", async (event) => {
    if (!from || !(event.buttons & 1)) return;
    const cell = document.elementFromPoint(event.clientX, event.clientY)?.closest(".cell");
    if (!cell || cell === over || cell.closest(".scroll, .few") !== from.closest(".scroll, .few")) return;
    over = cell;
    dragged = true;
    const mine = ++turn, rows = await between(spot(from), spot(cell));
    if (mine === turn) select([...before, ...rows]);
  });
  on(document, "click", (event) => {
    const cell = event.target.closest?.(".cell");
    const tick = cell?.querySelector(".tick");
    // The click that ends it opens nothing.
    if (dragged) {
      dragged = false;
      event.preventDefault();
      event.stopPropagation();
    } else if (tick && (event.target === tick || event.shiftKey || withControl(event))) {
      event.preventDefault();
      event.stopPropagation();
      pick(cell, event.shiftKey).catch(complain);
    }
  }, true);
}

async function label(given) {
  const rows = selection.rows, together = rows.length > 1, { other } = await post("api/labels/overwriting", { rows, label: given });
  if (other) { asking = { rows, given, other, together }; draw(); tray.querySelector("button").focus(); } else await give(rows, given, { together });
}

async function download() {
  save("pictures.txt", await (await answered("api/list", json({ rows: selection.rows }))).blob());
  say(`pictures.txt lists ${count(selection.size, "file")}.`);
}

// A list of these pictures, which the run keeps under a name. The same name again replaces it.
function keepSet() {
  let known;
  const input = labelField("Name of the set", () => input.closest("dialog").querySelector(".main").click(), { list: null, placeholder: "parachutes", maxLength: 60 });
  const origin = document.querySelector("h1")?.textContent;
  modal(`Save ${count(selection.size, "picture")} as a set`, input, "Save", async () => {
    const name = input.value.trim();
    try { await post("api/sets", { name, rows: selection.rows, origin, replace: known === name }); } catch (error) { known = error.status === 409 && name; throw error; }
    goTo("", { set: name });
  });
}

const similar = () => goTo("search", { like: selection.rows.slice(0, QUERY).join(",") });

function decide() {
  const { rows, given, other, together } = asking;
  const act = (work) => () => { asking = null; draw(); work()?.catch(complain); };
  fill(tray, h("p", { role: "alert" }, `${number(other)} of ${number(rows.length)} ${other === 1 ? "has" : "have"} another label by you.`),
    h("button.main", act(() => give(rows, given, { together })), `Overwrite ${number(other)}`),
    rows.length > other && h("button", act(() => give(rows, given, { together, keep: true })), `Label the other ${number(rows.length - other)}`),
    button("Cancel", "Escape", act(() => {})));
  tray.settle();
}

function draw() {
  tray.hidden = !selection.size;
  if (!selection.size) asking = null;
  if (asking) { decide(); return; }
  if (tray.hidden) { fill(tray); return; }
  const told = tray.querySelector("strong");
  // What is being written stays.
  if (told) { told.textContent = `${number(selection.size)} selected`; return; }
  const input = labelField("Label of the selected pictures", (given) => label(given).catch(complain), { keys: "l", size: 12 });
  fill(tray, h("strong", { role: "status" }, `${number(selection.size)} selected`), h("span.pair", input, h("button.main", input.given, "Label")),
    h("button", { onclick: similar, title: "Search by all of them" }, "Similar"), h("button", keepSet, "Save as a set"), working("Download list", download, { title: "Where the files are now, one a line" }),
    button("Undo", "u", undo), button("Clear", "Escape", clear));
  tray.settle();
}

// Whether the key was meant for a selection.
export function key(event) {
  const cell = document.activeElement?.closest?.(".cell"), meant = event.key.toLowerCase() === "x" && cell?.querySelector(".tick");
  if (meant) pick(cell, event.shiftKey).catch(complain);
  return meant;
}

export function begin() {
  drag();
  walkable(tray, "button");
  watch(() => {
    draw();
    all(".few .cell:has(.tick)").forEach(mark);
  });
  draw();
}
