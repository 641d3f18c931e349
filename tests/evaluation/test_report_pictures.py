"""PNG pictures of the report: drawn by a Chromium, and the reason if they are not."""

from __future__ import annotations

import struct
from pathlib import Path

import pandas as pd
import pytest
from playwright.sync_api import sync_playwright

from fleet_forecast.evaluation import report_pictures
from fleet_forecast.evaluation.report import ModelReport
from fleet_forecast.evaluation.report import report_pictures as pictures_of
from fleet_forecast.evaluation.report_pictures import MISSING, PIXELS_PER_PX, WIDTH_PX, Picture, write_pictures
from fleet_forecast.evaluation.tables import Evaluation
from tests.evaluation.test_report import INFO, cold_start, group, weights, written
from tests.serving.dashboard.chromium import FLAGS

PAGE = Picture("<!doctype html><title>t</title><body style=background:#0b66c2>text", 200)


def test_the_main_sections_that_the_report_has_are_pictures() -> None:
    data = pd.DataFrame({"profile": ["<web>"], "servers": [3], "silent_pct": [1.5]})
    evaluation = Evaluation({"unseen": group()}, cold_start())
    pictures = pictures_of(ModelReport("tft_model_x", INFO, evaluation, weights(), data))
    assert [*pictures] == ["cold_start", "calibration", "errors", "forecasts"]
    assert all("plotly-graph-div" in picture.page for picture in pictures.values())
    nothing = Evaluation({}, cold_start().iloc[:0])
    assert pictures_of(ModelReport("tft_model_x", INFO, nothing, weights(), data)) == {}


@pytest.mark.skipif(report_pictures.browser() is None, reason="the program chromium is not installed")
def test_a_picture_has_the_width_of_the_page_in_double_resolution(tmp_path: Path) -> None:
    assert write_pictures(tmp_path, {"one": PAGE}) is None
    content = (tmp_path / "one.png").read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", content[16:24]) == (PIXELS_PER_PX * WIDTH_PX, PIXELS_PER_PX * PAGE.height_px)


METHODS = (
    "model",
    "profile given",
    "profile masked",
    "peers by hand",
    "naive",
    "quantiles of 6 h",
    "quantiles of 24 h",
)
NARROW = """() => {
  const box = (kind) => document.querySelector(`.js-plotly-plot ${kind}`).getBoundingClientRect();
  const legend = box(".legend"), ticks = box(".xaxislayer-above"), title = box(".xtitle");
  return [document.documentElement.scrollWidth, legend.bottom <= ticks.top, ticks.top < title.top];
}"""


@pytest.mark.slow
@pytest.mark.skipif(report_pictures.browser() is None, reason="the program chromium is not installed")
def test_a_report_fits_a_narrow_screen_and_no_legend_covers_the_title_of_an_axis(tmp_path: Path) -> None:
    many = pd.concat([cold_start().assign(method=method) for method in METHODS])
    written(tmp_path, Evaluation({"unseen": group()}, many), INFO | {"data": "/a/long/path" * 9})
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=report_pictures.browser(), args=list(FLAGS))
        page = browser.new_page(viewport={"width": 400, "height": 800})
        page.goto((tmp_path / "report.html").as_uri())
        page.wait_for_selector(".xtitle")
        assert page.evaluate(NARROW) == [400, True, True]
        browser.close()


def test_without_a_browser_or_with_one_that_fails_the_reason_is_returned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert write_pictures(tmp_path, {"one": PAGE}) == MISSING
    program = tmp_path / "chromium"
    program.write_text("#!/bin/sh\necho no display >&2\nexit 7\n")
    program.chmod(0o755)
    problem = write_pictures(tmp_path, {"one": PAGE, "two": PAGE})
    assert problem == f"no picture one.png of the report: {program} ended with 7: no display"
    assert not list(tmp_path.glob("*.png"))
