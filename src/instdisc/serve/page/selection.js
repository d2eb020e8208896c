// What is selected, over all views: rows as they were picked. It outlives a reload, not the tab.
import { recall, remember } from "./memory.js";

// The server takes as many in one request.
export const MOST = 100_000;
const listeners = new Set();
let rows = new Set(), stored = "";

export const selection = {
  get size() { return rows.size; },
  get rows() { return [...rows]; },
  has: (row) => rows.has(row),
};

export function open(name) {
  stored = `${name} selection`;
  rows = new Set(recall(stored).rows ?? []);
  tell();
}

function tell() {
  remember(stored, { rows: [...rows] });
  for (const listener of [...listeners]) listener();
}

// Whether they all fit.
export function replace(given) {
  const all = [...new Set(given)];
  rows = new Set(all.slice(0, MOST));
  tell();
  return all.length <= MOST;
}

export const add = (given) => replace([...rows, ...given]);

// Rows are added, or taken out where all of them were selected.
export function toggle(given) {
  if (!given.every((row) => rows.has(row))) return add(given);
  const out = new Set(given);
  return replace([...rows].filter((row) => !out.has(row)));
}

export const clear = () => replace([]);

// listener: called after each change. The answer ends that.
export function watch(listener) {
  listeners.add(listener);
  return () => listeners.delete(listener);
}
