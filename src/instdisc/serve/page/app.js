// The views, chosen by the address after "#": every state has one, so that Back works and a link can be kept.
import { ask, cell, h, image, link, say, servedSince, walkable } from "./dom.js";
import { Grid } from "./grid.js";
import { duplicates, outliers } from "./clean.js";
import { labelling } from "./label.js";
import { map } from "./map.js";

const view = document.getElementById("view");
let about; // the collection
let leave = () => {}; // what the present view holds on to
let turn = 0; // a view that comes late is not shown

export const show = (...children) => view.replaceChildren(...children);

async function browse(parameters, keep) {
  const filter = { label: parameters.get("label") ?? "", tag: parameters.get("tag") ?? "", where: parameters.get("where") ?? "" };
  const listing = (start, count) => ask(`api/pictures?${new URLSearchParams({ start, count, ...filter })}`);
  const first = await listing(0, 1);
  const choice = (name, values, all) => h("label", {}, `${name} `, h("select", {
    onchange: (event) => { location.hash = link("", { ...filter, [name]: event.target.value }); } },
  h("option", { value: "" }, all), ...values.map((value) => h("option", { value, selected: value === filter[name] }, value))));
  const bar = h("div", { class: "bar" },
    h("h1", {}, `${first.total.toLocaleString("en")} pictures`),
    h("span", { class: "room" }),
    about.labels.length ? choice("label", about.labels, "any") : null,
    about.tags.length ? choice("tag", about.tags, "any") : null,
    h("label", {}, "name ", h("input", { type: "search", value: filter.where, placeholder: "2024/*.jpg", size: 14,
      onchange: (event) => { location.hash = link("", { ...filter, where: event.target.value.trim() }); } })));
  if (!first.total) return [bar, h("p", { class: "quiet" }, "No picture matches. In names, * stands for any text: *beach*.")];
  const grid = new Grid(first.total, async (start, count) => (await listing(start, count)).pictures);
  keep(() => grid.close());
  return [bar, grid.host];
}

function hits(results, { near = [], far = [], upload } = {}) {
  const to = (like, unlike) => { location.hash = link("search", { like: like.join(","), unlike: unlike.join(","), upload }); };
  const list = results.map((one) => h("li", {}, cell(one, { score: one.score }),
    h("div", { class: "small-bar" },
      h("button", { type: "button", title: "More like this one too", "aria-label": `More like ${one.id}`, onclick: () => to([...near, one.row], far) }, "+"),
      near.length || upload
        ? h("button", { type: "button", title: "Less like this one", "aria-label": `Less like ${one.id}`, onclick: () => to(near, [...far, one.row]) }, "−")
        : null)));
  return walkable(h("ul", { class: "few", "aria-label": "Most alike first" }, ...list));
}

async function picture(row) {
  const [one, found] = await Promise.all([ask(`api/pictures/${row}`), ask(`api/neighbours/${row}?count=48`)]);
  const choose = async (label) => {
    try {
      await ask("api/labels", { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify({ rows: [row], label }) });
      about = await ask("api/collection");
      say(label === null ? "The label was taken away." : `Labelled ${label}.`);
      route();
    } catch (error) { say(error.message, true); }
  };
  const input = h("input", { list: "names", placeholder: "label by hand", size: 14, "aria-label": "Label by hand", maxLength: 200,
    onkeydown: (event) => { if (event.key === "Enter" && input.value.trim()) choose(input.value.trim()); } });
  return [h("div", { class: "one" },
    h("section", { "aria-label": "The picture" },
      image(row, { class: "large", alt: one.id }, "full"),
      h("dl", {}, h("dt", {}, "id"), h("dd", {}, one.id), h("dt", {}, "path"), h("dd", {}, one.path),
        ...(one.label ? [h("dt", {}, "label"), h("dd", {}, one.label + (one.hand ? " (by hand)" : ""))] : [])),
      h("div", { class: "bar" }, input, h("datalist", { id: "names" }, ...about.labels.map((value) => h("option", { value }))),
        h("button", { type: "button", onclick: () => input.value.trim() && choose(input.value.trim()) }, "Label"),
        one.hand ? h("button", { type: "button", onclick: () => choose(null) }, "Take it away") : null)),
    h("section", { "aria-label": "Most like it" },
      h("h1", {}, "Most like it"),
      h("p", { class: "quiet" }, "The number is the cosine: 1 is the same. + searches for both."),
      hits(found.results, { near: [row] })))];
}

