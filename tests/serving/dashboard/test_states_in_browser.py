"""Pages of a fleet that stopped sending, of a silent server, and of servers with long names."""

import time

import pytest
from playwright.sync_api import expect

from tests.serving.daemon_client import wait_for
from tests.serving.dashboard.chromium import PROGRAM, drawn
from tests.serving.dashboard.scenes import serving

pytestmark = [pytest.mark.slow, pytest.mark.skipif(PROGRAM is None, reason="the program chromium is not installed")]
HOSTS = [f"db-prod-eu-west-1a-{number:04d}.internal.example.com" for number in range(3)]
LONG = "x" * 240
SILENT = "ppml-gone"


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A fleet whose samples ended half an hour ago, and a server that has been silent for hours."""
    with serving(tmp_path_factory.mktemp("stopped")) as made:
        for steps_back in (37, 36):
            made.play(steps_back, {SILENT: 44.0})
        made.play(6, {"ppweb001": 85.5} | dict.fromkeys([*HOSTS, LONG], 30.0))
        made.now = time.time()
        wait_for(lambda: made.client.get("/status").json()["servers"]["stale"] == 5)
        yield made


def test_a_feed_that_stopped_is_a_warning_and_its_values_are_not_called_present_ones(stopped, open_page):
    page = open_page(f"{stopped.url}/", timezone_id="UTC")
    newest = stopped.client.get("/status").json()["servers"]["newest_step"][11:16]
    banner = page.locator("#banners .banner.warn").first
    expect(page.locator("#state.warn")).to_have_text(f"Live · newest step {newest}")
    expect(banner).to_contain_text("5 of 5 servers have stopped sending samples. The newest measured step is that of")
    expect(page.locator(".card").last).to_contain_text(f"at {newest}")
    expect(page.locator(".risks td").first).to_have_text("ppweb001 · stale")
    page.goto(f"{stopped.url}/#/alerts")
    expect(page.locator(".alerts .empty").first).to_contain_text("most servers have stopped sending")
    page.goto(f"{stopped.url}/#/server/ppweb001")
    expect(page.locator("figcaption").first).to_contain_text(f"CPU 85.5 % at {newest}")
    expect(page.locator(".server-head .banner")).to_contain_text(f"sent nothing since the step of {newest}")
    expect(page.locator(".outlook")).to_contain_text("until ")


def test_a_silent_server_has_its_last_measurements_and_when_they_were(stopped, open_page):
    page = open_page(f"{stopped.url}/#/server/{SILENT}", timezone_id="UTC")
    drawn(page, 2 * 2)
    expect(page.locator(".server h2")).to_contain_text("silent")
    expect(page.locator(".outlook")).to_contain_text(" ago. This server is forecast again with its next sample.")
    expect(page.locator("figcaption").first).to_contain_text("CPU 44 % at ")


def test_the_heat_map_of_old_forecasts_begins_now_and_long_names_differ_in_it_and_do_not_widen_their_page(
    stopped, open_page
):
    page = open_page(f"{stopped.url}/")
    drawn(page, 2)
    rows = page.locator(".row-names a")
    last = "document.querySelector('.cells').data[0].z[0].slice(-2)"
    assert [value is None for value in page.evaluate(last)] == [False, True], "its half hour that is over is left out"
    shown = rows.all_text_contents()
    assert len(set(shown)) == len(shown) == 5
    assert [text for text in shown if "0001" in text and text.endswith("… · stale")]
    assert rows.evaluate_all("each => each.every((row) => row.scrollWidth <= row.clientWidth)"), "none is cut"
    page.goto(f"{stopped.url}/#/server/{LONG}")
    expect(page.locator(".server .hint").first).to_contain_text(LONG)
    assert page.evaluate("document.documentElement.scrollWidth") == 1280
