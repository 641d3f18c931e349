// Names of servers as links to their pages.

import { h } from "./dom.js";

const SHOWN_NAMES = 12; // of a list, until all are asked for

export const serverAddress = (name) => `#/server/${encodeURIComponent(name)}`;
export const serverLink = (name) => h("a", { class: "name", href: serverAddress(name), text: name });

export function nameList(all) {
  const list = h("p", { class: "names" });
  const show = (shown) => list.replaceChildren(...shown.map(serverLink), ...(shown.length < all.length ? [h("button", { text: `Show all ${all.length.toLocaleString()}`, onclick: () => show(all) })] : []));
  show(all.slice(0, SHOWN_NAMES));
  return list;
}
