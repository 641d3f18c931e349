// Whether samples arrive: what the daemon's status says about the newest measurements.

import { h } from "./dom.js";
import { count, duration, time } from "./text.js";

// Whether most of the servers have stopped sending, so that forecasts, risks and alerts are those of an earlier time.
export function hasStopped({ servers, cycle }) {
  if (servers.forecast) return 2 * servers.stale > servers.forecast;
  return Boolean(servers.newest_step && cycle.origin && Date.parse(servers.newest_step) < Date.parse(cycle.origin));
}

export function stoppedBanner({ servers }) {
  const who = servers.forecast ? `${servers.stale.toLocaleString()} of ${count(servers.forecast, "server")} have stopped sending samples` : "No server sends samples any more";
  const age = Date.now() - Date.parse(servers.newest_step);
  return h("p", { class: "banner warn" }, `${who}. The newest measured step is that of `, time(servers.newest_step), `, ${duration(age)} ago. Forecasts, risks and alerts are those of the time before.`);
}

// Why no risk and no alert is known of some servers, as a sentence; "" if all are known.
export function unknownRisks({ servers, ...status }) {
  const missing = servers.forecast - servers.with_risks;
  if (!servers.forecast && hasStopped({ servers, ...status })) return "The servers have sent nothing for so long that they are not forecast: that continues with their next samples.";
  if (!servers.forecast) return "The first complete step of a server is followed by its risks.";
  if (!servers.with_risks) return "No server has a complete step yet: the forecasts so far are provisional. Risks and alerts follow the first complete step.";
  return missing ? `Not known yet for ${count(missing, "server")} without a complete step.` : "";
}
