// Copies, look-alikes and outliers, by keyboard. Nothing is deleted: a list is saved.
import { cell, clamp, empty, get, goTo, h, inBar, keys, listen, number as count, press, quiet, room, save, say, size, visit, walkable, way, working } from "./dom.js";
import { recall, remember } from "./memory.js";

const MOST = 100; // groups, or twice as many outliers, that come at once

function saveList(pictures) {
  const lines = pictures.map((one) => one.path).filter((path) => !path.includes("\n"));
  save("remove.txt", lines.map((line) => `${line}\n`).join(""));
  say(`remove.txt lists ${count(lines.length)} pictures; instdisc index RUN --remove-list remove.txt takes them out of the collection.`);
}

const byBank = (about) => (about.recomputed ? null : h("p.quiet", "Quick comparison from training: ", h("code", "instdisc index RUN --recompute"), " makes it exact."));

const facts = (one) => [`${one.width} × ${one.height}`, one.format, one.size ? size(one.size) : "", one.modified ? new Date(1000 * one.modified).toISOString().slice(0, 10) : ""].filter(Boolean).join(" · ");
const why = (one) => [one.kind, ...one.changes].join(", ");

// Groups to decide on. of: total and the first; more(start): further ones; marked: whether one is kept before anybody has
// chosen; stored: the name of decisions; header(group), below(picture): what is said of each.
function deciding(of, more, { marked, stored, header, below, keep }) {
  const decided = recall(stored); // rows of a group: which to keep, or null for none
  const groups = [], told = h("span.quiet", { role: "status" }), list = h("div.groups");
  let now = 0;
  const prepared = (one) => {
    const key = one.pictures.map((picture) => picture.row).sort((a, b) => a - b).join(",");
    const before = key in decided ? decided[key] : marked ? one.pictures[0].row : null;
    return { ...one, key, apart: before === null, kept: before ?? one.pictures[0].row };
  };
  const going = (group) => (group.apart ? [] : group.pictures.filter((one) => one.row !== group.kept));
  const tell = () => {
    const beyond = marked ? of.copies - groups.reduce((sum, group) => sum + group.pictures.length - 1, 0) : 0;
    told.textContent = `${count(groups.flatMap(going).length + beyond)} marked for removal`;
    saving.disabled = !marked && !groups.some((group) => !group.apart);
  };
  const draw = (group) => {
    const here = groups[now] === group; // the Tab key passes the others
    group.element.classList.toggle("now", here);
    group.element.querySelectorAll("button").forEach((one) => { one.tabIndex = here ? 0 : -1; });
    if (here) group.element.querySelector(".few").settle();
    group.element.classList.toggle("apart", marked && group.apart);
    group.element.querySelector("button.apart").setAttribute("aria-pressed", String(group.apart));
    group.pictures.forEach((one, place) => {
      const element = group.element.querySelectorAll(".cell")[place], kept = !group.apart && one.row === group.kept;
      element.classList.toggle("kept", kept);
      element.classList.toggle("gone", !group.apart && !kept);
      press(element, kept);
      element.parentElement.querySelector(".chip").textContent = group.apart ? "" : kept ? "keep" : "remove";
    });
    tell();
  };
  const decide = (group, change) => {
    Object.assign(group, change);
    decided[group.key] = group.apart ? null : group.kept;
    remember(stored, decided);
    draw(group);
  };
  const go = (to) => {
    const before = groups[now];
    now = clamp(to, groups.length - 1);
    draw(before);
    draw(groups[now]);
    groups[now].element.scrollIntoView({ block: "nearest" });
  };
  const add = (given) => {
    for (const one of given) {
      const number = groups.length, group = prepared(one);
      group.element = h("section.group", { label: `Group ${number + 1}` },
        inBar(h("h2", `${one.pictures.length} pictures`), quiet(header(one)),
          room(), h("button.apart", () => { decide(group, { apart: !group.apart }); go(number); }, marked ? "Not duplicates" : "Keep all")),
        walkable(h("div.few", ...one.pictures.map((picture) => h("div.item",
          cell(picture, { pick: false, open: () => { decide(group, { kept: picture.row, apart: false }); go(number); }, ondblclick: () => visit(picture.row) }),
          h("span.chip"), ...below(picture).map((line) => h("span.fact", line)))))));
      groups.push(group);
      list.append(group.element);
    }
    groups.forEach(draw);
    rest.hidden = groups.length >= of.total;
  };
  const saving = working("Download list", async () => { // it is whole, whatever is on the screen
    const all = [...groups];
    while (marked && all.length < of.total) all.push(...(await more(all.length)).groups.map(prepared));
    saveList(all.flatMap(going));
  }, { class: "main", disabled: !of.groups.length });
  const rest = working(`Show ${MOST} more groups`, async () => add((await more(groups.length)).groups));
  listen(keep, (key) => {
    const group = groups[now];
    if (!group) return false;
    if (key === "j" || key === "PageDown") go(now + 1);
    else if (key === "k" || key === "PageUp") go(now - 1);
    else if (key === "x") decide(group, { apart: !group.apart });
    else if (/^[1-9]$/.test(key) && group.pictures[key - 1]) decide(group, { kept: group.pictures[key - 1].row, apart: false });
    else return false;
    return true;
  });
  add(of.groups);
  tell();
  return { told, list, rest, saving };
}

