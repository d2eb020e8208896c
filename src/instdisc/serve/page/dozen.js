// Suggestions confirmed by the dozen.
import { all, ask, cell, choice, complain, count, empty, fill, get, goTo, h, hint, inBar, listen, number, percent, press, quiet, room, walkable, way, working } from "./dom.js";
import { give, onLabels } from "./journal.js";
import { recall, remember } from "./memory.js";

const SHOWN = 24, MOST = 100;

export async function dozen({ parameters, keep, about }) {
  const { classes } = await ask("api/labels");
  if (!classes.length) {
    return [empty("Nothing is suggested yet", "Label a few pictures one by one: others are then suggested.", way("#/label", "Label one by one", "main"))];
  }
  const asked = parameters.label, label = classes.some((one) => one.label === asked) ? asked
    : classes.reduce((best, one) => (one.suggested > best.suggested ? one : best)).label;
  // Seen, and not of this class.
  const stored = `${about.name} not ${label}`, passed = new Set(recall(stored).rows ?? []);
  const title = h("h1"), list = walkable(h("div.few.dozen", { group: "Arrows move, x or Space takes one out" })), told = h("p.quiet", { role: "status" });
  let shown = [], out = new Set();

  const name = () => {
    confirm.textContent = `Confirm ${number(shown.length - out.size)}`;
    confirm.hidden = !shown.length;
    told.textContent = out.size ? `${count(out.size, "picture")} left out` : "";
  };
  const draw = (element) => {
    const gone = out.has(Number(element.dataset.row));
    element.classList.toggle("gone", gone);
    press(element, !gone);
  };
  const flip = (row) => {
    if (out.has(row)) out.delete(row);
    else out.add(row);
    all(".cell", list).forEach(draw);
    name();
  };
  const load = async () => {
    shown = [];
    let total = 0;
    for (let start = 0; shown.length < SHOWN; start += MOST) {
      const found = await get("api/suggestions", { label, start, count: MOST });
      total = found.total;
      shown.push(...found.pictures.filter((one) => !passed.has(one.row)).slice(0, SHOWN - shown.length));
      if (start + MOST >= total) break;
    }
    out = new Set(shown.map((one) => one.row).filter((row) => out.has(row)));
    title.textContent = `Is this “${label}”?`;
    fill(list, shown.map((one) => {
      const element = cell(one, { pick: false, open: () => flip(one.row) });
      element.append(h("span.score", { mute: "true" }, percent(one.confidence)));
      draw(element);
      return element;
    }));
    list.settle();
    if (!shown.length) fill(list, h("p.quiet", "No more are suggested: label one by one, or choose another class."));
    name();
    list.querySelector(".cell")?.focus();
  };
  const confirm = working("", async () => {
    const rows = shown.filter((one) => !out.has(one.row)).map((one) => one.row);
    for (const row of out) passed.add(row);
    remember(stored, { rows: [...passed] });
    if (rows.length) await give(rows, label, { together: true });
    else await load();
  }, { class: "main", keys: "Enter" });
  listen(keep, (key, { target }) => key === "x" && target.matches(".dozen .cell") && (target.click(), true));
  onLabels(keep, () => load().catch(complain));
  await load();
  return [inBar(title, told, room(),
    choice("class", classes.map((one) => [one.label, `${one.label} (${number(one.suggested)})`]), label, (value) => goTo("dozen", { label: value })),
    way("#/label", "One by one"), confirm),
  quiet("Click out what is wrong, then confirm the rest."), hint(),
  list];
}
