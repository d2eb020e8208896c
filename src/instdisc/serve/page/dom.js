// Elements and requests. Text is always set as text: nothing from the collection becomes markup.
import { selection } from "./selection.js";

// Pictures that suggestions are asked for at once.
const ASKED = 100;

const SHORT = { label: "aria-label", current: "aria-current", keys: "aria-keyshortcuts", pressed: "aria-pressed", mute: "aria-hidden" };

// h("div.few", { title: "..." }, ...children): the attributes may be left out, or be what a click does.
export function h(name, ...children) {
  const [tag, ...classes] = name.split("."), element = document.createElement(tag);
  if (tag === "button") element.type = tag;
  element.classList.add(...classes);
  const given = typeof children[0] === "function" ? { onclick: children.shift() } : children[0]?.constructor === Object ? children.shift() : {};
  for (const [key, value] of Object.entries(given)) {
    if (key === "pressed") press(element, value);
    else if (key === "group") { element.role = key; element.ariaLabel = value; }
    else if ((value ?? false) === false) continue;
    else if (key.startsWith("on")) on(element, key.slice(2), value);
    else if (key === "class") element.className = value;
    else if (key in element && !SHORT[key] && typeof value !== "string") element[key] = value;
    else element.setAttribute(SHORT[key] ?? key, value === true ? "" : value);
  }
  element.append(...there(children));
  return element;
}

// Lists are taken apart, and what is null or false is left out.
const there = (children) => children.flat(Infinity).filter((child) => child || child === "");
export const fill = (element, ...children) => element.replaceChildren(...there(children));
export const all = (selector, within = document) => [...within.querySelectorAll(selector)];

export const press = (element, on) => element.setAttribute("aria-pressed", String(on));
export const byId = (id) => document.getElementById(id);
const message = byId("message");
let fading;

// The answer ends it.
export function on(target, name, act, options) {
  target.addEventListener(name, act, options);
  return () => target.removeEventListener(name, act);
}
export const clamp = (value, most, least = 0) => Math.max(least, Math.min(most, value));

// A word on what happened. action: {text, act} of a button beside it.
export function say(text, bad = false, action) {
  clearTimeout(fading);
  fill(message, h("span", text), action && text && button(action.text, "u", () => { say(""); action.act(); }));
  message.className = bad ? "bad" : "";
  message.hidden = !text;
  if (text && !bad) fading = setTimeout(() => { message.hidden = true; }, 8000);
}

