// The views, chosen by the address after "#": every state has one, so that Back works and a link can be kept.
import { ask, empty, h, link, say, servedSince, standing } from "./dom.js";
import { Grid } from "./grid.js";
import { picture, search } from "./look.js";
import { duplicates, outliers } from "./clean.js";
import { labelling } from "./label.js";
import { map } from "./map.js";

const view = document.getElementById("view"), busy = document.getElementById("busy");
let about; // the collection
let leave = () => {}; // what the present view holds on to
let turn = 0; // a view that comes late is not shown
let steps = 0; // of this tab within the page

async function browse(parameters, keep) {
  const tell = standing();
  const filter = { label: parameters.get("label") ?? "", tag: parameters.get("tag") ?? "", where: parameters.get("where") ?? "" };
  const at = Math.max(0, Math.floor(Number(parameters.get("at")) || 0));
  const listing = (start, count) => ask(`api/pictures?${new URLSearchParams({ start, count, ...filter })}`);
  const first = await listing(0, Grid.page);
  const choice = (name, values, all) => h("label", {}, `${name} `, h("select", {
    onchange: (event) => { location.hash = link("", { ...filter, [name]: event.target.value }); } },
  h("option", { value: "" }, all), ...values.map((value) => h("option", { value, selected: value === filter[name] }, value))));
  const bar = h("div", { class: "bar browse" },
    h("h1", {}, `${first.total.toLocaleString("en")} pictures`),
    h("span", { class: "room" }),
    about.labels.length ? choice("label", about.labels, "any") : null,
    about.tags.length ? choice("tag", about.tags, "any") : null,
    h("label", {}, "name ", h("input", { type: "search", value: filter.where, placeholder: "2024/*.jpg", size: 14,
      onchange: (event) => { location.hash = link("", { ...filter, where: event.target.value.trim() }); } })));
  if (!first.total) {
    return [bar, empty("No picture matches", "In names, * stands for any text and ? for one letter: *beach*.", h("a", { class: "button", href: "#/" }, "All pictures"))];
  }
  const grid = new Grid(first.total, async (start, count) => (await listing(start, count)).pictures, {
    first: first.pictures, at, row: history.state?.row, moved: (place) => tell(link("", { ...filter, at: place || "" })) });
  keep(() => grid.close());
  return [bar, grid.host];
}

// What takes long says so; the answer is kept by the server.
function patience(name) {
  const many = about.pictures.toLocaleString("en"), long = about.pictures > 150_000 ? " This takes minutes the first time; other views work meanwhile." : "";
  if (name === "duplicates" || name === "outliers") return `Comparing ${many} pictures with one another …${long}`;
  if (name === "label") return "Choosing what to label first …";
  return "One moment …";
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
  const keep = (end) => (mine === turn ? held.push(end) : end());
  const slow = setTimeout(() => { if (mine === turn) busy.hidden = false; }, 150);
  const wait = setTimeout(() => { if (mine === turn) view.replaceChildren(h("p", { class: "quiet" }, patience(name))); }, 500);
  const again = async () => { about = await ask("api/collection"); await route(); };
  try {
    const views = {
      "": () => browse(parameters, keep), picture: () => picture(Number(row), about, again), search: () => search(parameters),
      duplicates: () => duplicates(parameters, keep, about), outliers: () => outliers(keep, about),
      map: () => map(parameters, keep, about), label: () => labelling(parameters, keep, about),
    };
    const content = await (views[name] ?? (() => { throw new Error("There is no such view."); }))();
    if (mine !== turn) return;
    view.replaceChildren(...content.filter(Boolean));
    view.scrollTop = history.state?.top ?? 0;
    const title = view.querySelector("h1")?.textContent ?? "";
    document.title = `${title}${title && " · "}${about.name} · instdisc`;
    if ([document.body, view, null].includes(document.activeElement)) {
      (view.querySelector(`.few .cell[data-row="${history.state?.row}"]`) ?? view).focus({ preventScroll: true });
    }
  } catch (error) {
    if (mine !== turn) return;
    view.replaceChildren(empty("That did not work", error.message,
      h("button", { type: "button", class: "main", onclick: () => again().catch((one) => say(one.message, true)) }, "Try again"), h("a", { class: "button", href: "#/" }, "All pictures")));
  } finally {
    clearTimeout(wait);
    clearTimeout(slow);
    if (mine === turn) busy.hidden = true;
  }
}

async function upload(file) {
  if (!file) return;
  if (file.size > 20e6) { say("The file is larger than 20 MB.", true); return; }
  say("Looking at your picture …");
  busy.hidden = false;
  try {
    const { id } = await ask("api/uploads", { method: "POST", headers: { "content-type": "application/octet-stream" }, body: file });
    say("");
    location.hash = link("search", { upload: id });
  } catch (error) { say(error.message, true); }
  busy.hidden = true;
}

function listen() {
  const file = document.getElementById("file"), drop = document.getElementById("drop");
  const holds = (event) => [...event.dataTransfer?.types ?? []].includes("Files");
  document.getElementById("ask").addEventListener("click", () => file.click());
  file.addEventListener("change", () => { upload(file.files[0]); file.value = ""; });
  document.addEventListener("paste", (event) => {
    const given = [...event.clipboardData.files][0];
    if (given) upload(given);
    else if (!event.target.matches("input")) say("There is no picture in the clipboard.", true);
  });
  document.addEventListener("dragover", (event) => { if (holds(event)) { event.preventDefault(); drop.hidden = false; } });
  document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) drop.hidden = true; });
  document.addEventListener("drop", (event) => { event.preventDefault(); drop.hidden = true; upload(event.dataTransfer.files[0]); });
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || location.hash.length <= 2 || event.target.matches("input, select")) return;
    if (steps) history.back();
    else location.hash = "#/"; // a link that was opened by itself: Back would leave the page
  });
  let resting;
  view.addEventListener("scroll", () => {
    clearTimeout(resting);
    const tell = standing();
    resting = setTimeout(() => tell(location.href, { top: view.scrollTop }), 150);
  }, { passive: true });
  document.querySelector(".skip").addEventListener("click", (event) => { event.preventDefault(); view.focus(); });
  addEventListener("hashchange", () => { steps += 1; say(""); route(); });
}

async function start() {
  for (let pause = 40; ; pause = Math.min(400, 1.3 * pause)) {
    const state = await ask("api/status");
    document.getElementById("name").textContent = state.name;
    document.title = `${state.name} · instdisc`;
    if (state.state === "open" || state.state === "listed") break;
    if (state.state === "failed") throw new Error(state.error);
    await new Promise((go) => { setTimeout(go, pause); });
  }
  about = await ask("api/collection");
  servedSince(about.start);
  listen();
  await route();
}

start().catch((error) => {
  busy.hidden = true;
  view.replaceChildren(empty("The collection can't be shown", error.message,
    h("button", { type: "button", class: "main", onclick: () => location.reload() }, "Try again")));
});
