// The frame of the dashboard: the view of the address, the banners, and the events that make views update.

import { alertsView } from "./alerts.js";
import { ApiError, ask, askAll, hasToken, onUnauthorised, setToken } from "./api.js";
import { byId, empty, h } from "./dom.js";
import { hasStopped, stoppedBanner } from "./feed.js";
import { fleetView } from "./fleet.js";
import { listen } from "./live.js";
import { modelView } from "./model.js";
import { darkQuery, onPaper, release } from "./plots.js";
import { profilesView } from "./profiles.js";
import { serverView } from "./server.js";
import { count, duration, time, useLabels } from "./text.js";

const VIEWS = { fleet: fleetView, server: serverView, alerts: alertsView, profiles: profilesView, model: modelView };
const TITLES = { fleet: "Fleet", server: "Server", alerts: "Alerts", profiles: "Profiles", model: "Model" };
const QUIET_MS = 300; // events of one cycle come in a burst
const ALERTS_MS = 4000;
const REFRESH_MS = 60000; // ages, and what no event announces
const CLOCK_MS = 15000, STALE_STEPS = 3;
let view = null; // {update()} of the address
let connected = null, lostAt = null, status = null, failed = "", scheduled = 0;
let locked = false; // the daemon asks for a token

// The address: #/VIEW/NAME?key=value, or #NAME for a server, as links of earlier versions have it.
function address() {
  if (/^#[^/]/.test(location.hash)) return { name: "server", argument: decoded(location.hash.slice(1)), query: new URLSearchParams() };
  const [path, query] = location.hash.replace(/^#\/?/, "").split("?");
  const [name, ...rest] = path.split("/");
  return { name: name in VIEWS ? name : "fleet", argument: decoded(rest.join("/")), query: new URLSearchParams(query) };
}

function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch { // a % that begins no escape
    return text;
  }
}

function show() {
  const main = byId("main"), { name, argument, query } = address();
  release(main);
  main.replaceChildren(h("p", { class: "empty", text: "Loading" }));
  document.title = `${argument || TITLES[name]} · Fleet forecast`;
  document.querySelectorAll("nav a").forEach((link) => {
    if (link.dataset.view === name) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  });
  const page = h("div", { class: `view ${name}` });
  const shown = VIEWS[name](page, argument, query);
  view = { ...shown, first: () => main.replaceChildren(page), page };
  refresh();
}

// Ask again for what is shown. A view that cannot be reached keeps its last content.
async function refresh() {
  const own = view;
  try {
    const asked = { status: ask("status").then(withLabels), alerts: ask("api/v1/alerts?limit=1000") };
    [status] = await Promise.all([asked.status, own.update(asked), asked.alerts.then(showFiring)]);
    failed = "";
    showState(); // before the charts
    if (own === view && !own.page.isConnected) own.first();
    if (own === view && own.drawn) await own.drawn();
    await updateNames();
  } catch (problem) {
    if (own !== view) return;
    if (problem instanceof ApiError && problem.status === 401) return;
    const reachable = problem instanceof ApiError;
    failed = reachable ? problem.message : "";
    if (!own.page.isConnected) showProblem(reachable ? problem.message : "The daemon cannot be reached.");
    if (!reachable) setConnected(false);
    if (!reachable && !(problem instanceof TypeError)) console.error(problem);
  }
  showState();
}

function withLabels(answer) {
  useLabels(answer.metric_labels);
  return answer;
}

function showProblem(text) {
  byId("main").replaceChildren(empty("This cannot be shown", h("p", { text }), h("button", { text: "Try again", onclick: show })));
}

function showFiring({ alerts }) {
  const firing = alerts.filter((alert) => !alert.silenced).length;
  byId("firing").textContent = firing;
  byId("firing").hidden = !firing;
  byId("firing").title = `${count(firing, "alert")} firing`;
}

async function updateNames() {
  const list = byId("server-names");
  if (list.children.length === status.servers.known) return;
  const { servers } = await askAll("api/v1/servers?limit=10000", "servers");
  list.replaceChildren(...servers.map((one) => h("option", { value: one.server_name })));
}

// --- state --------------------------------------------------------------------------------------------------------

function setConnected(now) {
  if (now && connected === false) schedule();
  if (!now && connected !== false) lostAt = new Date().toISOString();
  connected = now;
  showState();
}

function showState() {
  const age = status && status.cycle.origin ? Date.now() - Date.parse(status.cycle.origin) : null;
  const old = age !== null && age > (STALE_STEPS + 1) * stepMs(), stopped = Boolean(status && hasStopped(status));
  const banners = [];
  if (locked) {
    byId("state").className = "warn";
    byId("state").textContent = "A token is needed";
    return byId("banners").replaceChildren();
  }
  if (connected === false) {
    banners.push(h("p", { class: "banner bad" }, "Connection lost at ", time(lostAt), ". The data below may be old; trying again."));
  } else if (status && !status.ready) {
    banners.push(h("p", { class: "banner bad" }, `No model is loaded: ${status.last_load_problem || "it is still loading"}`));
  } else if (old) {
    banners.push(h("p", { class: "banner warn" }, `The newest forecast is ${duration(age)} old. No complete step has been forecast since.`));
  }
  if (stopped) banners.push(stoppedBanner(status));
  if (status && status.starter) {
    banners.push(h("p", { class: "banner warn" }, "These are forecasts of the starter model, which was not trained on this fleet. Train your own: python tft_trainer.py --warm-start starter"));
  }
  if (status && !status.history.writable) {
    banners.push(h("p", { class: "banner bad" }, `Samples cannot be stored: ${status.history.problem}`));
  }
  if (status && status.ready && status.last_load_problem) {
    banners.push(h("p", { class: "banner warn" }, `The newest model was refused, the previous one stays in use: ${status.last_load_problem}`));
  }
  if (failed) banners.push(h("p", { class: "banner warn" }, `Not up to date: ${failed}`));
  byId("banners").replaceChildren(...banners);
  const level = connected === false || (status && !status.ready) ? "bad" : old || stopped ? "warn" : "good";
  byId("state").className = connected === null ? "" : level;
  byId("state").replaceChildren(...(connected === null ? ["Connecting"] : connected === false ? ["Disconnected"]
    : !status?.servers.newest_step ? ["Live"] : ["Live · newest step ", time(status.servers.newest_step)]));
  return undefined;
}

const stepMs = () => (view && view.stepSeconds ? view.stepSeconds() : 300) * 1000;

// Alerts and risks are made after the forecasts of a cycle: they are asked for once more.
function onEvent(kind) {
  schedule();
  if (kind === "cycle") setTimeout(schedule, ALERTS_MS);
}

function schedule() {
  clearTimeout(scheduled);
  scheduled = setTimeout(refresh, QUIET_MS);
}

function askForToken() {
  locked = true;
  showState();
  if (byId("login")) return;
  const wrong = hasToken();
  const input = h("input", { id: "token", type: "password", autocomplete: "off", "aria-describedby": "token-hint" });
  const use = (event) => {
    event.preventDefault();
    setToken(input.value);
    [locked, connected, lostAt] = [false, null, null];
    show();
  };
  byId("main").replaceChildren(h("form", { id: "login", class: "empty", onsubmit: use },
    h("p", { class: "empty-title", text: "A token is needed" }),
    h("p", { id: "token-hint", class: wrong ? "bad" : "", text: wrong ? "The daemon refused this token." : "The daemon was started with a token. It stays in this tab until you close it." }),
    h("label", { for: "token", text: "Token " }), input, h("button", { text: "Open" })));
  input.focus();
}

async function start() {
  onUnauthorised(askForToken);
  addEventListener("hashchange", () => { show(); byId("main").focus({ preventScroll: true }); });
  darkQuery.addEventListener("change", () => onPaper() || show());
  addEventListener("beforeprint", () => usePaper(true));
  addEventListener("afterprint", () => usePaper(false));
  byId("find").addEventListener("submit", (event) => { event.preventDefault(); open(byId("find-name")); });
  byId("find-name").addEventListener("change", (event) => open(event.target));
  document.querySelector(".skip").addEventListener("click", (event) => { event.preventDefault(); byId("main").focus(); });
  setInterval(showState, CLOCK_MS);
  setInterval(schedule, REFRESH_MS);
  show();
  listen(onEvent, setConnected);
}

// Charts have the size and the colours of the moment at which they are drawn.
function usePaper(now) {
  document.documentElement.classList.toggle("paper", now);
  if (view?.drawn && view.page.isConnected) view.drawn();
}

function open(input) {
  const name = input.value.trim();
  if (name) location.hash = `#/server/${encodeURIComponent(name)}`;
  input.value = "";
}

start();
