// What the model looked at: the variables of each group with the largest weights, and attention by lag. Loaded when opened.

import { ApiError, ask, server as serverPath } from "./api.js";
import { h } from "./dom.js";
import { axis, colour, draw, plain } from "./plots.js";
import { metricName, number } from "./text.js";

const GROUPS = { static: "About the server", encoder: "History", decoder: "Hours ahead" };
const SHOWN = 6, ROW_PX = 22;

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
      const figures = [...Object.values(GROUPS), "Attention by time before the last step"].map((title) => h("figure", {}, h("figcaption", {}, h("b", { text: title })), h("div", { class: "plot", role: "img", "aria-label": title })));
      body.replaceChildren(...figures);
      await Promise.all(Object.keys(GROUPS).map((group, index) => drawWeights(figures[index].lastChild, found.variables[group])));
      await drawAttention(figures[figures.length - 1].lastChild, found.attention);
      shown = wanted;
    } catch (problem) {
      if (!(problem instanceof ApiError)) throw problem;
      body.replaceChildren(h("p", { class: "hint", text: problem.message }));
    }
  }
  element.addEventListener("toggle", show);
  return { element, update: (newest) => { forecast = newest; return show(); } };
}

function drawWeights(plot, variables) {
  const heaviest = variables.slice(0, SHOWN).reverse();
  const label = (variable) => plain(variable.label.replace(/^\w+(?=,)/, metricName));
  return draw(plot, [{
    type: "bar", orientation: "h", x: heaviest.map((variable) => 100 * variable.weight), y: heaviest.map((_, index) => index),
    marker: { color: colour("forecast") }, text: heaviest.map((variable) => `${number(100 * variable.weight, 2)} %`),
    textposition: "auto", cliponaxis: false, hoverinfo: "skip",
  }], {
    height: 12 + ROW_PX * SHOWN, margin: { l: 215, r: 44, t: 4, b: 4 }, bargap: 0.3,
    xaxis: axis({ visible: false }),
    yaxis: axis({ tickvals: heaviest.map((_, index) => index), ticktext: heaviest.map(label), showgrid: false, ticks: "", range: [heaviest.length - SHOWN - 0.5, heaviest.length - 0.5] }),
  });
}

function drawAttention(plot, attention) {
  const hours = attention.lag_hours.map((lag) => -lag - attention.bin_hours / 2);
  return draw(plot, [{
    type: "bar", x: hours, y: attention.weights.map((weight) => 100 * weight), width: attention.bin_hours * 0.85, marker: { color: colour("forecast") },
    hovertemplate: "%{y:.2~g} %, %{x:.2~g} h<extra></extra>",
  }], {
    height: 12 + ROW_PX * SHOWN, margin: { l: 40, r: 8, t: 4, b: 34 },
    xaxis: axis({ title: { text: `hours (${number(100 * attention.horizon_weight, 2)} % on the hours ahead)`, font: { size: 11 } }, showgrid: false }), yaxis: axis({ ticksuffix: " %", nticks: 4, rangemode: "tozero" }),
  });
}
