"""The dashboard in a real Chromium: every view, its states, live updates, keyboard and accessibility."""

import time
from pathlib import Path

import axe_playwright_python
import pytest
from playwright.sync_api import expect

from fleet_forecast.iso_time import iso
from tests.serving.daemon_client import STEP, TOKEN
from tests.serving.dashboard.chromium import PROGRAM, drawn
from tests.serving.dashboard.scenes import PREFIX, serving
from tests.serving.fake_daemon import FakeDaemon

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="the program chromium is not installed")
AXE = Path(axe_playwright_python.__file__).parent / "axe.min.js"
FLEET = {"ppdb001": 55.0, "ppdb002": 60.0, "ppml0001": 70.0, "constructor": 30.0, "x" * 250: 20.0}


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """A small fleet with nine hours of forecasts, below a path prefix."""
    with serving(tmp_path_factory.mktemp("scene"), prefix=PREFIX) as made:
        for hours_back in range(9, -1, -1):
            made.play(12 * hours_back + 2, FLEET)  # the last two steps are for the test of live updates
        yield made


def violations(page, scheme):
    """Rules of axe-core that the page breaks; the inside of Plotly's pictures, which have a label, is left out."""
    page.evaluate(AXE.read_text())  # not as a script element: the policy forbids it
    page.emulate_media(color_scheme=scheme)
    page.wait_for_selector(".view")
    rules = ["wcag2a", "wcag2aa", "wcag21aa", "best-practice"]
    found = page.evaluate("runOnly => axe.run({exclude: ['.plot']}, {runOnly})", rules)
    return [(rule["id"], [node["target"] for node in rule["nodes"]][:3]) for rule in found["violations"]]


def test_the_fleet_has_counters_risks_and_a_heat_map_whose_rows_open_servers(scene, open_page):
    page = open_page(f"{scene.url}/")
    drawn(page, 2)
    expect(page.locator(".card").first).to_contain_text("5")
    expect(page.locator("details[data-part=database] summary")).to_contain_text("2 servers")
    assert page.locator("details[data-part=database] .row-names a").all_text_contents() == ["ppdb001", "ppdb002"]
    page.locator("details[data-part=database] .nsewdrag").click(position={"x": 50, "y": 8})
    expect(page.locator(".server h2")).to_contain_text("ppdb001")
    page.go_back()
    page.get_by_label("Colour").select_option("0.5")
    expect(page.locator(".maps .hint")).to_contain_text("Forecast of CPU in %")
    page.get_by_label("Name contains").fill("ML")
    expect(page.locator("details[data-part]")).to_have_count(1)
    assert "search=ML" in page.url


def test_a_server_shows_its_metrics_the_outlook_and_what_was_forecast_before(scene, open_page):
    page = open_page(f"{scene.url}/#/server/ppdb001")
    drawn(page, 2 * 6)
    expect(page.locator(".outlook")).to_contain_text("No limit is expected to be exceeded within 8 h")
    expect(page.locator("figcaption").first).to_contain_text("CPU now 55 %")
    for hours in ("8", "4", "1"):
        page.get_by_label("Compare with the forecast of").select_option(hours)
        expect(page.locator("figcaption small").first).to_contain_text("values since were inside its 80 % band")
    expect(page.locator(".legend")).to_contain_text("middle half of 1 peer")
    page.locator(".fan .nsewdrag").first.hover(position={"x": 30, "y": 90})
    expect(page.locator(".fan .hoverlayer .hovertext").first).to_contain_text("%")
    page.get_by_text("What the model looked at").click()
    drawn(page, 2 * 6 + 1)
    expect(page.locator("details figure").nth(1).locator("li")).to_have_text("CPU, value100 %")


MEASURED = """document.querySelector('.fan').data.filter((trace) => trace.hovertemplate?.startsWith('measured'))
  .map((trace) => [trace.mode, trace.x.filter((_, index) => trace.y[index] !== null)])"""


