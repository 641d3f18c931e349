// Plotly with the page's colours. Its script is large: it is loaded with the first chart, after the text is shown.

const CONFIG = { displayModeBar: false, responsive: true, doubleClick: "reset", scrollZoom: false };
let loading = null; // of the script, when the first chart is drawn

function load() {
  loading ||= new Promise((resolve, reject) => {
    const script = document.createElement("script");
    script.src = document.querySelector("meta[name=plotly]").content;
    script.addEventListener("load", resolve);
    script.addEventListener("error", () => reject(new TypeError("the chart library could not be loaded")));
    document.head.append(script);
  });
  return loading;
}

export const darkQuery = matchMedia("(prefers-color-scheme: dark)");

// Whether the page has the width and the colours of paper.
export const onPaper = () => document.documentElement.classList.contains("paper");

// The colours of style.css by name, such as colour("ink").
export const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

// Names from other machines as text: Plotly reads a few tags.
export const plain = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");

// An axis; one whose margin is known says automargin: false, which draws it once instead of twice.
export function axis(more = {}) {
  return { gridcolor: colour("line"), linecolor: colour("line"), zeroline: false, tickcolor: colour("line"),
    fixedrange: true, automargin: false, ...more };
}

// Draw or update a chart in an element. onClick: called with the point that was clicked.
export async function draw(element, traces, layout, onClick) {
  await load();
  if (!element.isConnected) return;
  const whole = {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", showlegend: false, dragmode: false,
    font: { family: "system-ui, sans-serif", size: 12, color: colour("dim") },
    hoverlabel: { bgcolor: colour("card"), bordercolor: colour("line"), font: { color: colour("ink") } },
    margin: { l: 44, r: 12, t: 8, b: 24 }, ...(onPaper() ? { width: element.clientWidth } : {}), ...layout,
  };
  await window.Plotly.react(element, traces, whole, CONFIG);
  element.removeAllListeners("plotly_click");
  if (onClick) element.on("plotly_click", (event) => onClick(event.points[0]));
}

// Free what Plotly keeps for the charts within an element.
export function release(root) {
  if (window.Plotly) root.querySelectorAll(".js-plotly-plot").forEach((plot) => window.Plotly.purge(plot));
}
