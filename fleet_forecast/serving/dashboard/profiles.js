// Profiles view: servers whose behaviour contradicts their profile, profiles that should be two, and the lines that
// accept the suggestions.

import { ApiError, ask } from "./api.js";
import { badge, empty, h, table } from "./dom.js";
import { nameList, serverLink } from "./names.js";
import { clockTime, count, percent, time } from "./text.js";

const COPIED_MS = 2000;
const VERDICTS = [["agrees", "behave like their profile", "good"], ["contradicts", "behave like another profile", "bad"], ["unmatched", "match no rule", "warn"],
  ["unclear", "behave like none, or several", ""], ["too_short", "not judged: less than a quarter of a day measured", ""]];

export function profilesView(page) {
  async function update(asked) {
    const [{ profiles }, audit, status] = await Promise.all([ask("api/v1/profiles"), ask("api/v1/profiles/audit").catch(asProblem), asked.status]);
    page.replaceChildren(...(audit.problem ? [panel("Audit", empty("There is no audit yet", h("p", { text: `${audit.problem}.` })))] : auditSections(audit, status.servers.known)),
      panel("Profiles", table("Profiles", profileColumns, profiles.filter((one) => one.servers || one.trained))));
  }
  return { update };
}

const asProblem = (problem) => {
  if (problem instanceof ApiError && [409, 503].includes(problem.status)) return { problem: problem.message };
  throw problem;
};

const panel = (title, ...content) => h("section", { class: "panel" }, h("h2", {}, title), ...content);

// known: number of servers now; those that came after the audit are not in it.
function auditSections(audit, known) {
  const { suggestions, two_in_one: twins, unclear, toml } = audit;
  const later = Math.max(0, known - audit.servers);
  const cards = [...VERDICTS.map(([verdict, ...shown]) => [audit.verdicts[verdict], ...shown]), [later, `not judged: new since the audit at ${clockTime(audit.origin)}`, ""]];
  return [
    h("div", { class: "cards" }, cards.filter(([amount]) => amount).map(([amount, text, kind]) => h("div", { class: "card" },
      h("strong", { class: kind, text: amount.toLocaleString() }), h("span", { text })))),
    panel("Servers that behave like another profile",
      h("p", { class: "hint" }, `What ${count(audit.servers, "server")} did in the day before `, time(audit.origin), ", against the profile that a rule gave them. Renewed every hour."),
      suggestions.length ? table("Suggestions", suggestionColumns, suggestions) : empty("None", h("p", { text: "No server clearly behaves like a profile other than its own." }))),
    ...twins.map(twinPanel),
    ...(unclear.length ? [panel("Unclear", h("p", { class: "hint", text: "These servers behave like none of the profiles, or like several." }), nameList(unclear))] : []),
    ...(toml ? [linesPanel(toml)] : []),
  ];
}

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
    h("div", { class: "pair" }, groups.map((group) => h("div", {}, h("h3", { text: count(group.length, "server") }), nameList(group)))));
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
