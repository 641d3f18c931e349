// The time to a breach in words.

import { h } from "./dom.js";
import { isOld } from "./fan.js";
import { duration, metricName, number, percent, time } from "./text.js";

// Sentences about the limits that the forecast crosses, the most pressing first, as strings and time elements.
export function outlook(forecast, risks) {
  if (!risks) return ["The limits of this server are not known yet."];
  const limited = Object.entries(risks.metrics).filter(([, risk]) => risk.threshold !== null)
    .map(([metric, risk]) => ({ metric, ...risk, ...forecast.metrics[metric], highest: Math.max(0, ...Object.values(risk.by_horizon)) }));
  if (!limited.length) return ["No metric of this server has a limit."];
  const known = limited.filter((risk) => risk.current !== null); // one that is not measured raises no alert either
  const over = known.filter((risk) => (risk.below ? risk.current < risk.threshold : risk.current > risk.threshold));
  const expected = known.filter((risk) => risk.expected_at && !over.includes(risk)).sort((a, b) => a.expected_at.localeCompare(b.expected_at));
  const possible = known.filter((risk) => risk.earliest_at && !risk.expected_at && !over.includes(risk)).sort((a, b) => b.highest - a.highest);
  if (over.length + expected.length + possible.length) return [...over.map((risk) => overText(risk, forecast)), ...expected.map(expectedText), ...possible.map(possibleText)].flat();
  if (!known.some(hasProbability)) return [`Not known yet whether a limit will be exceeded: ${whyUnknown(forecast, known)}.`];
  const highest = known.reduce((best, risk) => (risk.highest > best.highest ? risk : best));
  return ["No limit is expected to be exceeded ", ...withinHorizon(forecast), `. The highest probability is ${percent(highest.highest)} (${metricName(highest.metric)}).`];
}

function whyUnknown(forecast, known) {
  if (forecast.cold_start) return "no step of this server was measured yet; the forecast is that of its profile and its peers";
  if (!known.length) return "its metrics with a limit are not measured now";
  if (forecast.provisional) return "the step is not complete, and probabilities follow complete steps";
  return "the probabilities of this forecast are being computed";
}

function withinHorizon(forecast) {
  const end = forecast.timestamps[forecast.timestamps.length - 1];
  return isOld(forecast) ? ["until ", time(end)] : [`within ${duration(Date.parse(end) - Date.parse(forecast.origin))}`];
}

const limitOf = (risk) => `${number(risk.threshold)} ${risk.unit}`;
const crosses = (risk) => (risk.below ? "fall below" : "exceed");
const subject = (risk) => h("b", { text: metricName(risk.metric) });

function overText(risk, forecast) {
  const side = `${risk.below ? "below" : "above"} its limit of ${limitOf(risk)}`;
  return isOld(forecast) ? [subject(risk), ` was ${side} at `, time(forecast.origin), ". "] : [subject(risk), ` is ${side} now. `];
}

function expectedText(risk) {
  const ahead = Date.parse(risk.expected_at) - Date.now();
  const when = ahead > 60e3 ? `, in ${duration(ahead)}` : "";
  const span = risk.earliest_at && risk.latest_at && risk.earliest_at !== risk.latest_at
    ? [", between ", time(risk.earliest_at), " and ", time(risk.latest_at)] : risk.earliest_at && risk.earliest_at !== risk.expected_at ? [", at the earliest at ", time(risk.earliest_at)] : [];
  return [subject(risk), ` will probably ${crosses(risk)} ${limitOf(risk)} at `, time(risk.expected_at), when, ...span, ". "];
}

const hasProbability = (risk) => Object.keys(risk.by_horizon).length > 0; // a provisional forecast has none
const possibleText = (risk) => [subject(risk), ` could ${crosses(risk)} ${limitOf(risk)} from `, time(risk.earliest_at), hasProbability(risk) ? ` on: probability ${percent(risk.highest)}. ` : " on. "];
