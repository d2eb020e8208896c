// Elements, and the requests behind them. Text is always set as text: nothing from the collection becomes markup.

export function h(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (key === "class") element.className = value;
    else if (key in element && typeof value !== "string") element[key] = value;
    else element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

const message = document.getElementById("message");
let fading;

export function say(text, bad = false) {
  clearTimeout(fading);
  message.textContent = text;
  message.className = bad ? "bad" : "";
  message.hidden = !text;
  if (text && !bad) fading = setTimeout(() => { message.hidden = true; }, 6000);
}

async function answered(path, options, turn = 1) {
  let answer;
  try {
    answer = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server does not answer: is it still running?");
  }
  if (answer.ok) return answer;
  const later = Number(answer.headers.get("retry-after"));
  if (answer.status === 503 && later && turn < 4) { // others are asking for much: the server says when to come again
    await new Promise((go) => setTimeout(go, 1000 * later));
    options.signal?.throwIfAborted();
    return answered(path, options, turn + 1);
  }
  let words = answer.statusText;
  try {
    const detail = (await answer.json()).detail;
    words = typeof detail === "string" ? detail : "This can't be asked in that way.";
  } catch { /* no JSON: a refusal in plain words */ }
  throw new Error(words || `The server answered ${answer.status}.`);
}

export const ask = async (path, options = {}) => (await answered(path, options)).json();
export const bytes = async (path) => (await answered(path, {})).arrayBuffer();
export const post = (path, body) => ask(path, { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body) });

export const link = (view, parameters = {}) => {
  const words = new URLSearchParams(Object.entries(parameters).filter(([, value]) => value !== "" && value != null));
  return `#/${view}${words.size ? `?${words}` : ""}`;
};

// The address of the present state, without a step for Back; what only this browser needs to come back is beside it.
const stay = (address, more = {}) => history.replaceState({ ...history.state, ...more }, "", address);

// The same for what is told once a hand rests: only while the address is still the one that stood there now, or that
// was told since. When the reader goes on it changes at once, though "hashchange" is still to come.
export function standing() {
  let here = location.href;
  return (address, more) => {
    if (location.href !== here) return;
    stay(address, more);
    here = location.href;
  };
}

// Decisions outlive a look at a picture and a reload, but not the tab.
export function recall(key) {
  try { return JSON.parse(sessionStorage.getItem(key)) ?? {}; } catch { return {}; }
}
export function remember(key, value) {
  try { sessionStorage.setItem(key, JSON.stringify(value)); } catch { /* a full store: they last as long as the view */ }
}

export function save(name, lines) {
  const address = URL.createObjectURL(new Blob([lines.map((line) => `${line}\n`).join("")], { type: "text/plain" }));
  h("a", { href: address, download: name }).click();
  URL.revokeObjectURL(address);
}

// A browser keeps pictures by their address; `start` tells them from those of another collection, served here before.
let start = "";
export const servedSince = (given) => { start = given; };
export const pixels = (row, size) => `pictures/${row}?size=${size}&start=${start}`;

// Few pixels shown large should look like pixels and not like a blurred photograph.
export const image = (row, attributes = {}, size = "thumb") => h("img", {
  src: pixels(row, size), alt: "", decoding: "async", draggable: false,
  onload: (event) => event.target.classList.toggle("small", Math.max(event.target.naturalWidth, event.target.naturalHeight) <= 64),
  onerror: (event) => event.target.replaceWith(h("span", { class: "broken" }, "can't be read")),
  ...attributes,
});

export const words = (picture) => `${picture.id}${picture.label ? `, ${picture.label}` : ""}`;

export function visit(row) {
  stay(location.href, { row }); // on the way back its cell has the focus again
  location.hash = link(`picture/${row}`);
}

export function cell(picture, { score, open, ...more } = {}) {
  const shown = score === undefined ? "" : `, ${score.toFixed(3)}`;
  return h("button", { type: "button", class: "cell", title: words(picture), "aria-label": words(picture) + shown,
    "data-row": String(picture.row), onclick: open ?? (() => visit(picture.row)), ...more },
  image(picture.row),
  picture.label ? h("span", { class: "tagged" }, picture.label) : null,
  score === undefined ? null : h("span", { class: "score" }, score.toFixed(3)));
}

// Nothing here, or nothing yet: what it is, why, and what to do.
export const empty = (title, text, ...actions) => h("div", { class: "empty" }, h("h1", {}, title), h("p", {}, text),
  actions.length ? h("div", { class: "bar" }, ...actions) : null);

// Arrow keys walk over the cells of a list that is laid out as a grid.
export function walkable(list) {
  list.addEventListener("keydown", (event) => {
    const cells = [...list.querySelectorAll(".cell")];
    const here = cells.indexOf(document.activeElement);
    if (here < 0) return;
    const top = cells[0].getBoundingClientRect().top;
    const columns = cells.filter((one) => Math.abs(one.getBoundingClientRect().top - top) < 4).length || 1;
    const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns }[event.key];
    if (step === undefined || !cells[here + step]) return;
    event.preventDefault();
    cells[here + step].focus();
  });
  return list;
}
