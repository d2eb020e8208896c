// One picture and what is like it; search by several, or one's own.
import { all, ask, button, cell, complain, copyLink, empty, fileFacts, fill, get, goTo, h, image, inBar, labelField, link, number, onKeys, percent, press, quiet, retry, standing, suggest, sure, tool, visit, walkable, way, words } from "./dom.js";
import { setOf } from "./browse.js";
import { give, onLabels } from "./journal.js";

const rowsOf = (some) => new Set(some.map((one) => one.row));
const tile = (one, label, others) => cell(one, { score: one.score, right: label && one.label ? one.label === label : undefined, both: others?.has(one.row) });

// How many of those with a label have this one.
function agreeing(some, label) {
  const told = some.filter((one) => label && one.label);
  return told.length ? `${told.filter((one) => one.label === label).length} of ${told.length} with a label agree` : "";
}

// The nearest of a picture in one of two runs: first, or second.
export function strip(name, two, side) {
  const some = two[side], others = rowsOf(two[side === "first" ? "second" : "first"]), shared = some.filter((one) => others.has(one.row)).length;
  return h("div.stack", { group: name }, inBar(h("h2", name), quiet([agreeing(some, two.picture.label), `${shared} of ${some.length} in both`].filter(Boolean).join(", "))),
    h("div.few.strip", some.map((one) => tile(one, two.picture.label, others))));
}

function hits(results, about, { near = [], far = [], upload, label, others } = {}) {
  const to = (like, unlike) => goTo("search", { like: like.join(","), unlike: unlike.join(","), upload });
  const more = (row) => to([...near, row], far), less = (row) => to(near, [...far, row]);
  const found = results.map((one) => h("li", tile(one, label, others),
    h("div.small-bar", [["More", "+", more], ["Less", "-", less]].map(([word, key, act]) => h("button", { tabIndex: -1, title: `${word} like this (${key})`, label: `${word} like ${one.id}`, onclick: () => act(one.row) }, word)))));
  const list = walkable(h("ul.few", { label: "Most similar first; + and - search by more, or less like it" }, found));
  onKeys(list, (key, { target }) => {
    if (key !== "+" && key !== "-") return false;
    (key === "+" ? more : less)(Number(target.dataset.row));
    return true;
  });
  if (about.labelled) suggest(all(".cell", list));
  return list;
}

function facts(one, file) {
  const known = fileFacts({ ...file, path: one.path });
  const entry = (term, value) => (value ? [h("dt", term), h("dd", value)] : []);
  return h("dl", entry("File", known.name), entry("Folder", known.folder), entry("Id", one.id === one.path ? "" : one.id),
    entry("Label", one.label && [h("a", { href: link("", { label: one.label }) }, one.label), one.hand ? " (by you)" : " (of the folder)"]),
    entry("Suggested", sure(one) && [h("a", { href: link("", { label: one.guess, by: "suggested" }) }, one.guess), ` (${percent(one.confidence)})`]),
    entry("Pixels", known.pixels), entry("Size", known.bytes), entry("Date", known.date), entry("Problem", file?.problem));
}

