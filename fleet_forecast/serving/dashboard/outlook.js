// The time to a breach in words.

import { h } from "./dom.js";
import { duration, metricName, number, percent, time } from "./text.js";

// Sentences about the limits that the forecast crosses, the most pressing first, as strings and time elements.
export function outlook(forecast, risks) {
  if (!risks) return ["The limits of this server are not known yet."];
  const known = Object.entries(risks.metrics).filter(([, risk]) => risk.threshold !== null)
    .map(([metric, risk]) => ({ metric, ...risk, ...forecast.metrics[metric], highest: Math.max(0, ...Object.values(risk.by_horizon)) }));
  if (!known.length) return ["No metric of this server has a limit."];
  const over = known.filter((risk) => risk.current !== null && (risk.below ? risk.current < risk.threshold : risk.current > risk.threshold));
  const expected = known.filter((risk) => risk.expected_at && !over.includes(risk)).sort((a, b) => a.expected_at.localeCompare(b.expected_at));
  const possible = known.filter((risk) => risk.earliest_at && !risk.expected_at && !over.includes(risk)).sort((a, b) => b.highest - a.highest);
  const hours = duration(Date.parse(forecast.timestamps[forecast.timestamps.length - 1]) - Date.parse(forecast.origin));
  if (over.length + expected.length + possible.length) return [...over.map(overText), ...expected.map(expectedText), ...possible.map(possibleText)].flat();
  const highest = known.reduce((best, risk) => (risk.highest > best.highest ? risk : best));
  if (!known.some(hasProbability)) return [`No limit is expected to be exceeded within ${hours}.`];
  return [`No limit is expected to be exceeded within ${hours}. The highest probability is ${percent(highest.highest)} (${metricName(highest.metric)}).`];
}

const limitOf = (risk) => `${number(risk.threshold)} ${risk.unit}`;
const crosses = (risk) => (risk.below ? "fall below" : "exceed");
const subject = (risk) => h("b", { text: metricName(risk.metric) });

const overText = (risk) => [subject(risk), ` is ${risk.below ? "below" : "above"} its limit of ${limitOf(risk)} now. `];

function expectedText(risk) {
  const ahead = Date.parse(risk.expected_at) - Date.now();
  const when = ahead > 60e3 ? `, in ${duration(ahead)}` : "";
  const span = risk.earliest_at && risk.latest_at && risk.earliest_at !== risk.latest_at
    ? [", between ", time(risk.earliest_at), " and ", time(risk.latest_at)] : risk.earliest_at && risk.earliest_at !== risk.expected_at ? [", at the earliest at ", time(risk.earliest_at)] : [];
  return [subject(risk), ` will probably ${crosses(risk)} ${limitOf(risk)} at `, time(risk.expected_at), when, ...span, ". "];
}

const hasProbability = (risk) => Object.keys(risk.by_horizon).length > 0; // a provisional forecast has none
const possibleText = (risk) => [subject(risk), ` could ${crosses(risk)} ${limitOf(risk)} from `, time(risk.earliest_at), hasProbability(risk) ? ` on: probability ${percent(risk.highest)}. ` : " on. "];