async function search(parameters) {
  const numbers = (name) => (parameters.get(name) ?? "").split(",").filter(Boolean).map(Number);
  const near = numbers("like"), far = numbers("unlike"), upload = parameters.get("upload") ?? undefined;
  const asked = { like: near.join(","), unlike: far.join(",") };
  if (upload) asked.upload = upload;
  if (!near.length && !upload) { location.hash = "#/"; return []; }
  const found = await ask(`api/search?${new URLSearchParams({ ...asked, count: 60 })}`);
  const without = (rows, row) => rows.filter((one) => one !== row);
  const figure = (row, unlike) => h("figure", { class: unlike ? "unlike" : "" },
    h("a", { href: link(`picture/${row}`) }, image(row, { alt: unlike ? "less like this" : "like this" })),
    h("figcaption", {}, unlike ? "less" : "like", h("button", { type: "button", "aria-label": "Take it out of the query",
      onclick: () => { location.hash = link("search", { like: without(near, unlike ? -1 : row).join(","), unlike: without(far, unlike ? row : -1).join(","), upload }); } }, "×")));
  return [h("h1", {}, "Search"),
    h("div", { class: "asked", role: "group", "aria-label": "The query" },
      upload ? h("figure", {}, h("img", { src: `api/uploads/${encodeURIComponent(upload)}`, alt: "your picture" }), h("figcaption", {}, "your picture")) : null,
      ...near.map((row) => figure(row, false)), ...far.map((row) => figure(row, true))),
    hits(found.results, { near, far, upload })];
}

async function route() {
  const mine = ++turn;
  const [path, query = ""] = location.hash.replace(/^#\/?/, "").split("?");
  const [name, row] = path.split("/");
  const parameters = new URLSearchParams(query);
  for (const one of document.querySelectorAll("nav a")) {
    if (one.dataset.view === (name || "browse")) one.setAttribute("aria-current", "page");
    else one.removeAttribute("aria-current");
  }
  leave();
  const held = [];
  leave = () => held.splice(0).forEach((end) => end());
  const keep = (end) => held.push(end);
  const wait = setTimeout(() => { if (mine === turn) show(h("p", { class: "quiet" }, "One moment …")); }, 300);
  try {
    const views = {
      "": () => browse(parameters, keep), picture: () => picture(Number(row)), search: () => search(parameters),
      duplicates: () => duplicates(parameters, keep, about), outliers: () => outliers(), map: () => map(parameters, keep, about), label: () => labelling(parameters, keep, about),
    };
    const content = await (views[name] ?? (() => { throw new Error("There is no such view."); }))();
    if (mine !== turn) return;
    show(...content);
    view.scrollTop = 0;
  } catch (error) {
    if (mine === turn) show(h("h1", {}, "That did not work"), h("p", {}, error.message), h("p", {}, h("a", { href: "#/" }, "Back to all pictures")));
  } finally {
    clearTimeout(wait);
  }
}

async function upload(file) {
  if (!file) return;
  if (file.size > 20e6) { say("The file is larger than 20 MB.", true); return; }
  say("Looking at your picture …");
  try {
    const { id } = await ask("api/uploads", { method: "POST", headers: { "content-type": "application/octet-stream" }, body: file });
    say("");
    location.hash = link("search", { upload: id });
  } catch (error) { say(error.message, true); }
}

function listen() {
  const file = document.getElementById("file"), drop = document.getElementById("drop");
  document.getElementById("ask").addEventListener("click", () => file.click());
  file.addEventListener("change", () => { upload(file.files[0]); file.value = ""; });
  document.addEventListener("paste", (event) => upload([...event.clipboardData.files][0]));
  document.addEventListener("dragover", (event) => { event.preventDefault(); drop.hidden = false; });
  document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) drop.hidden = true; });
  document.addEventListener("drop", (event) => { event.preventDefault(); drop.hidden = true; upload(event.dataTransfer.files[0]); });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && location.hash.length > 2 && !event.target.matches("input, select")) history.back();
  });
  addEventListener("hashchange", route);
}

async function start() {
  for (;;) {
    const state = await ask("api/status");
    document.getElementById("name").textContent = state.name;
    document.title = `${state.name} · instdisc`;
    if (state.state === "open") break;
    if (state.state === "failed") throw new Error(state.error);
    await new Promise((go) => { setTimeout(go, 200); });
  }
  about = await ask("api/collection");
  servedSince(about.start);
  listen();
  await route();
}

start().catch((error) => show(h("h1", {}, "The collection can't be shown"), h("p", {}, error.message)));