export const complain = (error) => say(error.message, true);
export const quiet = (...text) => h("span.quiet", ...text);
export const way = (href, text, ...looks) => h(["a.button", ...looks].join("."), { href }, text);
// One of a few ways to look at what there is.
export const facet = (href, current, text, amount) => h("a.facet", { href, current: current && "true" }, text, amount !== null && quiet(` ${number(amount)}`));
export const room = () => h("span.room");
export const inBar = (...parts) => h("div.bar", ...parts);
// A button that rests while its work is done.
export const working = (text, act, more) => button(text, null, async ({ currentTarget: element }) => {
  element.disabled = true;
  await Promise.resolve().then(act).catch(complain);
  element.disabled = false;
}, more);
// A field for a label: Enter acts with what is written, Escape leaves it.
export function labelField(name, act, more = {}) {
  const given = () => (element.value.trim() ? act(element.value.trim()) : element.focus());
  const element = h("input", { list: "known", placeholder: "Type a label", label: name, maxLength: 200, size: 16,
    onkeydown: (event) => {
      if (event.key === "Enter") given();
      if (event.key === "Escape") element.blur();
      event.stopPropagation();
    }, ...more });
  return Object.assign(element, { given });
}
export const retry = (again) => h("button.main", () => again().catch(complain), "Try again");
export const button = (text, keys, act, more) => h("button", { keys, onclick: act, ...more }, text);
export const tool = (text, title, keys, act) => button(text, keys, act, { title, label: title });
export const zooming = (by, fit) => [tool("−", "Zoom out", "-", () => by(1 / 1.6)), tool("+", "Zoom in", "+ =", () => by(1.6)), tool("⤢", "Fit", "0", fit)];
export const hint = () => h("p.keys", h("kbd", "?"), " lists the keys of this view");
// The element on the page that declares this key, if it may be used now.
export const declared = (key) => all("[aria-keyshortcuts]").find((one) => one.ariaKeyShortcuts.split(" ").includes(key === " " ? "Space" : key) && !one.disabled && one.checkVisibility());
// A dialog to read, or a question: its button calls act, and shows the error where that fails.
export function modal(title, content, text, act) {
  const told = h("p.lost", { role: "alert" }), close = () => dialog.close(), last = { class: "main", autofocus: true };
  const dialog = h("dialog", { label: title, onkeydown: (event) => event.stopPropagation(), onclose: () => dialog.remove() }, h("h2", title), content, told,
    inBar(room(), button(act ? "Cancel" : "Close", null, close, act ? {} : last), act && working(text, () => act().then(close, (error) => { told.textContent = error.message; }), last)));
  document.body.append(dialog);
  dialog.showModal();
  dialog.querySelector("input")?.focus();
  return dialog;
}
// The address of the view, to give to others.
export const copyLink = () => button("Copy link", null, async () => {
  const link = location.href, here = /^(localhost|127\..*|\[::1])$/.test(location.hostname) ? "It opens on this computer only." : "";
  try {
    await navigator.clipboard.writeText(link);
    say(`Link copied. ${here}`);
  } catch {
    modal("Copy this link", [h("input", { value: link, label: "Link", readOnly: true, onfocus: ({ target }) => target.select() }), quiet(here)]);
  }
});
export const number = (given) => given.toLocaleString("en");
export const percent = (share) => `${Math.floor(100 * share)} %`;
export const withControl = (event) => event.ctrlKey || event.metaKey;
const size = (bytes) => (bytes < 1e6 ? `${Math.max(1, Math.round(bytes / 1e3))} kB` : `${(bytes / 1e6).toFixed(1)} MB`);
// What is known of a file: pixels, bytes, date, name and folder; "" for what is not.
export function fileFacts({ path, width, height, format, size: bytes, modified }) {
  const at = Math.max(path.lastIndexOf("/"), path.lastIndexOf("\\"));
  return { pixels: width ? `${number(width)} × ${number(height)} ${format}` : "", bytes: bytes ? size(bytes) : "",
    date: modified ? new Date(1000 * modified).toLocaleString("en-GB", { dateStyle: "medium", timeStyle: "short" }) : "", name: path.slice(at + 1), folder: path.slice(0, Math.max(0, at)) };
}
export const count = (given, one, many = `${one}s`) => `${number(given)} ${given === 1 ? one : many}`;

export async function answered(path, options = {}, turn = 1) {
  let answer;
  try {
    answer = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw Object.assign(new Error("Lost connection to instdisc: is it still running?"), { lost: true });
  }
  if (answer.ok) return answer;
  const later = Number(answer.headers.get("retry-after"));
  // The server says when to come again.
  if (answer.status === 503 && later && turn < 4) {
    await new Promise((go) => setTimeout(go, 1000 * later));
    options.signal?.throwIfAborted();
    return answered(path, options, turn + 1);
  }
  let words = answer.statusText;
  try {
    const detail = (await answer.json()).detail;
    words = typeof detail === "string" ? detail : `Invalid ${detail[0].loc.at(-1)}: ${detail[0].msg}.`;
  } catch { /* no JSON: a refusal in plain words */ }
  throw Object.assign(new Error(words || `The server answered ${answer.status}.`), { status: answer.status });
}

