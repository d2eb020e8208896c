// Deeds on labels and decisions of a review, each with its way back: an Undo beside what is said, `u`, or Ctrl-Z.
import { ask, complain, count, inTurn, on, post, say } from "./dom.js";
import { own } from "./memory.js";

// Tabs of the same server.
const others = new BroadcastChannel(own("labels"));
// What takes back something of a view first.
const first = new Set();
// The act that is taken back next; null: ask the server.
let last = null;
const turn = inTurn();

others.onmessage = ({ data }) => { last = null; told({ ...data, elsewhere: true }); };

// undone: rows that have their label of before; review: it was no label; pictures: some are hidden, or shown again.
function told(what) {
  dispatchEvent(new CustomEvent("labels", { detail: { undone: [], ...what } }));
  if (!what.elsewhere) others.postMessage({ review: what.review, pictures: what.pictures });
}

// The answer to a deed: how labelling, or the review, stands now.
function done(state, what = {}) {
  if (!state.act) { say("Nothing to change."); return state; }
  last = state.act;
  say(`${state.text}.`, false, { text: "Undo", act: undo });
  told(what);
  return state;
}

// together: many at once, without a look at each; keep: pictures that have another label by hand keep it.
export const give = (rows, label, { keep = false, together = false } = {}) => turn(async () => done(await post("api/labels", { rows, label, keep, together })));
export const act = (path, body, pictures = false) => turn(async () => done(await post(path, body), { review: true, pictures }));
export const rename = (label, to) => turn(async () => done(await post("api/classes", { label, to })));

export const undo = () => turn(async () => {
  try {
    for (const own of [...first]) if (await own()) return;
    last ||= (await ask("api/journal")).act;
    if (!last) { say("There is nothing to undo."); return; }
    const found = await post("api/undo", { act: last });
    last = found.next.act || null;
    const kept = found.kept ? ` ${count(found.kept, "picture")} labelled again since: not changed.` : "";
    say(`Undone: ${found.text}.${kept}`);
    told({ undone: found.rows, review: found.review, pictures: found.pictures });
  } catch (error) {
    // Another tab may have taken it back.
    last = null;
    complain(error);
  }
});

// own(): whether it took something back. The answer ends that.
export function undoFirst(own) {
  first.add(own);
  return () => first.delete(own);
}

// heard({undone, elsewhere}): after labels have changed, or decisions too, here or in another tab.
export function onLabels(keep, heard, decisions = false) {
  keep(on(window, "labels", ({ detail }) => { if (decisions || !detail.review) heard(detail); }));
}
