// What the model looked at: the variables of each group with the largest weights, and attention by lag. Loaded when opened.

import { ApiError, ask, server as serverPath } from "./api.js";
import { h } from "./dom.js";
import { axis, colour, draw } from "./plots.js";
import { metricName, number } from "./text.js";

const GROUPS = { static: "About the server", encoder: "History", decoder: "Hours ahead" };
const ATTENTION = "Attention by time before the last step";
const SHOWN = 6, ATTENTION_PX = 144;

export function explanation(name) {
  const body = h("div", { class: "charts" });
  const element = h("details", { class: "panel" },
    h("summary", {}, h("b", { text: "What the model looked at" })),
    h("p", { class: "hint", text: "Weights of the network, in percent of each group. They do not show how the forecast would change with another value." }), body);
  let forecast = null, shown = "";

  async function show() {
    const wanted = `${forecast.model} ${forecast.made_at}`;
    if (!element.open || shown === wanted) return;
    try {
      const found = await ask(`${serverPath(name)}/explain`);
      const plot = h("div", { class: "plot", role: "img", "aria-label": ATTENTION });
      body.replaceChildren(...Object.entries(GROUPS).map(([group, title]) => figure(title, weightBars(found.variables[group]))), figure(ATTENTION, plot));
      await drawAttention(plot, found.attention);
      shown = wanted;
    } catch (problem) {
      if (!(problem instanceof ApiError)) throw problem;
      body.replaceChildren(h("p", { class: "hint", text: problem.message }));
    }
  }
  element.addEventListener("toggle", show);
  return { element, update: (newest) => { forecast = newest; return show(); } };
}

const figure = (title, content) => h("figure", {}, h("figcaption", {}, h("b", { text: title })), content);

// A list, whose names may have several lines, with a bar for each weight.
function weightBars(variables) {
  const heaviest = variables.slice(0, SHOWN), highest = heaviest[0]?.weight || 1;
  return h("ul", { class: "bars" }, heaviest.map(({ label, weight }) => {
    const bar = h("span", { class: "bar" });
    bar.style.width = `${(100 * weight) / highest}%`;
    return h("li", {}, h("span", { text: label.replace(/^\w+(?=,)/, metricName) }), h("span", {}, bar), h("span", { class: "number", text: `${number(100 * weight, 2)} %` }));
  }));
}

function drawAttention(plot, attention) {
  const hours = attention.lag_hours.map((lag) => -lag - attention.bin_hours / 2);
  return draw(plot, [{
    type: "bar", x: hours, y: attention.weights.map((weight) => 100 * weight), width: attention.bin_hours * 0.85, marker: { color: colour("forecast") },
    hovertemplate: "%{y:.2~g} %, %{x:.2~g} h<extra></extra>",
  }], {
    height: ATTENTION_PX, margin: { l: 40, r: 8, t: 4, b: 34 },
    xaxis: axis({ title: { text: `hours (${number(100 * attention.horizon_weight, 2)} % on the hours ahead)`, font: { size: 11 } }, showgrid: false }), yaxis: axis({ ticksuffix: " %", nticks: 4, rangemode: "tozero" }),
  });
}
