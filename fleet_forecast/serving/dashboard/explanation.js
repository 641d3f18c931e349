"use strict";
// The explanation of the selected server's forecast: the heaviest variables of each group, and attention by lag.

const GROUPS = {
  static: "Static variables", encoder: "Variables of the history", decoder: "Variables of the horizon",
};
const SHOWN = 5, ROW = 19, BAR_LEFT = 265, BAR_WIDTH = 140;
let explained = ""; // the forecast whose explanation is shown

async function showExplanation(forecast) {
  const wanted = `${forecast.server_name} ${forecast.made_at}`;
  if (wanted === explained) return;
  const found = await ask(`api/v1/servers/${encodeURIComponent(forecast.server_name)}/explain`);
  if (forecast.server_name !== selected) return; // another server was selected meanwhile
  el("reasons").replaceChildren(...(found.problem ? [node("p", found.problem, "hint")] : [
    ...Object.entries(GROUPS).map(([group, title]) => heaviest(title, found.variables[group])), attention(found),
  ]));
  explained = found.problem ? "" : wanted;
}

function hideExplanation() {
  explained = "";
  el("reasons").replaceChildren();
}

const inPercent = (weight) => `${short(100 * weight)} %`;
const withMetricName = (label) => label.replace(/^\w+(?=,)/, nameOf);

function heaviest(title, variables) {
  const shown = variables.slice(0, SHOWN);
  const svg = shape("svg", { viewBox: `0 0 ${WIDTH} ${SHOWN * ROW + 4}`, role: "img", "aria-label": title });
  shown.forEach((variable, row) => {
    const width = BAR_WIDTH * variable.weight / shown[0].weight, y = row * ROW + 14;
    svg.append(shape("text", { x: 0, y }, withMetricName(variable.label)),
      shape("rect", { x: BAR_LEFT, y: y - 10, width, height: ROW - 6, class: "weight" }),
      shape("text", { x: BAR_LEFT + width + 5, y }, inPercent(variable.weight)));
  });
  return captioned(title, `${shown.length} of ${variables.length} variables`, svg);
}

function attention(found) {
  const { weights, lag_hours: lags, bin_hours: hours, horizon_weight: horizonWeight } = found.attention;
  const title = "Attention by lag", foot = SHOWN * ROW - 12, highest = Math.max(...weights);
  const width = (WIDTH - LEFT - RIGHT) / weights.length, x = (bin) => WIDTH - RIGHT - (bin + 1) * width;
  const svg = shape("svg", { viewBox: `0 0 ${WIDTH} ${SHOWN * ROW + 4}`, role: "img", "aria-label": title });
  weights.forEach((weight, bin) => {
    const height = (foot - TOP) * weight / highest;
    const bar = shape("rect", { x: x(bin), y: foot - height, width: Math.max(width - 1, 1), height, class: "weight" });
    bar.append(shape("title", {}, `${short(lags[bin])} to ${short(lags[bin] + hours)} h before: ${inPercent(weight)}`));
    svg.append(bar);
  });
  svg.append(shape("text", { x: LEFT - 5, y: TOP + 6, "text-anchor": "end" }, inPercent(highest)),
    shape("text", { x: LEFT, y: foot + 13 }, `${short(lags[lags.length - 1] + hours)} h before`),
    shape("text", { x: WIDTH - RIGHT, y: foot + 13, "text-anchor": "end" }, "now"));
  return captioned(title, `${inPercent(horizonWeight)} on the horizon`, svg);
}