export const ask = async (path, options = {}) => (await answered(path, options)).json();
export const bytes = async (path) => (await answered(path)).arrayBuffer();
export const get = (path, parameters) => ask(`${path}?${new URLSearchParams(parameters)}`);
export const json = (body) => ({ method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body) });
export const post = (path, body) => ask(path, json(body));

export const query = (parameters) => new URLSearchParams(Object.entries(parameters).filter(([, value]) => value !== "" && value != null));

export const link = (view, parameters = {}) => {
  const words = query(parameters), set = !view && words.get("set");
  if (set) {
    view = `set/${set}`;
    words.delete("set");
  }
  return `#/${view}${words.size ? `?${words}` : ""}`;
};

export const goTo = (...place) => { location.hash = link(...place); };

// The address of the present state, without a step for Back.
const stay = (address, more = {}) => history.replaceState({ ...history.state, ...more }, "", address);

// The same for what is told once a hand rests: only while the reader has not gone on.
export function standing() {
  let here = location.href;
  return (address, more) => {
    if (location.href !== here) return;
    stay(address, more);
    here = location.href;
  };
}

// How far the server is with what is waited for. told: is given each answer; ended: the last.
export function underWay(path, words, stop, ended, told = () => {}) {
  const bar = h("progress", { max: "1", value: "0", label: words }), line = h("p.quiet", { role: "status" }, words);
  const look = async () => {
    try {
      const answer = await ask(path), { progress, seconds_left: left, what, then, state } = answer;
      if (!bar.isConnected) return;
      told(answer);
      if (state && state !== "computing") { ended(answer); return; }
      bar.value = progress;
      line.textContent = `${what || words}${left ? `, about ${Math.ceil(left)} s left` : ""}${then ? `; then ${then}` : ""} … Other views work meanwhile.`;
    } catch { /* the next may be answered */ }
    setTimeout(look, 700);
  };
  setTimeout(look, 700);
  return h("div.stack", bar, line, stop && inBar(h("button", () => post(`${path}/stop`).catch(complain), "Stop")));
}

export function save(name, content) {
  const address = URL.createObjectURL(new Blob([content], { type: "text/plain" }));
  h("a", { href: address, download: name }).click();
  // Some browsers begin late.
  setTimeout(() => URL.revokeObjectURL(address), 2000);
}

// A choice that acts when it is made: by the arrow keys once the choice is left, or with Enter.
export function choice(name, options, value, act, told = true) {
  let moving = false;
  const made = () => { moving = false; if (element.value !== value) act(value = element.value); };
  const element = h("select", { label: name, onpointerdown: () => { moving = false; }, onchange: () => { if (!moving) made(); }, onblur: () => { if (moving) made(); },
    onkeydown: (event) => {
      if (event.key === "Enter") { event.preventDefault(); made(); } else if (event.key !== "Tab") moving = true;
    } }, ...options.map(([one, text]) => h("option", { value: one, selected: one === value }, text)));
  return told ? h("label", `${name} `, element) : element;
}

// A browser keeps pictures by their address; `start` tells them from those of an earlier server.
let start = "";
export const servedSince = (given) => { start = given; };
export const pixels = (row, size) => `pictures/${row}?size=${size}&start=${start}`;

// Few pixels shown large should look like pixels.
export const image = (row, attributes = {}, size = "thumb") => h("img", {
  src: pixels(row, size), alt: "", decoding: "async", draggable: "false",
  onload: ({ target }) => target.classList.toggle("small", Math.max(target.naturalWidth, target.naturalHeight) <= 64),
  onerror: ({ target }) => target.replaceWith(h("span.broken", "can't be read")),
  ...attributes,
});

export const sure = (picture) => (picture.guess && !picture.hand && picture.confidence >= 0.5 ? `Suggested: ${picture.guess} (${percent(picture.confidence)})` : "");
export const words = (picture) => [picture.id, picture.label ? `${picture.label}${picture.hand ? ", by you" : ""}` : "", sure(picture)].filter(Boolean).join(", ");