def test_measurements_end_with_the_last_whole_step_and_one_without_neighbours_is_a_point(scene, open_page):
    origin = scene.client.get("/status").json()["cycle"]["origin"]
    running = iso(int(scene.now) // STEP * STEP)
    sent = [{"timestamp": running, "server_name": "ppdb002", "cpu_pct": 99.0}]
    assert scene.client.post("/api/v1/metrics", json={"records": sent}).json() == {"accepted": 1, "rejected": []}
    page = open_page(f"{scene.url}/#/server/ppdb002", timezone_id="UTC")
    drawn(page, 2 * 6)
    (_, _), (mode, points) = page.evaluate(MEASURED)
    assert mode == "markers"
    assert len(points) == 10, "one sample an hour"
    assert running > f"{points[-1]}Z" == origin


def test_a_metric_has_the_label_of_the_fleet_file(scene, open_page):
    page = open_page(f"{scene.url}/#/alerts")
    answer = scene.client.get("/status").json()
    labels = {**answer["metric_labels"], "mem_pct": "heap of the JVM"}
    page.route("**/status", lambda route: route.fulfill(json={**answer, "metric_labels": labels}))
    page.goto(f"{scene.url}/#/server/ppdb001")
    expect(page.locator("figcaption b").nth(1)).to_have_text("Heap of the JVM")


SHOWN_WITHOUT_LIMIT = """async () => {
  const [{ outlook }, { drawFan }, { h }] = await Promise.all(
    ["outlook", "fan", "dom"].map((name) => import(new URL(`dashboard/${name}.js`, document.baseURI))));
  const times = ["2026-11-29T08:00:00Z", "2026-11-29T08:05:00Z"];
  const metrics = { disk_io_mb_s: { unit: "MB/s", current: null, "q0.1": [0, 0], "q0.5": [40, 40], "q0.9": [80, 80] } };
  const forecast = { origin: times[0], timestamps: times, step_seconds: 300, metrics };
  const risk = { threshold: 70, below: false, by_horizon: {}, expected_at: null, earliest_at: times[1] };
  const measured = { ...forecast, metrics: { disk_io_mb_s: { ...metrics.disk_io_mb_s, current: 40 } } };
  const words = outlook(measured, { metrics: { disk_io_mb_s: risk } }).map((part) => part.textContent ?? part).join("");
  const history = { timestamps: times, metrics: { disk_io_mb_s: [null, null] } }, charts = [];
  for (const limits of [[], [90, -10], [900, -900]]) {
    const plot = document.querySelector("main").appendChild(h("div", { class: "plot fan" }));
    await drawFan(plot, "disk_io_mb_s", { forecast, history, limits });
    charts.push(plot.textContent);
  }
  return [words, ...charts];
}"""


def test_what_is_not_known_is_not_shown_as_zero(scene, open_page):
    page = open_page(f"{scene.url}/")
    drawn(page)
    words, chart, both, far = page.evaluate(SHOWN_WITHOUT_LIMIT)
    assert words.startswith("Disk traffic could exceed 70 MB/s from ")
    assert "probability" not in words, "a provisional forecast has none"
    assert "limit" not in chart, "the metric has none"
    assert "limit 90" in both
    assert "limit -10" in both, "the metric has an upper and a lower one"
    assert "limit" not in far, "the values would be a line beside limits so far away"


TEXTS = """async () => {
  const load = (name) => import(new URL(`dashboard/${name}.js`, document.baseURI));
  const names = ["text", "outlook", "feed", "short_names"];
  const [{ number, time }, { outlook }, feed, { shortTexts }] = await Promise.all(names.map(load));
  const times = ["2026-11-29T08:00:00Z", "2026-11-29T08:05:00Z"], year = new Date().getFullYear();
  const risk = { threshold: 70, below: false, by_horizon: {}, expected_at: null, earliest_at: null };
  const forecast = { origin: times[0], timestamps: times, metrics: { cpu_pct: { unit: "%", current: 5 } } };
  const states = [{ provisional: true }, { cold_start: true }, {}];
  const status = (forecast, with_risks, stale) =>
    ({ servers: { known: 4, forecast, with_risks, stale, newest_step: times[0] }, cycle: { origin: times[1] } });
  const fleets = [status(4, 4, 2), status(4, 4, 3), status(0, 0, 0), status(4, 0, 0), status(4, 3, 0)];
  const hasYear = (stamp) => time(stamp).textContent.includes(stamp.slice(0, 4));
  const name = (host) => ({ name: `db-prod-eu-west-1a-${host}.example.com`, mark: " · stale" });
  return {
    numbers: [6.26e-6, -6.26e-6, 0.00123, 0, 12345].map((value) => number(value)),
    hasYear: [`${year}-06-15T21:00:00Z`, "2999-12-02T21:00:00Z"].map(hasYear),
    outlooks: states.map((state) => outlook({ ...forecast, ...state }, { metrics: { cpu_pct: risk } })[0]),
    stopped: fleets.map(feed.hasStopped), unknown: fleets.map(feed.unknownRisks),
    banner: feed.stoppedBanner(fleets[1]).textContent,
    short: [230, 130].map((room) => shortTexts([name("0007"), name("0008")], room)),
  };
}"""


def test_numbers_times_names_and_what_is_not_known_are_written_out(scene, open_page):
    found = open_page(f"{scene.url}/#/server").evaluate(TEXTS)
    assert found["numbers"] == ["6.26e-6", "-6.26e-6", "0.00123", "0", "12,345"]
    assert found["hasYear"] == [False, True]
    assert all(text.startswith("Not known yet whether a limit will be exceeded: ") for text in found["outlooks"])
    assert "the step is not complete" in found["outlooks"][0]
    assert "no step of this server was measured yet" in found["outlooks"][1]
    assert found["stopped"] == [False, True, True, False, False]
    assert found["banner"].startswith(
        "3 of 4 servers have stopped sending samples. The newest measured step is that of "
    )
    assert [text.partition(" ")[0] for text in found["unknown"]] == ["", "", "The", "No", "Not"]
    assert found["short"][0] == [f"db-prod-eu-west-1a-{host}… · stale" for host in ("0007", "0008")]
    assert [text[-13:] for text in found["short"][1]] == ["0007… · stale", "0008… · stale"]


def test_a_part_of_a_name_finds_the_servers_that_have_it(scene, open_page):
    page = open_page(f"{scene.url}/#/alerts")
    page.get_by_label("Find a server").fill("PPD")
    page.keyboard.press("Enter")
    expect(page.locator(".empty")).to_contain_text("2 servers with this in the name")
    expect(page.locator(".names a")).to_have_text(["ppdb001", "ppdb002"])
    expect(page.locator("#main")).to_be_focused()
    expect(page.locator("#main")).to_have_css("outline-style", "none")


def test_an_injected_incident_turns_the_heat_map_and_opens_an_alert_while_the_page_is_open(scene, open_page):
    page = open_page(f"{scene.url}/")
    drawn(page)
    expect(page.locator(".card").nth(1)).to_contain_text("0")
    for steps_back in (1, 0):
        scene.play(steps_back, {**FLEET, "ppdb001": 99.0})
    expect(page.locator("#firing")).to_have_text("1")
    expect(page.locator(".columns td").first).to_have_text("ppdb001")
    expect(page.locator("details[data-part=database] summary")).to_contain_text("highest 91 %")
    page.get_by_role("link", name="Alerts").first.click()
    page.locator("td a", has_text="ppdb001").click()
    expect(page.locator(".server .banner")).to_contain_text("Alert")
    assert "at=" in page.url
    expect(page.locator(".server .hint").first).to_contain_text("the requested time")


def test_the_arrow_keys_move_along_the_rows_and_enter_opens_one(scene, open_page):
    page = open_page(f"{scene.url}/")
    drawn(page, 2)
    page.locator("details[data-part=database] summary").focus()
    page.keyboard.press("Tab")
    focused = "document.activeElement.textContent"
    assert page.evaluate(focused) == "ppdb001"
    page.keyboard.press("ArrowDown")
    page.keyboard.press("PageDown")  # the last row stays the last
    assert page.evaluate(focused) == "ppdb002"
    page.evaluate("""() => {
        const select = document.querySelector("select:has(option[value='0.5'])");
        select.value = "0.5";
        select.dispatchEvent(new Event("change", { bubbles: true }));
    }""")  # the rows are drawn anew, while one has the focus
    expect(page.locator("[data-part=scale]")).not_to_contain_text("Probability of crossing")
    assert page.evaluate(focused) == "ppdb002"
    page.keyboard.press("Home")
    page.keyboard.press("Enter")
    expect(page.locator(".server h2")).to_be_visible()


AUDIT = {
    "origin": "2026-11-23T10:00:00Z",
    "servers": 4,
    "verdicts": {"agrees": 37, "contradicts": 1, "unmatched": 1, "unclear": 1, "too_short": 0},
    "suggestions": [
        {"server_name": "ppweb7", "profile": "web_api", "matched": True, "suggested": "database", "probability": 0.97},
        {"server_name": "<b>x", "profile": "generic", "matched": False, "suggested": "ml_compute", "probability": 0.9},
    ],
    "unclear": ["odd-one"],
    "two_in_one": [{"profile": "generic", "groups": [[f"a{n}" for n in range(20)], ["b1", "b2"]], "apart": 3.21}],
    "toml": '[servers]\n"ppweb7" = "database"',
}


def test_the_profiles_audit_shows_suggestions_groups_and_lines_to_copy(scene, open_page):
    page = open_page(f"{scene.url}/#/model")
    page.route("**/api/v1/profiles/audit", lambda route: route.fulfill(json=AUDIT))
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.goto(f"{scene.url}/#/profiles")
    expect(page.locator(".card").nth(1)).to_contain_text("1behave like another profile")
    expect(page.locator(".card").last).to_contain_text("1not judged: new since the audit at ")
    rows = page.locator(".panel").first.locator("tbody tr")
    expect(rows.nth(0)).to_have_text("ppweb7web_api database97 %")
    expect(rows.nth(1)).to_have_text("<b>xgeneric no ruleml_compute90 %")
    expect(page.get_by_text("generic consists of two")).to_be_visible()
    page.get_by_text("Show all 20").click()
    expect(page.locator(".names").first.locator("a")).to_have_count(20)
    page.get_by_role("button", name="Copy").click()
    assert page.evaluate("navigator.clipboard.readText()") == AUDIT["toml"]
    assert violations(page, "light") == []


def test_the_model_has_its_scores_and_names_what_is_missing(scene, open_page):
    page = open_page(f"{scene.url}/#/model")
    expect(page.locator(".model h2").first).to_contain_text("tft_model_fake")
    expect(page.locator(".model")).to_contain_text("without evaluation.json")
    expect(page.locator(".model")).to_contain_text("There is no reason to train again.")


@pytest.mark.parametrize("view", ["fleet", "server/ppdb002", "alerts", "profiles", "model", "server"])
def test_no_view_breaks_a_rule_of_accessibility_in_light_and_in_dark(scene, open_page, view):
    page = open_page(f"{scene.url}/#/{view}")
    page.wait_for_selector(".view")
    assert violations(page, "light") == []
    assert violations(page, "dark") == []


def test_a_name_from_outside_is_text_wherever_it_is_shown(scene, open_page):
    name = "<img src=x onerror=alert(1)>"
    page = open_page(f"{scene.url}/#/server/{name}")
    expect(page.locator(".empty-title")).to_have_text(name)
    assert page.locator("main img").count() == 0
    page.goto(f"{scene.url}/#/server/100%")
    expect(page.locator(".empty-title")).to_have_text("100%")
    page.goto(f"{scene.url}/#constructor")  # as links of earlier versions have it
    expect(page.locator(".server h2")).to_contain_text("constructor")


def test_times_are_in_the_readers_zone_with_utc_in_the_title(scene, open_page):
    page = open_page(f"{scene.url}/#/server/ppdb002", timezone_id="Asia/Kolkata")
    moment = page.locator(".facts time").first
    shown, stamp = moment.inner_text(), moment.get_attribute("datetime")
    utc = int(stamp[11:13]) * 60 + int(stamp[14:16])
    hours, minutes = map(int, shown.split(":"))
    assert (hours * 60 + minutes - utc) % 1440 == 5 * 60 + 30
    assert moment.get_attribute("title") == f"{stamp[:10]} {stamp[11:16]} UTC"


def test_views_fit_a_narrow_screen_and_the_keyboard_reaches_everything(scene, open_page):
    page = open_page(f"{scene.url}/")
    page.set_viewport_size({"width": 380, "height": 800})
    drawn(page)
    for view in ("fleet", "server/ppdb001", "alerts", "profiles", "model"):
        page.goto(f"{scene.url}/#/{view}")
        page.wait_for_selector(f".view.{view.split('/')[0]}")
        page.wait_for_timeout(150)
        assert page.evaluate("document.documentElement.scrollWidth") <= 380, view
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.tagName") in ("A", "INPUT", "BUTTON", "SELECT", "SUMMARY", "DIV")


def test_a_printed_page_has_the_width_and_the_colours_of_paper(scene, open_page):
    page = open_page(f"{scene.url}/#/server/ppdb002", color_scheme="dark")
    drawn(page, 2 * 6)
    chart = "(() => { const svg = document.querySelector('.fan .main-svg'), text = svg.querySelector('.xtick text');"
    chart += "return [svg.getBoundingClientRect().width > 300, getComputedStyle(text).fill]; })()"
    on_screen = page.evaluate(chart)
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.evaluate("document.querySelector('main').getBoundingClientRect().width") == pytest.approx(680, abs=1)
    assert page.evaluate(chart) == [True, "rgb(86, 99, 111)"]  # --dim of the light colours
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.evaluate(chart) == on_screen


def test_a_token_is_asked_for_and_a_wrong_one_is_refused(tmp_path, open_page):
    with serving(tmp_path, token=TOKEN) as guarded:
        guarded.play(0, FLEET)
        page = open_page(f"{guarded.url}/#/fleet")
        expect(page.locator("#state")).to_have_text("A token is needed")
        expect(page.locator(".banner")).to_have_count(0)
        page.get_by_label("Token").fill("0123456789abcdef-wrong")
        page.keyboard.press("Enter")
        expect(page.locator("#token-hint")).to_have_text("The daemon refused this token.")
        page.get_by_label("Token").fill(TOKEN.decode())
        page.keyboard.press("Enter")
        drawn(page)
        expect(page.locator("#state")).to_contain_text("Live")
        guarded.play(0, {"late-comer": 40.0})
        expect(page.locator(".card").first).to_contain_text("6")


def test_a_fleet_is_told_how_to_send_samples_and_has_no_risks_before_its_first_complete_step(tmp_path, open_page):
    with serving(tmp_path) as empty:
        page = open_page(f"{empty.url}/")
        expect(page.locator(".heat")).to_contain_text("No server has sent a sample yet")
        expect(page.locator("pre")).to_contain_text(f"{empty.url}/api/v1/metrics -H 'Content-Type")
        expect(page.locator(".card").last).to_have_text("–no step was measured yet")
        page.evaluate("sessionStorage.setItem('fleet-forecast-token', 'of-this-daemon')")
        page.reload()
        expect(page.locator("pre")).to_contain_text('-H "Authorization: Bearer $FLEET_FORECAST_TOKEN"')
        empty.now += 60
        sample = {"timestamp": iso(empty.now), "cpu_pct": 99.0}
        records = [{**sample, "server_name": name} for name in ("ppweb001", "ppweb002")]
        empty.client.post("/api/v1/metrics", json={"records": records})
        expect(page.locator(".card").nth(2)).to_have_text("2likely breaches2 provisional", timeout=15_000)
        expect(page.locator(".row-names a").first).to_have_text("ppweb001 · provisional")
        expect(page.locator(".risks .empty")).to_contain_text("Not known yet")
        page.goto(f"{empty.url}/#/alerts")
        expect(page.locator(".alerts .empty").first).to_contain_text("No server has a complete step yet")
        risks = empty.client.get("/api/v1/servers/ppweb001/risks").json()["metrics"]
        assert [risk["by_horizon"] for risk in risks.values()] == [{}] * len(risks)


def test_a_lost_connection_is_shown_and_found_again(tmp_path, open_page):
    with FakeDaemon(tmp_path) as running:
        page = open_page(f"{running.url}/")
        expect(page.locator("#state")).to_contain_text("Live")
        running.stop()
        expect(page.locator(".banner.bad")).to_contain_text("Connection lost")
        expect(page.locator("#state")).to_have_text("Disconnected")
        running.start()
        expect(page.locator("#state")).to_contain_text("Live")
        expect(page.locator(".banner.bad")).to_have_count(0)


# An interaction, from its event to the frame after the page shows its result: milliseconds.
INTERACTION = """async ([part, action, shows, amount]) => {
    const frame = () => new Promise((resolve) => requestAnimationFrame(resolve));
    const target = document.querySelector(part), started = performance.now();
    if (action === "click") target.click();
    else { target.value = action; target.dispatchEvent(new Event(target.tagName === "INPUT" ? "input" : "change")); }
    while (document.querySelectorAll(shows).length !== amount && performance.now() - started < 10000) await frame();
    await frame();
    return performance.now() - started;
}"""
DATABASE = "details[data-part=database]"
IN_WINDOW = ".charts figure:nth-child(-n + 4)"
INTERACTIONS = {  # what is clicked, or chosen and written; what the page shows then
    "open a profile": (f"{DATABASE} summary", "click", f"{DATABASE} .row-names a", 100),
    "show all its 250 servers": (f"{DATABASE} > button", "click", f"{DATABASE} .row-names a", 250),
    "search": ("input[type=search]", "ppml01", "details[data-part]", 1),
    "end the search": ("input[type=search]", "", "details[data-part]", 4),
    "choose a profile": (".controls label:nth-child(3) select", "database", "details[data-part]", 1),
    "open a server, its charts in the window": (f"{DATABASE} .row-names a", "click", f"{IN_WINDOW} .hoverlayer", 4),
}


def test_a_thousand_servers_are_rows_of_profiles_that_open(tmp_path, open_page, record_property, capsys):
    fleet = {
        f"{prefix}{number:04d}": 20.0 + number % 70
        for prefix in ("ppdb", "ppml", "ppweb", "ppetl")
        for number in range(250)
    }
    with serving(tmp_path) as large:
        large.play(0, fleet)
        started = time.perf_counter()
        page = open_page(f"{large.url}/")
        page.wait_for_selector(".card")
        shown = {"first view": time.perf_counter() - started}
        drawn(page)
        shown["with charts"] = time.perf_counter() - started
        expect(page.locator("details[data-part][open]")).to_have_count(0)
        measured = {}
        devtools = page.context.new_cdp_session(page)
        devtools.send("Performance.enable", {"timeDomain": "threadTicks"})
        for name, interaction in INTERACTIONS.items():
            before = busy_seconds(devtools)
            wall = page.evaluate(INTERACTION, interaction)
            measured[name] = {"ms": round(wall), "of these busy": round(1000 * (busy_seconds(devtools) - before))}
            expect(page.locator(interaction[2])).to_have_count(interaction[3])
    record_property("seconds", shown)
    record_property("interactions", measured)
    with capsys.disabled():
        print(f" 1,000 servers: {shown} s, {measured}", end=" ")


def busy_seconds(devtools):
    """Processor time of the page's main thread: what an interaction takes on an idle machine at least."""
    metrics = devtools.send("Performance.getMetrics")["metrics"]
    return next(metric["value"] for metric in metrics if metric["name"] == "TaskDuration")


RANGES = """async () => {
  const { highestOf, rangeOf, scaleLegend } = await import(new URL("dashboard/heat.js", document.baseURI));
  const range = (unit, ...values) => rangeOf([{ values: [null, ...values] }], unit);
  const texts = [...scaleLegend(range("°C", -20, -4), "°C").children].map((each) => each.textContent);
  const below = [range("°C", -20, 12), range("°C", -20, -4), range("°C", -3, -3)];
  const others = [range("%", 5, 60), range("jobs", 5, 60), range("jobs", 0, 0), range(null, 0.2)];
  return [below, others, highestOf([null, -5, -7]), highestOf([null]), texts];
}"""


def test_the_colours_of_a_metric_span_its_values_also_those_below_zero(scene, open_page):
    below, others, highest, nothing, texts = open_page(f"{scene.url}/").evaluate(RANGES)
    assert below == [[-20, 12], [-20, -4], [-3, -2]]
    assert others == [[0, 100], [0, 60], [0, 1], [0, 1]]
    assert (highest, nothing) == (-5, None)
    assert texts == ["-20 °C", "-16 °C", "-12 °C", "-8 °C", "-4 °C"]
