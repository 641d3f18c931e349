// Profiles view: servers whose behaviour contradicts their profile, profiles that should be two, and the lines that
// accept the suggestions.

import { ApiError, ask } from "./api.js";
import { badge, empty, h, table } from "./dom.js";
import { count, percent, time } from "./text.js";

const SHOWN_NAMES = 12; // of a list, until all are asked for
const COPIED_MS = 2000;
const VERDICTS = [["agrees", "behave like their profile", "good"], ["contradicts", "behave like another profile", "bad"], ["unmatched", "match no rule", "warn"],
  ["unclear", "behave like none, or several", ""], ["too_short", "with too little history", ""]];

export function profilesView(page) {
  async function update() {
    const [{ profiles }, audit] = await Promise.all([ask("api/v1/profiles"), ask("api/v1/profiles/audit").catch(asProblem)]);
    page.replaceChildren(...(audit.problem ? [panel("Audit", empty("There is no audit yet", h("p", { text: `${audit.problem}.` })))] : auditSections(audit)),
      panel("Profiles", table("Profiles", profileColumns, profiles.filter((one) => one.servers || one.trained))));
  }
  return { update };
}

const asProblem = (problem) => {
  if (problem instanceof ApiError && [409, 503].includes(problem.status)) return { problem: problem.message };
  throw problem;
};

const panel = (title, ...content) => h("section", { class: "panel" }, h("h2", {}, title), ...content);

function auditSections(audit) {
  const { suggestions, two_in_one: twins, unclear, toml } = audit;
  return [
    h("div", { class: "cards" }, VERDICTS.filter(([verdict]) => audit.verdicts[verdict]).map(([verdict, text, kind]) => h("div", { class: "card" },
      h("strong", { class: kind, text: audit.verdicts[verdict].toLocaleString() }), h("span", { text })))),
    panel("Servers that behave like another profile",
      h("p", { class: "hint" }, `What ${count(audit.servers, "server")} did in the day before `, time(audit.origin), ", against the profile that a rule gave them. Renewed every hour."),
      suggestions.length ? table("Suggestions", suggestionColumns, suggestions) : empty("None", h("p", { text: "No server clearly behaves like a profile other than its own." }))),
    ...twins.map(twinPanel),
    ...(unclear.length ? [panel("Unclear", h("p", { class: "hint", text: "These servers behave like none of the profiles, or like several." }), names(unclear))] : []),
    ...(toml ? [linesPanel(toml)] : []),
  ];
}

const serverLink = (name) => h("a", { class: "name", href: `#/server/${encodeURIComponent(name)}`, text: name });

const suggestionColumns = [
  { title: "Server", cell: (one) => serverLink(one.server_name) },
  { title: "Profile now", cell: (one) => h("span", {}, one.profile, " ", one.matched ? "" : badge("no rule", "warn", "No rule matches its name: the profile is the fallback")) },
  { title: "Behaves like", cell: (one) => h("b", { text: one.suggested }) },
  { title: "Probability", number: true, cell: (one) => percent(one.probability) },
];

const profileColumns = [
  { title: "Profile", cell: (one) => h("span", { class: "name", text: one.profile }) },
  { title: "Servers", number: true, cell: (one) => one.servers.toLocaleString() },
  { title: "Model", cell: (one) => (one.trained ? badge("trained", "good") : badge("not trained", "warn", "The model was not trained on this profile")) },
  { title: "Names", cell: (one) => h("span", { class: "name", text: one.name_patterns.join("  ") || "–" }) },
];

function twinPanel({ profile, groups, apart }) {
  return panel(`${profile} consists of two`,
    h("p", { class: "hint", text: `Its servers form two groups. Their distance is ${apart.toFixed(1)} times the largest between servers of one kind.` }),
    h("div", { class: "pair" }, groups.map((group) => h("div", {}, h("h3", { text: count(group.length, "server") }), names(group)))));
}

function names(all) {
  const list = h("p", { class: "names" });
  const show = (shown) => list.replaceChildren(...shown.map(serverLink), ...(shown.length < all.length ? [h("button", { text: `Show all ${all.length.toLocaleString()}`, onclick: () => show(all) })] : []));
  show(all.slice(0, SHOWN_NAMES));
  return list;
}

function linesPanel(toml) {
  const lines = h("pre", { class: "lines", tabindex: "0", "aria-label": "Lines of the fleet file", text: toml });
  const button = h("button", { text: "Copy", onclick: () => copy(lines, button) });
  return panel("Lines that accept the suggestions",
    h("p", { class: "hint" }, "Put those that you agree with into the daemon's fleet file (", h("code", { text: "--fleet FILE" }), ")."), lines, button);
}

// To the clipboard, which browsers give to secure pages only; elsewhere the lines are selected.
async function copy(lines, button) {
  getSelection().selectAllChildren(lines);
  if (!navigator.clipboard) return;
  await navigator.clipboard.writeText(lines.textContent);
  button.textContent = "Copied";
  setTimeout(() => { button.textContent = "Copy"; }, COPIED_MS);
}