// The picture is there at once; its neighbours, suggestion and file come when they can.
export async function picture({ row, id, parameters, keep, about, again }) {
  if (!id && !Number.isInteger(row)) throw new Error("No picture of the collection has this number.");
  const tell = standing(), set = setOf(parameters);
  let one = await (id ? get("api/row", { id: decodeURIComponent(id) }) : ask(`api/pictures/${row}`)), file = null;
  row = one.row;
  // By its id it can be cited, unless that is not all UTF-8: others may read the same.
  if (!one.id.includes("\ufffd")) tell(`#/p/${one.id.split("/").map(encodeURIComponent).join("/")}${set && `?${set}`}`);
  const choose = (label) => give([row], label).catch(complain);
  const input = labelField("Label by hand", choose, { size: 14 });
  const found = h("div", { "aria-busy": "true" }, h("div.few", h("div.cell"))), known = h("div", facts(one, file));
  const shown = image(row, { class: "large", alt: words(one) }, "full");
  const zoom = () => { const on = stage.classList.toggle("zoomed"); press(zooming, on); };
  const step = (to, text, key) => button(text, key, () => { if (file?.[to] >= 0) visit(file[to], set); }, { disabled: true });
  const before = step("before", "Previous", "k"), after = step("after", "Next", "j"), place = quiet(), zooming = button("Zoom", "z", zoom, { pressed: false });
  const stage = h("div.stage", { onclick: zoom }, shown);
  const forms = h("div.bar"), agree = h("strong", { role: "status" }), other = h("div");
  const draw = () => {
    fill(known, facts(one, file));
    fill(forms, input, h("button", input.given, "Set label"),
      one.hand && h("button", () => choose(null), "Remove label"),
      sure(one) && h("button", () => choose(one.guess), `Confirm “${one.guess}”`));
  };
  const read = async () => {
    one = about.labelled || one.hand ? (await get("api/votes", { rows: row })).pictures[0] : await ask(`api/pictures/${row}`);
    draw();
  };
  draw();
  const content = [h("div.one",
    h("section.subject", { label: "The picture" }, h("h1.file", one.id), stage,
      inBar(before, after, zooming, copyLink(), place), known, forms),
    h("section", { label: "Similar pictures" },
      inBar(h("h2", "Similar pictures", about.beside && ` in ${about.name}`), agree, quiet({ title: "Cosine similarity" }, "1 = identical")),
      found, other))];
  const load = () => Promise.all([ask(`api/neighbours/${row}?count=${about.beside ? 12 : 48}`), about.beside && ask(`api/compare/${row}`).catch((error) => error)]).then(([{ results }, two]) => {
    const focused = found.querySelector(".cell:focus")?.dataset.row;
    agree.textContent = agreeing(results, one.label);
    fill(found, results.length ? hits(results, about, { near: [row], label: one.label, others: two.second && rowsOf(two.second) }) : h("p.quiet", "No other pictures in this collection."));
    fill(other, two && (two.second ? walkable(strip(about.beside, two, "second")) : quiet(two.message)));
    found.querySelector(`[data-row="${focused}"]`)?.focus();
  });
  const filled = load().catch((error) => {
    fill(found, h("p", error.message), retry(again));
  }).then(() => found.removeAttribute("aria-busy"));
  filled.then(() => ask(`api/facts/${row}?${set}`)).then((given) => {
    file = given;
    before.disabled = file.before < 0;
    after.disabled = file.after < 0;
    if (file.place >= 0) place.textContent = `${number(file.place + 1)} of ${number(file.total)}`;
    draw();
    if (about.labelled) return read();
  // The picture and its neighbours are there.
  }).catch(() => {});
  onLabels(keep, () => read().then(load).catch(complain));
  // Mostly they are there by then.
  await Promise.race([filled, new Promise((go) => { setTimeout(go, 150); })]);
  return content;
}

export async function search({ parameters, about }) {
  const numbers = (name) => (parameters[name] ?? "").split(",").filter(Boolean).map(Number);
  const near = numbers("like"), far = numbers("unlike"), upload = parameters.upload ?? undefined;
  const asked = { like: near.join(","), unlike: far.join(",") };
  if (upload) asked.upload = upload;
  if (!near.length && !upload) {
    return [empty("Search", "Open a picture and press “More” below another to search by both. Or drop, paste or choose a picture of your own.",
      way("#/", "All pictures"))];
  }
  const found = await get("api/search", { ...asked, count: 60 });
  const without = (rows, row) => rows.filter((one) => one !== row);
  const figure = (row, unlike) => h("figure", { class: unlike ? "unlike" : "" },
    h("a", { href: link(`picture/${row}`) }, image(row, { alt: `${unlike ? "less" : "more"} like picture ${row}` })),
    h("figcaption", unlike ? "not like" : "similar to", tool("×", "Remove from search", null, () => goTo("search", { like: without(near, unlike ? -1 : row).join(","), unlike: without(far, unlike ? row : -1).join(","), upload }))));
  const many = near.length + Boolean(upload);
  return [h("h1", `Similar to ${upload && many === 1 ? "your picture" : many === 1 ? "this picture" : `${many} pictures`}${far.length ? `, unlike ${far.length}` : ""}`),
    h("div.asked", { group: "The query" },
      upload && h("figure", h("img", { src: `api/uploads/${encodeURIComponent(upload)}`, alt: "your picture" }), h("figcaption", "your picture")),
      near.slice(0, 8).map((row) => figure(row, false)), near.length > 8 && h("p.quiet", `and ${number(near.length - 8)} more`), far.map((row) => figure(row, true))),
    found.results.length ? hits(found.results, about, { near, far, upload }) : h("p.quiet", "No other pictures in this collection.")];
}