const help = (marked) => keys(`[j] [k] next and previous group, [1]–[9] or a click which to keep, [x] ${marked ? "not duplicates" : "keep all"}; a double click shows a picture`);

const heading = (total, what, shown, ...more) => inBar(h("h1", `${count(total)} ${total === 1 ? "group" : "groups"} of ${what}`), shown.told, room(), ...more, shown.saving);

export async function duplicates({ parameters, keep, about }) {
  const more = (start) => get("api/duplicates", { start, count: MOST });
  const found = await more(0), others = way("#/look-alikes", "Look-alikes");
  const shown = deciding(found, more, { marked: true, stored: `${about.name} copies`, keep,
    header: (group) => [...new Set(group.pictures.slice(1).map(why))].join("; "),
    below: (picture) => [picture.kind ? why(picture) : "best of these", facts(picture)] });
  return [heading(found.total, "copies", shown, others),
    h("p.quiet", "Proven by their bytes, or by pixels laid over each other. The one with most pixels is kept, then the largest file, then the oldest. No file is touched."),
    found.total ? help(true) : empty("No copies", "No two pictures are the same file or show the same pixels.", others.cloneNode(true)), shown.list, shown.rest];
}

export async function lookAlikes({ parameters, keep, about }) {
  const threshold = Number(parameters.threshold ?? about.threshold);
  const more = (start) => get("api/look-alikes", { threshold, start, count: MOST });
  const found = await more(0);
  const shown = deciding(found, more, { marked: false, stored: `${about.name} look-alikes`, keep,
    header: (group) => {
      const places = group.pictures.map((picture, place) => (group.worst.includes(picture.row) ? place + 1 : 0)).filter(Boolean);
      return `lowest ${group.least.toFixed(3)}${group.pictures.length > 2 ? ` (${places.join("–")})` : ""}`;
    },
    below: () => [] });
  return [heading(found.total, "look-alikes", shown,
    h("label", "Minimum similarity ", h("input", { type: "number", min: "0.6", max: "1", step: "0.01", value: String(threshold),
      onchange: (event) => { if (event.target.checkValidity()) goTo("look-alikes", { threshold: event.target.value }); } })), way("#/duplicates", "Copies")),
  h("p.quiet", "Alike to the encoder, and not proven to be copies: nothing is marked until you choose which to keep."), byBank(about),
  found.total ? help(false) : empty("No look-alikes", `No two pictures have a cosine of ${threshold} or more: lower the minimum.`), shown.list, shown.rest];
}

export async function outliers({ keep }) {
  const more = (start) => get("api/outliers", { start, count: 2 * MOST }), { by, pictures } = await more(0);
  if (!pictures.length) return [empty("No outliers", "There are too few pictures to compare.")];
  const list = h("div.few");
  const add = (given) => {
    list.append(...given.map((one) => cell(one, { score: one.score })));
    rest.hidden = given.length < 2 * MOST;
  };
  const rest = working(`Show ${2 * MOST} more`, async () => add((await more(list.children.length)).pictures));
  listen(keep, (key) => {
    const cells = [...list.children], here = cells.indexOf(document.activeElement);
    if (key === "j" || key === "k") cells[clamp(key === "j" ? here + 1 : here - 1, cells.length - 1)].focus();
    return key === "j" || key === "k";
  });
  add(pictures);
  return [h("h1", "Outliers"),
    h("p.quiet", by === "outlier_score" ? "Outlier score, by what the network's stages see: higher is more unusual."
      : ["Mean cosine with the ten nearest, a rough measure: ", h("code", "instdisc outliers RUN"), " computes outlier scores."]),
    keys("[j] [k] or arrows next and previous, [x] select, [Enter] look at it"), walkable(list), rest];
}
