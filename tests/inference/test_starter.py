"""models/starter: it loads, forecasts whatever a fleet has, stays small, and its card says what its files are."""

from __future__ import annotations

import json
import re
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from fleet_forecast.contract.calendar import BusinessCalendar
from fleet_forecast.contract.specs import METRICS
from fleet_forecast.features.peers import Peers, PeerTable, ProfileMembers
from fleet_forecast.features.windows import WINDOWS_VERSION
from fleet_forecast.inference.engine import Engine
from fleet_forecast.inference.model_config import CONFIG_FILE
from fleet_forecast.inference.model_directory import (
    EXPLAIN_FILE,
    STARTER,
    STARTER_DIR,
    TRAINING_INFO_FILE,
    is_starter,
    present_model,
)
from server_profiles import PROFILES

LARGEST_BYTES = 3_000_000
ORIGIN = np.datetime64("2026-11-20T10:00:00", "s")


@pytest.fixture(scope="module")
def starter() -> Engine:
    return Engine.load(STARTER_DIR, device="cpu", threads=1)


@pytest.fixture(scope="module")
def card() -> str:
    return (STARTER_DIR / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def info() -> dict:
    return json.loads((STARTER_DIR / TRAINING_INFO_FILE).read_text(encoding="utf-8"))


def day_of(servers: int, metrics: tuple[str, ...]) -> np.ndarray:
    """A day of history with some of the metrics."""
    random = np.random.default_rng(0)
    history = np.full((servers, 288, len(METRICS)), np.nan, dtype=np.float32)
    for metric in metrics:
        history[..., list(METRICS).index(metric)] = random.uniform(20, 40, (servers, 288))
    return history


def test_it_was_made_with_the_windows_of_this_version() -> None:
    version = json.loads((STARTER_DIR / CONFIG_FILE).read_text(encoding="utf-8"))["windows_version"]
    assert version == WINDOWS_VERSION, "the windows have changed: make the starter model anew with `make starter`"


def test_it_has_the_six_metrics_the_seven_profiles_and_explanations(starter: Engine) -> None:
    assert starter.model_id == STARTER
    assert starter.config.targets == tuple(METRICS)
    assert set(starter.config.profiles) == set(map(str, PROFILES))
    assert (STARTER_DIR / EXPLAIN_FILE).exists()


def test_it_has_at_most_3_mb() -> None:
    assert sum(path.stat().st_size for path in STARTER_DIR.iterdir()) <= LARGEST_BYTES


def test_it_forecasts_every_subset_of_the_metrics(starter: Engine) -> None:
    subsets = [subset for size in range(1, 7) for subset in combinations(METRICS, size)]
    history = np.concatenate([day_of(1, subset) for subset in subsets])
    quantiles = starter.forecast(history, [None] * len(subsets), ORIGIN)
    assert quantiles.shape == (63, 96, 6, 7)
    assert np.isfinite(quantiles).all()
    medians = quantiles[:, 0, :, 3]
    measured = ~np.isnan(history[:, -1])
    assert ((medians > 10) & (medians < 60))[measured].all(), "what was measured continues near its level"


@pytest.mark.parametrize("profile", [None, "web_api", "generic", "a_role_of_our_own"])
def test_it_forecasts_with_and_without_profile_history_and_peers(starter: Engine, profile: str | None) -> None:
    history = day_of(4, METRICS)
    members = ProfileMembers.of("abcd", [profile or "web_api"] * 4)
    last_step = int(ORIGIN.astype(np.int64)) // 300
    peers = Peers(PeerTable.build(history, members, last_step - 287), np.ones(4, dtype=bool))
    history[0, :-1] = np.nan
    history[1] = np.nan
    for known in (None, peers):
        quantiles = starter.forecast(history, [profile] * 4, ORIGIN, known)
        assert np.isfinite(quantiles).all()
        assert (np.diff(quantiles, axis=3) >= 0).all()


def test_another_calendar_keeps_canary_and_explanations(starter: Engine) -> None:
    moved = starter.with_calendar(BusinessCalendar("Asia/Tokyo"))
    moved.load_explanations()
    history, profiles = day_of(1, METRICS), ["web_api"]
    here, there = (engine.forecast(history, profiles, ORIGIN) for engine in (starter, moved))
    assert not np.array_equal(here, there)
    assert starter.config.calendar == BusinessCalendar("UTC")


def test_the_card_agrees_with_the_files(starter: Engine, card: str, info: dict) -> None:
    spec = starter.config.spec
    for fact in (
        f"windows of version {starter.config.windows_version}",
        f"{info['parameters']:,} parameters",
        f"{info['steps']:,} steps of {info['recipe'][info['recipe'].index('--batch-size') + 1]} windows",
        f"with seed {info['recipe'][info['recipe'].index('--seed') + 1]}",
        f"first {100 * float(info['recipe'][info['recipe'].index('--train-fraction') + 1]):.0f} % of the time",
        f"{spec.context_steps // 12} hours of context and {spec.horizon_steps // 12} hours of forecast",
    ):
        assert fact in " ".join(card.split())
    assert re.findall(r"^\| `(\w+)` \|", card, re.MULTILINE)[: len(info["sources"])] == info["sources"]
    for name in (*starter.config.targets, *starter.config.profiles):
        assert f"`{name}`" in card
    assert ("has no risk model" in card) == (starter.risk_model is None)


def test_it_stands_in_only_where_no_path_was_chosen_and_nothing_is_there(tmp_path: Path) -> None:
    missing = tmp_path / "models" / "current"
    assert present_model(missing, chosen=False) == STARTER_DIR
    assert present_model(missing, chosen=True) == missing
    missing.parent.mkdir()
    missing.symlink_to("gone")
    assert present_model(missing, chosen=False) == missing, "a link that leads nowhere is a mistake to report"
    assert not is_starter("tft_model_20261129_041516")
