// Deeds on labels, each with its way back.
import { ask, complain, count, on, post, say } from "./dom.js";
import { own } from "./memory.js";

const others = new BroadcastChannel(own("labels")); // tabs of the same server
const first = new Set(); // what takes back something of a view first
let last = null; // the act that is taken back next; null: ask the server
let acting = Promise.resolve(); // one deed after another, however quick the fingers

others.onmessage = () => { last = null; told([], true); };

function told(undone, elsewhere = false) {
  dispatchEvent(new CustomEvent("labels", { detail: { undone, elsewhere } }));
}

function inTurn(work) {
  const turn = acting.then(work);
  acting = turn.catch(() => {});
  return turn;
}

// The answer to a deed: how labelling stands now.
function done(state) {
  if (!state.act) { say("Nothing to change."); return state; }
  last = state.act;
  say(`${state.text}.`, false, { text: "Undo", act: undo });
  others.postMessage("");
  told([]);
  return state;
}

// together: many at once, without a look at each; keep: pictures that have another label by hand keep it.
export const give = (rows, label, { keep = false, together = false } = {}) => inTurn(async () => done(await post("api/labels", { rows, label, keep, together })));
export const rename = (label, to) => inTurn(async () => done(await post("api/classes", { label, to })));

export const undo = () => inTurn(async () => {
  try {
    for (const own of [...first]) if (await own()) return;
    last ||= (await ask("api/journal")).act;
    if (!last) { say("There is nothing to undo."); return; }
    const found = await post("api/undo", { act: last });
    last = found.next.act || null;
    const kept = found.kept ? ` ${count(found.kept, "picture")} labelled again since: not changed.` : "";
    say(`Undone: ${found.text}.${kept}`);
    others.postMessage("");
    told(found.rows);
  } catch (error) {
    last = null; // another tab may have taken it back
    complain(error);
  }
});

// own(): whether it took something back. The answer ends that.
export function undoFirst(own) {
  first.add(own);
  return () => first.delete(own);
}

// heard({undone, elsewhere}): after labels have changed, here or in another tab.
export function onLabels(keep, heard) {
  const listener = (event) => heard(event.detail);
  on(window, "labels", listener);
  keep(() => removeEventListener("labels", listener));
}
