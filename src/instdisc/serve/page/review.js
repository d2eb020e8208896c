// A review, case by case: copies, outliers, doubtful labels, unreadable files, look-alikes. Decisions stay in the run;
// nothing happens to a picture before somebody takes the list, the script, or hides.
import { answered, ask, button, cell, clamp, complain, count, empty, facet, fileFacts, fill, get, goTo, h, hint, image, inBar, labelField, link, listen, modal, number, on, pixels, press, quiet, retry, room, save, say, walkable, way, working, zooming } from "./dom.js";
import { act, give, onLabels, undoFirst } from "./journal.js";
import { scores } from "./overview.js";

// Cases at once; on the sheet at once; pixels of a picture before it is zoomed.
const ASKED = 12, LOOKED_OVER = 100, SHARP = 1024;
const why = (one) => [one.kind, ...one.changes].filter(Boolean).join(", ");
const keyOf = (one) => one.pictures.map((picture) => picture.row).join(",");

// Pictures side by side, or one after another at the same place; a wheel, + and -, and a drag move all of them alike.
function stages(pictures, readable) {
  const boxes = pictures.map((one) => h("div.box", readable ? image(one.row, { alt: one.id }, "full") : h("span.broken", "File damaged"))), host = h("div.case");
  let alone = -1, zoom = 1, x = 0, y = 0;
  const draw = () => {
    for (const [name, value] of [["--zoom", zoom], ["--x", `${x}%`], ["--y", `${y}%`]]) host.style.setProperty(name, value);
    host.classList.toggle("zoomed", zoom > 1);
    host.classList.toggle("alone", alone >= 0);
    [...host.children].forEach((element, place) => element.classList.toggle("shown", place === alone));
    // As many pixels as there are.
    if (zoom > 1.3) boxes.forEach((box, place) => {
      const shown = box.querySelector("img"), one = pictures[place];
      if (shown && !box.sharp && Math.max(one.width, one.height) > SHARP) { box.sharp = true; shown.src = pixels(one.row, "large"); }
    });
  };
  const move = (right, down) => { const most = 50 * (zoom - 1); x = clamp(x + right + most, 2 * most) - most; y = clamp(y + down + most, 2 * most) - most; draw(); };
  // The point at left, top (percent from the middle) stays.
  const by = (factor, left = 0, top = 0) => {
    const before = zoom;
    zoom = clamp(zoom * factor, 16, 1);
    move((left - x) * (1 - zoom / before), (top - y) * (1 - zoom / before));
  };
  for (const box of boxes) {
    on(box, "wheel", (event) => {
      event.preventDefault();
      const edge = box.getBoundingClientRect();
      by(Math.exp(-event.deltaY * 0.002), 100 * ((event.clientX - edge.left) / edge.width - 0.5), 100 * ((event.clientY - edge.top) / edge.height - 0.5));
    }, { passive: false });
    on(box, "pointerdown", (event) => { if (zoom > 1) box.setPointerCapture(event.pointerId); });
    on(box, "pointermove", (event) => { if (zoom > 1 && event.buttons & 1) move(100 * event.movementX / box.clientWidth, 100 * event.movementY / box.clientHeight); });
  }
  const flicker = (back = false) => { alone = back ? -1 : (alone + 1) % pictures.length; draw(); return alone; };
  return { host, boxes, by, flicker, get alone() { return alone; }, fit: () => { zoom = 1; move(0, 0); } };
}

