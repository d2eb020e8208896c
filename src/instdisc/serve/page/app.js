// The views, chosen by the address after "#": every state has one.
import { all, ask, byId, complain, declared, empty, fill, goTo, h, number, on, press, retry, say, servedSince, standing, underWay, way, withControl } from "./dom.js";
import { browse, tileSize } from "./browse.js";
import { compare } from "./compare.js";
import { dozen } from "./dozen.js";
import { undo } from "./journal.js";
import { keepTaste, own, taste } from "./memory.js";
import { picture, search } from "./look.js";
import { open } from "./selection.js";
import * as tray from "./tray.js";
import { overview } from "./overview.js";
import { review } from "./review.js";
import { keySheet } from "./keys.js";
import { labelling } from "./label.js";
import { map } from "./map.js";

const view = byId("view"), busy = byId("busy");
// The collection.
let about;
// What the present view holds on to.
let leave = () => {};
// A view that comes late is not shown.
let turn = 0;
// Of this tab within the page: how many times Back stays in it.
let depth = 0;

// Views of their own before.
const FORMER = { duplicates: "copies", "look-alikes": "look-alikes", outliers: "outliers" };
const here = () => location.hash.replace(/^#\/?/, "").split("?");

async function route() {
  const mine = ++turn;
  const [path, query = ""] = here();
  let [name, part] = path.split("/");
  if (FORMER[name]) [name, part] = ["review", FORMER[name]];
  const parameters = Object.fromEntries(new URLSearchParams(query)), id = name === "p" && path.slice(2);
  if (name === "set") [name, parameters.set] = ["", part];
  for (const one of all("nav a")) {
    one.ariaCurrent = one.dataset.view === ({ "": "browse", dozen: "label" }[name] ?? name) ? "page" : null;
  }
  leave();
  const held = [];
  leave = () => held.splice(0).forEach((end) => end());
  const keep = (end) => (mine === turn ? held.push(end) : end());
  const later = (act, pause) => setTimeout(() => { if (mine === turn) act(); }, pause);
  const slow = later(() => { busy.hidden = false; }, 150);
  const wait = later(() => fill(view, name === "review" ? underWay("api/work", `Comparing ${number(about.pictures)} pictures`, true) : h("p.quiet", "One moment …")), 500);
  const again = async () => { await learn(); await route(); };
  try {
    const shown = { "": browse, picture, p: picture, search, review, compare, overview, map, label: labelling, dozen }[name];
    if (!shown) throw Object.assign(new Error("Choose a view above."), { final: true });
    const content = await shown({ row: Number(part), id, part, parameters, keep, about, again });
    if (mine !== turn) return;
    fill(view, content);
    view.scrollTop = history.state?.top ?? 0;
    const title = view.querySelector("h1")?.textContent ?? "";
    document.title = `${title}${title && " · "}${about.name} · instdisc`;
    if ([document.body, view, null].includes(document.activeElement)) {
      (view.querySelector(`.few .cell[data-row="${history.state?.row}"]`) ?? view).focus({ preventScroll: true });
    }
  } catch (error) {
    if (mine !== turn) return;
    if (error.lost) later(() => again().catch(route), 2000);
    fill(view, empty(error.final ? "Page not found" : "Could not load this view", error.message,
      !error.final && retry(again), way("#/", "All pictures")));
  } finally {
    clearTimeout(wait);
    clearTimeout(slow);
    if (mine === turn) busy.hidden = true;
  }
}

// What there is.
async function learn() {
  Object.assign(about, await ask("api/collection"));
  document.querySelector("[data-view=compare]").hidden = !about.beside;
  fill(byId("known"), about.labels.map((value) => h("option", { value })));
}

async function upload(file, more = 0) {
  if (!file) return;
  if (file.size > 20e6) { say("The file is larger than 20 MB.", true); return; }
  say("Searching …");
  busy.hidden = false;
  const sent = ask("api/uploads", { method: "POST", headers: { "content-type": "application/octet-stream" }, body: file });
  await sent.then(({ id }) => {
    goTo("search", { upload: id });
    // After the way there.
    if (more) setTimeout(() => say("One picture at a time: this is the first of them."), 200);
  }, complain);
  busy.hidden = true;
}

// Shortcuts of one letter can be off: speech and shaking hands press them unasked.
function shortcuts() {
  const draw = () => press(byId("keys"), !taste("off"));
  on(byId("keys"), "click", () => { keepTaste("off", !taste("off")); draw(); });
  on(window, "keydown", (event) => {
    if (taste("off") && /^\S$/.test(event.key) && !withControl(event) && !event.target.matches("input, select")) event.stopPropagation();
  }, true);
  draw();
}

function listen() {
  shortcuts();
  on(byId("help"), "click", keySheet);
  const file = byId("file"), drop = byId("drop"), holds = (event) => event.dataTransfer?.types.includes("Files");
  on(byId("ask"), "click", () => file.click());
  on(file, "change", () => { upload(file.files[0]); file.value = ""; });
  on(document, "paste", (event) => {
    const given = [...event.clipboardData.files][0];
    if (given) upload(given);
    else if (!event.target.matches("input")) say("There is no picture in the clipboard.", true);
  });
  on(document, "dragover", (event) => { if (holds(event)) { event.preventDefault(); drop.hidden = false; } });
  on(document, "dragleave", (event) => { if (!event.relatedTarget) drop.hidden = true; });
  on(document, "drop", (event) => { event.preventDefault(); drop.hidden = true; upload(event.dataTransfer.files[0], event.dataTransfer.files.length - 1); });
  // After the view itself.
  on(window, "keydown", (event) => {
    if (event.defaultPrevented || event.target.matches("input, select")) return;
    const { key, altKey, shiftKey } = event, control = withControl(event) && !altKey, plain = !control && !altKey;
    const element = plain && !(/^( |Enter)$/.test(key) && event.target.matches("a, button:not(.dozen .cell)")) && declared(key);
    if (element) (element.matches("input") ? element.focus() : element.click());
    else if ((key === "u" && plain) || (key === "z" && control && !shiftKey)) undo();
    else if (!plain || !(tray.key(event) || (key === "Escape" && up()))) return;
    event.preventDefault();
  });
  let learning;
  on(window, "labels", ({ detail }) => {
    about.labelled ||= !detail.review;
    clearTimeout(learning);
    learning = setTimeout(() => learn().then(() => detail.pictures && route()).catch(() => {}), detail.pictures ? 0 : 300);
  });
  let resting;
  on(view, "scroll", () => {
    clearTimeout(resting);
    const tell = standing();
    resting = setTimeout(() => tell(location.href, { top: view.scrollTop }), 150);
  }, { passive: true });
  on(document.querySelector(".skip"), "click", (event) => { event.preventDefault(); view.focus(); });
  on(window, "hashchange", () => { step(); say(""); route(); });
}

// Each entry of the history knows how deep it is, so that Escape never leads out of the page.
function step() {
  depth = history.state?.depth ?? depth + 1;
  history.replaceState({ ...history.state, depth }, "");
}

function up() {
  // The grid is the top.
  if (!here()[0]) return false;
  if (depth > 0) history.back();
  // A link that was opened by itself.
  else location.hash = "#/";
  return true;
}

async function start() {
  for (let pause = 40; ; pause = Math.min(400, 1.3 * pause)) {
    const state = await ask("api/status");
    byId("name").textContent = state.name;
    document.title = `${state.name} · instdisc`;
    if (state.state === "open" || state.state === "listed") break;
    if (state.state === "failed") throw new Error(state.error);
    await new Promise((go) => { setTimeout(go, pause); });
  }
  about = {};
  await learn();
  servedSince(about.start);
  depth = history.state?.depth ?? 0;
  history.replaceState({ ...history.state, depth }, "");
  tileSize();
  // The first visit begins with the overview.
  const seen = own(`${about.name} seen`);
  if (!location.hash && !taste(seen)) history.replaceState(history.state, "", "#/overview");
  keepTaste(seen, true);
  open(about.name);
  tray.begin();
  listen();
  await route();
}

start().catch((error) => {
  busy.hidden = true;
  fill(view, empty("The collection can't be shown", error.message,
    retry(async () => location.reload())));
});
