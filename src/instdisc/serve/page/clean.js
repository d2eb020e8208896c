// Near-duplicates and outliers, to go through by keyboard. Nothing is deleted: a list is saved for whoever wants to.
import { ask, cell, empty, h, link, recall, remember, save, say, visit, walkable } from "./dom.js";

const MOST = 100; // groups, or twice as many outliers, that come at once

function saveList(pictures) {
  const lines = pictures.map((one) => one.path).filter((path) => !path.includes("\n"));
  save("remove.txt", lines);
  say(`remove.txt lists ${lines.length.toLocaleString("en")} pictures; instdisc index RUN --remove-list remove.txt takes them out of the collection.`);
}

// Keys that work wherever the focus is, but where it is written.
function listen(keep, act) {
  const keys = (event) => {
    if (event.target.matches("input, select") || event.ctrlKey || event.metaKey || event.altKey) return;
    if (act(event.key)) event.preventDefault();
  };
  document.addEventListener("keydown", keys);
  keep(() => document.removeEventListener("keydown", keys));
}

const byBank = (about) => (about.recomputed ? null : h("p", { class: "quiet" }, "Compared by the rows of the bank, which come from augmented views: ", h("code", {}, "instdisc index RUN --recompute"), " finds more."));

export async function duplicates(parameters, keep, about) {
  const threshold = Number(parameters.get("threshold") ?? about.threshold);
  const more = (start) => ask(`api/duplicates?${new URLSearchParams({ threshold, start, count: MOST })}`);
  const found = await more(0);
  const stored = `${about.name} duplicates`, decided = recall(stored); // first row of a group: which to keep, or null for none
  const groups = [];
  let now = 0;
  const copies = () => groups.flatMap((group) => (group.apart ? [] : group.pictures.filter((one) => one.row !== group.kept)));
  const count = h("span", { class: "quiet", role: "status" }), list = h("div", { class: "groups" });
  const draw = (group) => {
    group.element.classList.toggle("now", groups[now] === group);
    group.element.classList.toggle("apart", group.apart);
    group.element.querySelector("button.apart").setAttribute("aria-pressed", String(group.apart));
    group.pictures.forEach((one, place) => {
      const element = group.element.querySelectorAll(".cell")[place], kept = !group.apart && one.row === group.kept;
      element.classList.toggle("kept", kept);
      element.classList.toggle("gone", !group.apart && !kept);
      element.setAttribute("aria-pressed", String(kept));
    });
    count.textContent = `${copies().length.toLocaleString("en")} could go`;
  };
  const decide = (group, change) => {
    Object.assign(group, change);
    decided[group.key] = group.apart ? null : group.kept;
    remember(stored, decided);
    draw(group);
  };
  const go = (to) => {
    const before = groups[now];
    now = Math.max(0, Math.min(groups.length - 1, to));
    draw(before);
    draw(groups[now]);
    groups[now].element.scrollIntoView({ block: "nearest" });
  };
  const add = (given) => {
    for (const one of given) {
      const number = groups.length, key = one.pictures.map((picture) => picture.row).sort((a, b) => a - b).join(",");
      const before = decided[key];
      const group = { ...one, key, apart: before === null, kept: before ?? one.pictures[0].row };
      const places = one.pictures.map((picture, place) => (one.worst.includes(picture.row) ? place + 1 : 0)).filter(Boolean);
      group.element = h("section", { class: "group", "aria-label": `Group ${number + 1}` },
        h("div", { class: "bar" }, h("h2", {}, `${one.pictures.length} pictures`),
          h("span", { class: "quiet" }, `least alike: ${one.least.toFixed(3)}${one.pictures.length > 2 ? ` (${places.join(" and ")})` : ""}`),
          h("span", { class: "room" }), h("button", { type: "button", class: "apart", onclick: () => { decide(group, { apart: !group.apart }); go(number); } }, "No duplicates")),
        walkable(h("div", { class: "few" }, ...one.pictures.map((picture) => cell(picture, {
          open: () => { decide(group, { kept: picture.row, apart: false }); go(number); },
          ondblclick: () => visit(picture.row) })))));
      groups.push(group);
      list.append(group.element);
    }
    groups.forEach(draw);
  };
  const rest = h("button", { type: "button", onclick: async () => {
    rest.disabled = true;
    try { add((await more(groups.length)).groups); } catch (error) { say(error.message, true); }
    rest.disabled = false;
    rest.hidden = groups.length >= found.total;
  } }, `Show ${MOST} more groups`);
  listen(keep, (key) => {
    const group = groups[now];
    if (!group) return false;
    if (key === "j") go(now + 1);
    else if (key === "k") go(now - 1);
    else if (key === "x") decide(group, { apart: !group.apart });
    else if (/^[1-9]$/.test(key) && group.pictures[key - 1]) decide(group, { kept: group.pictures[key - 1].row, apart: false });
    else return false;
    return true;
  });
  add(found.groups);
  rest.hidden = groups.length >= found.total;
  return [h("div", { class: "bar" }, h("h1", {}, `${found.total.toLocaleString("en")} groups of near-duplicates`), count,
    h("span", { class: "room" }),
    h("label", {}, "at least as alike as ", h("input", { type: "number", min: "0.6", max: "1", step: "0.01", value: String(threshold),
      onchange: (event) => { if (event.target.checkValidity()) location.hash = link("duplicates", { threshold: event.target.value }); } })),
    h("button", { type: "button", class: "main", disabled: !groups.length, onclick: () => saveList(copies()) }, "Save the list of copies")),
  byBank(about),
  groups.length ? h("p", { class: "keys" }, h("kbd", {}, "j"), " ", h("kbd", {}, "k"), " next and previous group, ", h("kbd", {}, "1"), "–", h("kbd", {}, "9"), " or a click which to keep, ", h("kbd", {}, "x"), " no duplicates; a double click shows a picture")
    : empty("No near-duplicates", `No two pictures have a cosine of ${threshold} or more: a lower number finds more.`),
  list, rest];
}

