// What this browser keeps: decisions outlive a reload, but not the tab; tastes outlive the tab.
const read = (store, key) => { try { return JSON.parse(store.getItem(key)) ?? {}; } catch { return {}; } };
const write = (store, key, value) => { try { store.setItem(key, JSON.stringify(value)); } catch { /* a full store: as long as the view */ } };

export const recall = (key) => read(sessionStorage, key);
export const remember = (key, value) => write(sessionStorage, key, value);
export const taste = (key) => read(localStorage, "instdisc")[key];
export const keepTaste = (key, value) => write(localStorage, "instdisc", { ...read(localStorage, "instdisc"), [key]: value });
