// Near-duplicates and outliers, to go through by keyboard. Nothing is deleted: a list is saved for whoever wants to.
import { ask, cell, h, link, say, walkable } from "./dom.js";

const MOST = 500; // groups shown at once

export async function duplicates(parameters, keep, about) {
  const threshold = Number(parameters.get("threshold") ?? 0.95);
  const found = await ask(`api/duplicates?${new URLSearchParams({ threshold, count: MOST })}`);
  const groups = found.groups.map((group) => ({ ...group, kept: group.pictures[0].row, apart: false }));
  let now = 0;
  const copies = () => groups.flatMap((group) => (group.apart ? [] : group.pictures.filter((one) => one.row !== group.kept)));
  const count = h("span", { class: "quiet", role: "status" });
  const draw = (group) => {
    group.element.classList.toggle("now", groups[now] === group);
    group.element.classList.toggle("apart", group.apart);
    group.pictures.forEach((one, place) => {
      const element = group.element.querySelectorAll(".cell")[place];
      element.classList.toggle("kept", !group.apart && one.row === group.kept);
      element.classList.toggle("gone", !group.apart && one.row !== group.kept);
      element.setAttribute("aria-pressed", String(!group.apart && one.row === group.kept));
    });
    count.textContent = `${copies().length.toLocaleString("en")} could go`;
  };
  const go = (to) => {
    const before = groups[now];
    now = Math.max(0, Math.min(groups.length - 1, to));
    draw(before);
    draw(groups[now]);
    groups[now].element.scrollIntoView({ block: "nearest" });
  };
  const save = () => {
    const lines = copies().map((one) => one.path).filter((path) => !path.includes("\n"));
    const address = URL.createObjectURL(new Blob([`${lines.join("\n")}\n`], { type: "text/plain" }));
    h("a", { href: address, download: "remove.txt" }).click();
    URL.revokeObjectURL(address);
    say(`remove.txt lists ${lines.length} pictures; instdisc index RUN --remove-list remove.txt takes them out of the collection.`);
  };
  for (const [number, group] of groups.entries()) {
    const least = new Set(group.worst);
    group.element = h("section", { class: "group", "aria-label": `Group ${number + 1}` },
      h("div", { class: "bar" }, h("h2", {}, `${group.pictures.length} pictures`),
        h("span", { class: "quiet" }, `least alike: ${group.least.toFixed(3)}${group.pictures.length > 2 ? ` (${group.pictures.map((one, place) => (least.has(one.row) ? place + 1 : 0)).filter(Boolean).join(" and ")})` : ""}`)),
      walkable(h("div", { class: "few" }, ...group.pictures.map((one) => cell(one, {
        open: () => { group.kept = one.row; group.apart = false; go(number); },
        ondblclick: () => { location.hash = link(`picture/${one.row}`); } })))));
  }
  const keys = (event) => {
    if (event.target.matches("input, select") || event.ctrlKey || event.metaKey || !groups.length) return;
    const group = groups[now];
    if (event.key === "j") go(now + 1);
    else if (event.key === "k") go(now - 1);
    else if (event.key === "x") { group.apart = !group.apart; draw(group); }
    else if (/^[1-9]$/.test(event.key) && group.pictures[event.key - 1]) {
      group.kept = group.pictures[event.key - 1].row;
      group.apart = false;
      draw(group);
    } else return;
    event.preventDefault();
  };
  document.addEventListener("keydown", keys);
  keep(() => document.removeEventListener("keydown", keys));
  groups.forEach(draw);
  return [h("div", { class: "bar" }, h("h1", {}, `${found.total.toLocaleString("en")} groups of near-duplicates`), count,
    h("span", { class: "room" }),
    h("label", {}, "at least as alike as ", h("input", { type: "number", min: "0.6", max: "1", step: "0.01", value: String(threshold),
      onchange: (event) => { if (event.target.checkValidity()) location.hash = link("duplicates", { threshold: event.target.value }); } })),
    h("button", { type: "button", class: "main", disabled: !groups.length, onclick: save }, "Save the list of copies")),
  about.recomputed ? null : h("p", { class: "quiet" }, "Compared by the rows of the bank, which come from augmented views: `instdisc index RUN --recompute` finds more."),
  groups.length ? h("p", { class: "keys" }, h("kbd", {}, "j"), " ", h("kbd", {}, "k"), " next and previous group, ", h("kbd", {}, "1"), "–", h("kbd", {}, "9"), " which to keep, ", h("kbd", {}, "x"), " no duplicates; a double click shows a picture")
    : h("p", { class: "quiet" }, "No two pictures are as alike as that: a lower number finds more."),
  ...groups.map((group) => group.element),
  found.total > groups.length ? h("p", { class: "quiet" }, `The first ${groups.length} are shown.`) : null].filter(Boolean);
}

export async function outliers() {
  const { by, pictures } = await ask("api/outliers?count=200");
  return [h("h1", {}, "Least like any other"),
    h("p", { class: "quiet" }, by === "strangeness" ? "The number is the strangeness, by what the network's stages see: the higher, the stranger."
      : "The number is the mean cosine with the ten nearest, which says little: `instdisc outliers RUN` computes a better one."),
    walkable(h("div", { class: "few" }, ...pictures.map((one) => cell(one, { score: one.score }))))];
}