export async function outliers(keep, about) {
  const more = (start) => ask(`api/outliers?${new URLSearchParams({ start, count: 2 * MOST })}`);
  const { by, pictures } = await more(0);
  if (!pictures.length) return [empty("No outliers", "There are too few pictures to compare.")];
  const stored = `${about.name} outliers`, marked = recall(stored); // row: its path
  const list = h("div", { class: "few" }), count = h("span", { class: "quiet", role: "status" });
  const saving = h("button", { type: "button", class: "main", onclick: () => saveList(Object.values(marked).map((path) => ({ path }))) }, "Save the list of marked");
  const draw = (item) => {
    const gone = item.firstChild.dataset.row in marked;
    item.firstChild.classList.toggle("gone", gone);
    item.lastChild.firstChild.setAttribute("aria-pressed", String(gone));
    item.lastChild.firstChild.textContent = gone ? "marked" : "mark";
    const all = Object.keys(marked).length;
    count.textContent = `${all.toLocaleString("en")} marked`;
    saving.disabled = !all;
  };
  const mark = (item, one) => {
    if (one.row in marked) delete marked[one.row];
    else marked[one.row] = one.path;
    remember(stored, marked);
    draw(item);
  };
  const known = [];
  const add = (given) => {
    for (const one of given) {
      const item = h("div", { class: "item" }, cell(one, { score: one.score }),
        h("div", { class: "small-bar" }, h("button", { type: "button", "aria-label": `Mark ${one.id}`, onclick: () => mark(item, one) }, "mark")));
      known.push([item, one]);
      list.append(item);
      draw(item);
    }
  };
  const rest = h("button", { type: "button", onclick: async () => {
    rest.disabled = true;
    try {
      const next = (await more(known.length)).pictures;
      add(next);
      rest.hidden = next.length < 2 * MOST;
    } catch (error) { say(error.message, true); }
    rest.disabled = false;
  } }, `Show ${2 * MOST} more`);
  listen(keep, (key) => {
    const here = known.findIndex(([item]) => item.contains(document.activeElement));
    if (key === "x" && here >= 0) mark(...known[here]);
    else if (key === "j" || key === "k") known[Math.max(0, Math.min(known.length - 1, key === "j" ? here + 1 : here - 1))][0].firstChild.focus();
    else return false;
    return true;
  });
  add(pictures);
  rest.hidden = pictures.length < 2 * MOST;
  return [h("div", { class: "bar" }, h("h1", {}, "Least like any other"), count, h("span", { class: "room" }), saving),
    h("p", { class: "quiet" }, by === "strangeness" ? "The number is the strangeness, by what the network's stages see: the higher, the stranger."
      : ["The number is the mean cosine with the ten nearest, which says little: ", h("code", {}, "instdisc outliers RUN"), " computes a better one."]),
    h("p", { class: "keys" }, h("kbd", {}, "j"), " ", h("kbd", {}, "k"), " or arrows next and previous, ", h("kbd", {}, "x"), " mark what could go, ", h("kbd", {}, "Enter"), " look at it"),
    walkable(list), rest];
}