export async function review({ part, parameters, keep, about, again }) {
  const { kinds } = await ask("api/review"), { kind, title, noun, text: said } = kinds.find((one) => one.kind === part) ?? kinds[0], decided = Boolean(parameters.decided);
  const [copies, labelled, alike] = ["copies", "labels", "look-alikes"].map((one) => one === kind), grouped = copies || alike;
  const threshold = parameters.threshold ?? about.threshold, most = Number(parameters.most) || 40;
  // The server counts the usual cases.
  const synced = !alike && most === 40;
  const asked = { ...(alike ? { threshold } : {}), ...(kind === "outliers" ? { most } : {}) };
  const told = h("span.quiet", { role: "status" }), stage = h("div.stack"), tabs = walkable(h("div.facets", { group: "Kinds" }), ".facet"), foot = h("div.bar.foot");
  let queue = [], at = 0, skipped = [], counts = { open: 0, decided: 0, certain: 0 }, own = false, shown, busy = false, alive = true;
  keep(() => { alive = false; });

  const tab = (one) => facet(link(`review/${one.kind}`), one.kind === kind, one.title, one.kind === kind ? counts.open : one.open);
  // How the review stands.
  const state = (given) => {
    if (!alive) return;
    const mine = given.kinds.find((one) => one.kind === kind);
    if (mine.open !== null && synced) Object.assign(counts, mine);
    fill(tabs, given.kinds.map(tab));
    tabs.settle();
    all.textContent = `Accept all ${number(counts.certain)} certain ones`;
    all.hidden = decided || !counts.certain;
    const windows = /Win/.test(navigator.platform), script = `move-pictures.${windows ? "ps1" : "sh"}`;
    const take = (text, path, name, words) => working(text, async () => { save(name, await (await answered(path)).blob()); say(words); }, { title: words });
    fill(foot, h("strong", `${number(given.going)} marked for removal`), given.hidden && quiet(`${number(given.hidden)} hidden already`), room(),
      given.going ? [take("Download list", "api/review/list", "remove.txt", "remove.txt lists where the files are now, one a line."),
        take("Download script", `api/review/script?shell=${windows ? "powershell" : "sh"}`, script, `Look at ${script}, then run it: it moves the files into a folder beside, and never deletes.`)] : "",
      given.going > given.hidden && working("Hide from the collection", () => deed("api/review/hide", {}, true), { title: "Grid, map and search pass them over; no file is touched" }));
  };
  const deed = async (path, body, pictures = false) => {
    own = !pictures;
    try { const done = await act(path, body, pictures); state(done); return done; } finally { own = false; }
  };
  const load = async () => {
    const start = decided ? queue.length : skipped.length;
    const found = await get(`api/review/${kind}`, { which: decided ? "decided" : "open", start, count: ASKED, ...asked });
    const known = new Set(queue.slice(at).map(keyOf).concat(skipped));
    counts = { open: found.open, decided: found.decided, certain: found.certain };
    queue.push(...found.cases.filter((one) => !known.has(keyOf(one))));
  };
  const begin = async () => {
    [queue, at, skipped] = [[], 0, []];
    await load();
    state(await ask("api/review"));
    draw();
  };

  const next = async () => {
    at += 1;
    if (at >= queue.length) await load();
    draw();
  };
  // One deed after another.
  const inTurn = (work) => async (...given) => {
    if (busy) return;
    busy = true;
    try { await work(...given); } catch (error) { complain(error); }
    busy = false;
  };
  const chosen = (one) => one.choices ??= one.pictures.map((picture, place) => picture.choice || (copies && place ? "remove" : "keep"));
  const accept = inTurn(async () => {
    const one = queue[at];
    if (!one || labelled) return;
    const done = await deed(`api/review/${kind}`, { choices: one.pictures.map((picture, place) => ({ row: picture.row, choice: chosen(one)[place] })) });
    if (!synced && done.act) counts.open -= 1;
    await next();
  });
  const keepLabel = inTurn(async () => { await deed("api/review/labels", { choices: [{ row: queue[at].pictures[0].row, choice: "keep" }] }); await next(); });
  const change = inTurn(async (label) => {
    own = true;
    try { await give([queue[at].pictures[0].row], label); } finally { own = false; }
    state(await ask("api/review"));
    await next();
  });
  const skip = inTurn(async () => { if (queue[at]) { skipped.push(keyOf(queue[at])); await next(); } });
  const before = () => { if (at) { at -= 1; skipped = skipped.filter((one) => one !== keyOf(queue[at])); draw(); } };
  const choose = (to) => {
    const now = chosen(queue[at]);
    if (grouped && !to.includes("keep")) { say("Keep at least one of them.", true); return; }
    now.splice(0, now.length, ...to);
    mark();
  };
  const only = (place) => choose(chosen(queue[at]).map((_, other) => (other === place ? "keep" : "remove")));
  const flip = (place) => choose(chosen(queue[at]).map((one, other) => (other !== place ? one : one === "keep" ? "remove" : "keep")));
  const mark = () => [...shown.host.children].forEach((element, place) => {
    const kept = chosen(queue[at])[place] === "keep", chip = element.querySelector(".chip");
    element.classList.toggle("kept", kept && queue[at].pictures.length > 1);
    element.classList.toggle("gone", !kept);
    if (!chip) return;
    fill(chip, h("kbd", chip.ariaKeyShortcuts), kept ? "Keep" : "Remove");
    press(chip, kept);
  });

  // Beside one picture.
  const evidence = (one) => {
    const few = h("div.few");
    get(`api/neighbours/${one.row}`, { count: 12 }).then(({ results }) => few.append(...results.map((found) => cell(found, { score: found.score }))), () => {}).finally(() => few.children.length && walkable(few));
    return h("section.stack", { label: "Similar pictures" }, h("h2", "Similar pictures"), few);
  };
  const draw = () => {
    if (!alive) return;
    const one = queue[at];
    told.textContent = decided ? `${number(counts.decided)} decided` : `${count(counts.open, noun)} to decide on`;
    if (!one) {
      const rest = skipped.length ? h("button.main", () => begin().catch(complain), `Look at ${number(skipped.length)} skipped again`) : kind === "outliers" && !decided ? way(link("review/outliers", { most: most + 40 }), "40 more") : "";
      fill(stage, empty(counts.decided || skipped.length ? "That was the last one" : `No ${title.toLowerCase()}`, alike && !counts.decided ? `No two pictures have a cosine of ${threshold} or more: a lower number finds more.` : said, rest));
      return;
    }
    const { given, voted, score, note, pictures } = one, many = pictures.length > 1, hand = pictures[0].hand ? "by you" : "of the folder";
    shown = stages(pictures, kind !== "unreadable");
    const lines = pictures.map((picture) => Object.values(fileFacts(picture))), differ = lines[0].map((_, column) => new Set(lines.map((line) => line[column])).size > 1);
    shown.host.append(...pictures.map((picture, place) => h("figure.shot", shown.boxes[place],
      h("figcaption", !labelled && h("button.chip", { ...(many ? { keys: String(place + 1), title: "Key: keep it alone" } : { keys: "x" }), onclick: (event) => { flip(place); if (event.detail) event.currentTarget.blur(); } }),
        quiet(picture.kind ? why(picture) : copies ? "best of these" : ""), h("p.fact", lines[place].map((text, column) => text && h(differ[column] ? "b" : "span", text)))))));
    const input = labelField("Type a label", change, { size: 12, keys: "n" }), labels = () => [h("p", `Labelled “${given}” (${hand}). Its neighbours say `, h("strong", voted), quiet(` (doubt ${score.toFixed(2)})`)),
      inBar(button([h("kbd", "1"), `Keep “${given}”`], "1", keepLabel), button([h("kbd", "2"), `Change to “${voted}”`], "2", () => change(voted)), input, h("button", input.given, "Change"))];
    const more = many ? [button("Keep all", "a", () => choose(pictures.map(() => "keep"))), button("Flip", "x", () => flip(Math.max(shown.alone, 1)), { title: "Keep or remove the one shown alone, or the second" }), button("Flicker", "Space", () => shown.flicker(), { title: "One at the place of the other" })] : [];
    const single = labelled || kind === "outliers";
    fill(stage, single ? h("div.beside", shown.host, evidence(pictures[0])) : shown.host, note && h("p", `Why: ${note}.`), alike && quiet(`lowest similarity: ${score.toFixed(3)}`), labelled && labels(),
      inBar(labelled ? "" : [button(grouped ? "Accept" : "Done", "Enter", accept, { class: "main" }), ...more],
        button("Skip", "s j", skip), button("Back", "k", before, { disabled: !at }), room(),
        kind === "unreadable" ? "" : zooming(shown.by, shown.fit)));
    if (!labelled) mark();
    if (queue[at + 1]) for (const { row } of kind === "unreadable" ? [] : queue[at + 1].pictures) new Image().src = pixels(row, "full");
  };

  // What is certain, to look over before all of it is accepted.
  const sheet = async () => {
    const list = h("div.sheet", { tabIndex: 0, group: "Kept, and marked for removal" }), from = async (start) => {
      const found = await get("api/review/copies", { which: "certain", start, count: LOOKED_OVER });
      list.append(...found.cases.map((one) => h("div", ...one.pictures.map((picture, place) => h("figure", { class: place ? "gone" : "kept", title: picture.path }, image(picture.row, { alt: picture.id, loading: "lazy" }), h("figcaption", place ? why(picture) : "keep"))))));
      more.hidden = list.children.length >= found.total;
      return found.total;
    };
    const more = working(`Show ${LOOKED_OVER} more`, () => from(list.children.length)), total = await from(0);
    const dialog = modal(`Accept ${count(total, "certain group")}?`,
      [h("p.quiet", "The same bytes, or nearly the same pixels. The first of each is kept; the others are marked for removal, and no file is touched."), list, more],
      `Accept all ${number(total)}`, async () => { await deed("api/review/certain", { expected: total }); await begin(); });
    keep(() => dialog.remove());
  };
  const all = working("", sheet, { keys: "A", title: "Look them over first (Shift-A)" });

  const inCase = (key) => {
    const one = queue[at], place = Number(key) - 1;
    if (!one) return false;
    if (key === "Escape" && shown.alone >= 0) shown.flicker(true);
    else if (!labelled && one.pictures[place]) only(place);
    else return false;
    return true;
  };
  listen(keep, inCase);
  // A skip is nothing that the server knows.
  keep(undoFirst(async () => {
    if (!skipped.length || keyOf(queue[at - 1] ?? { pictures: [] }) !== skipped.at(-1)) return false;
    before();
    return true;
  }));
  onLabels(keep, ({ pictures }) => own || pictures || begin().catch(complain), true);

  let fault;
  await load().catch((error) => { fault = error; });
  if (fault?.lost) throw fault;
  state(await ask("api/review"));
  if (fault) fill(stage, empty(`${title} unavailable`, fault.message, retry(again)));
  else draw();
  // Counts of the other kinds, one after another.
  const rest = async () => {
    for (const name of ["labels", "outliers", "copies"]) if (name !== kind && alive && (name !== "copies" || about.pictures <= 20_000)) await get(`api/review/${name}`, { count: 1 }).catch(() => {});
    if (alive) state(await ask("api/review"));
  };
  setTimeout(() => rest().catch(() => {}), 400);
  const scored = kind !== "outliers" || fault || (await get("api/outliers", { count: 1 })).by === "outlier_score";
  const least = h("input", { type: "number", min: "0.6", max: "1", step: "0.01", value: String(threshold), onchange: ({ target }) => { if (target.checkValidity()) goTo("review/look-alikes", { threshold: target.value }); } });
  return [inBar(h("h1", "Review"), tabs, room(), told, decided ? way(link(`review/${kind}`), "To decide on") : counts.decided > 0 && way(link(`review/${kind}`, { decided: 1 }), `Decided (${number(counts.decided)})`),
    alike && h("label", "Minimum similarity ", least), copies && all),
  inBar(h("p.quiet.said", scored ? said : "The lowest similarity to others first. Outlier scores tell better."), !scored && scores()), stage,
  hint(), foot];
}