// set: what was looked through, as its address has it.
export function visit(row, set = "") {
  // On the way back its cell has the focus again.
  stay(location.href, { row });
  location.hash = `${link(`picture/${row}`)}${set && `?${set}`}`;
}

// What a tile says below: the suggestion, or the label.
export function caption(element, picture) {
  element.querySelector(".tagged")?.remove();
  const shown = sure(picture), said = words(picture);
  if (shown || picture.label) element.append(h("span", { mute: "true", class: `tagged${shown ? " guessed" : picture.hand ? " given" : ""}` }, shown || picture.label));
  element.title = said;
  element.said = [said, ...element.more].join(", ");
  mark(element);
}

export function mark(element) {
  const chosen = selection.has(Number(element.dataset.row));
  element.classList.toggle("chosen", chosen);
  const picture = element.querySelector("img");
  if (picture) picture.alt = `${element.said}${chosen ? ", selected" : ""}`;
}

// What is suggested for tiles; live(): whether anybody looks still.
export async function suggest(elements, live = () => true) {
  const asked = elements.filter((element) => element.said && !element.guessed);
  for (let start = 0; start < asked.length; start += ASKED) {
    const some = asked.slice(start, start + ASKED);
    let found;
    try { found = (await get("api/votes", { rows: some.map((element) => element.dataset.row) })).pictures; } catch { return; }
    if (!live()) return;
    found.forEach((one, place) => { caption(some[place], one); some[place].guessed = true; });
  }
}

// pick: whether it can be selected; right: whether it has the label of the picture that it is like, if both have one; both: whether two runs have it.
export function cell(picture, { score, right, both, open, pick = true, set, ...more } = {}) {
  const said = words(picture), element = h("button.cell", { "data-row": String(picture.row), title: said, onclick: open ?? (() => visit(picture.row, set)), ...more }, image(picture.row, { alt: said }),
    score !== undefined && h("span", { mute: "true", class: `score ${right ?? ""}` }, score.toFixed(3)), pick && h("span.tick", { mute: "true", title: "Select (x)" }));
  element.more = [score?.toFixed(3), { true: "same label", false: "other label" }[right], both && "in both runs"].filter(Boolean);
  element.classList.toggle("both", Boolean(both));
  if (pick) caption(element, picture);
  else if (picture.label) element.append(h("span.tagged", { mute: "true" }, picture.label));
  return element;
}

export const empty = (title, text, ...actions) => h("div.empty", h("h1", title), h("p", text),
  actions.length && inBar(...actions));

// act(key, event): whether it was meant. The answer ends it.
export function onKeys(element, act) {
  return on(element, "keydown", (event) => { if (!event.target.matches("input, select") && !withControl(event) && !event.altKey && act(event.key, event)) event.preventDefault(); });
}

// Arrow keys walk over a list that is laid out as a grid; the Tab key passes it in one step.
export function walkable(list, one = ".cell") {
  const cells = () => all(one, list), settle = (element) => cells().forEach((other) => { other.tabIndex = other === element ? 0 : -1; });
  on(list, "focusin", (event) => { if (event.target.matches(one)) settle(event.target); });
  onKeys(list, (key) => {
    const them = cells(), here = them.indexOf(document.activeElement), top = (element) => element.getBoundingClientRect().top;
    if (here < 0) return false;
    const columns = them.filter((other) => Math.abs(top(other) - top(them[0])) < 4).length || 1;
    const next = them[here + { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns }[key]];
    next?.focus();
    return next;
  });
  // To be told when it has other elements.
  list.settle = () => settle(cells()[0]);
  list.settle();
  return list;
}

// One deed after another, however quick the fingers.
export function inTurn() {
  let last = Promise.resolve();
  return (work) => {
    const turn = last.then(work);
    last = turn.catch(() => {});
    return turn;
  };
}

// Keys, wherever the focus is.
export const listen = (keep, act) => keep(onKeys(document, act));
