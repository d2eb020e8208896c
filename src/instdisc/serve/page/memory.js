// What this browser keeps: decisions outlive a reload, tastes the tab.
const read = (store, key) => { try { return JSON.parse(store.getItem(key)) ?? {}; } catch { return {}; } };
const write = (store, key, value) => { try { store.setItem(key, JSON.stringify(value)); } catch { /* a full store: as long as the view */ } };

// A site may have a collection under each path.
export const own = (key) => location.pathname + key;
export const recall = (key) => read(sessionStorage, own(key));
export const remember = (key, value) => write(sessionStorage, own(key), value);
export const taste = (key) => read(localStorage, "instdisc")[key];
export const keepTaste = (key, value) => write(localStorage, "instdisc", { ...read(localStorage, "instdisc"), [key]: value });
