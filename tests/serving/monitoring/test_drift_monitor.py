"""The daemon's own forecasts against what was measured: figures, advice, exclusions, restart, another model."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from fleet_forecast.contract.forecast_spec import SCORED_LEVELS
from fleet_forecast.drift.advice import Reason
from fleet_forecast.drift.detector import Stream
from fleet_forecast.evaluation.loss_sums import Compared, LossKey, LossSums
from fleet_forecast.evaluation.scores import weighted_quantile_loss
from fleet_forecast.serving.forecasts.history_window import HistoryWindow
from fleet_forecast.serving.forecasts.snapshot import FleetSnapshot, ModelView, ServerForecast
from fleet_forecast.serving.monitoring.drift_monitor import DriftMonitor
from fleet_forecast.serving.storage.ring_buffer import RingBuffer
from fleet_forecast.serving.storage.samples import KnownServer, StepMeans
from tests.serving.fake_engine import FakeConfig

STEP, HORIZON, METRICS = 3_600, 8, ("cpu_pct", "mem_pct")
FIRST = 1_795_996_800 // STEP  # midnight
SERVERS = [f"db{n}" for n in range(6)] + [f"web{n}" for n in range(6)]
LEVELS = (0.1, 0.5, 0.9)


def profile_of(name):
    return "database" if name.startswith("db") else "web_api"


def reference(days):
    """Content of evaluation.json: losses like those of the fleet below, on days before."""
    random, found = np.random.default_rng(8), []
    for day in range(days):
        sums, rows = LossSums(), [profile_of(name) for name in SERVERS for _ in range(3)]
        for horizon in ("15m", "1h", "4h", "8h"):
            actual = 50 + 4 * random.standard_normal((len(rows), 2))
            bands = 50 + 5.13 * np.broadcast_to([-1, 0, 1], (*actual.shape, 3))
            baseline = bands + random.normal(0, 1.5, (*actual.shape, 1))
            sums.add(rows, METRICS, horizon, Compared(actual, bands, baseline))
        found.append([FIRST // 24 - days + day, sums.as_fields()])
    return {"losses_by_day": found}


class Fleet:
    """A fleet of white noise about 50, an engine that forecasts 50, and the monitor; one cycle an hour.

    bias: added to the forecasts of databases.
    """

    def __init__(self, folder, reference_days=30, excluded=None):
        self.folder, self.random, self.step, self.bias = folder, np.random.default_rng(3), FIRST - 48, 0.0
        self.servers = {name: KnownServer(row + 1, name, None) for row, name in enumerate(SERVERS)}
        self.excluded = excluded or (lambda names, _profiles, seconds: np.zeros((len(names), len(seconds)), bool))
        self.measured, self.history_steps = {}, {}
        self.use_model("first", reference_days)

    def use_model(self, name, reference_days=30):
        model_dir = self.folder / name
        model_dir.mkdir(exist_ok=True)
        (model_dir / "evaluation.json").write_text(json.dumps(reference(reference_days)))
        config = FakeConfig(METRICS, LEVELS, STEP, HORIZON, 24, 48, profiles=("database", "web_api"))
        engine = SimpleNamespace(
            model_id=name,
            model_dir=model_dir,
            config=config,
            unknown_profiles=lambda names: tuple(sorted(set(names) - set(config.profiles))),
        )
        self.view = ModelView(name, METRICS, LEVELS, STEP)
        self.window = HistoryWindow(RingBuffer(72, 2), engine, METRICS, slice(None), [])
        self.monitor = self.new_monitor()

    def new_monitor(self):
        forecasts, store = SimpleNamespace(window=self.window), SimpleNamespace(servers=self.servers)
        return DriftMonitor(forecasts, store, lambda *args: self.excluded(*args), self.folder / "h.drift.json")

    def hour(self):
        """Measure a step, forecast from it, and update the monitor."""
        self.step += 1
        means = (50 + 4 * self.random.standard_normal((len(self.servers), 2))).astype(np.float32)
        ids = np.array([server.server_id for server in self.servers.values()], np.int32)
        self.window.buffer.put(StepMeans(self.step, ids, means))
        self.measured[self.step] = means
        forecasts = {name: self.forecast(name) for name in self.servers}
        snapshot = FleetSnapshot(forecasts, self.step * STEP, self.step * STEP + 1.0, self.view)
        if self.monitor.is_due(snapshot):
            self.monitor.update(snapshot, self.step * STEP + 1.0)

    def forecast(self, name):
        middle = 50 + (self.bias if name.startswith("db") else 0)
        quantiles = middle + 5.13 * np.broadcast_to(np.array([-1.0, 0, 1])[:, None], (2, 3, HORIZON))
        profile = profile_of(name) if name in SERVERS else "mainframe"
        rule = None if name in SERVERS[:1] else "sent"
        now = self.step * STEP
        steps = self.history_steps.get(name, 48)
        return ServerForecast(name, self.view, now, now + 1.0, profile, rule, steps, quantiles, (), (50.0, 50.0))

    def days(self, number):
        for _ in range(24 * number):
            self.hour()
        return self.monitor.advice


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    monkeypatch.setattr("os.fsync", lambda _descriptor: None)


@pytest.fixture
def fleet(tmp_path):
    made = Fleet(tmp_path)
    made.days(2)
    return made


def test_figures_are_those_of_the_forecasts_at_each_horizon(fleet):
    fleet.days(3)
    key = LossKey("database", "mem_pct", "4h")
    figures = fleet.monitor.figures[key]
    last = fleet.step - HORIZON
    origins = range(FIRST - 47, last + 1)
    actual = np.concatenate([fleet.measured[origin + 4][:6, 1] for origin in origins]).astype(np.float64)
    forecast = 50 + 5.13 * np.broadcast_to([-1.0, 0, 1], (len(actual), 3))
    assert figures["scored"] == len(actual)
    assert figures["wql"] == pytest.approx(weighted_quantile_loss(actual, forecast, SCORED_LEVELS), abs=2e-5)
    assert figures["coverage_80"] == pytest.approx(100 * (np.abs(actual - 50) <= 5.13).mean(), abs=0.01)
    assert figures["baseline_wql"] > figures["wql"]
    assert fleet.monitor.reference[key]["scored"] == 30 * 18
    assert not fleet.monitor.advice.retrain_recommended


def test_worse_forecasts_of_a_profile_are_advised_in_words_and_survive_a_restart(fleet):
    assert fleet.days(6).reasons == ()
    fleet.bias = 6.0
    advice = fleet.days(5)
    assert advice.retrain_recommended
    (reason,) = advice.reasons
    assert reason.profile == "database"
    assert reason.text.startswith("profile database: since 2026-12-06 the error is higher than before")
    assert (advice.days, advice.reference_days) == (12, 30)
    fleet.monitor = fleet.new_monitor()
    fleet.hour()
    assert fleet.monitor.advice.reasons == advice.reasons
    assert fleet.monitor.advice.since_seconds == advice.since_seconds
    assert advice.as_document()["since"].endswith("Z")
    fleet.use_model("second", reference_days=2)
    assert not fleet.days(1).retrain_recommended
    (earlier,) = fleet.monitor._detector.earlier  # those before the test period of the second model
    assert [day.number for day in earlier] == [FIRST // 24 - 30 + day for day in range(28)]


def test_excluded_times_do_not_count(fleet):
    fleet.excluded = lambda names, _profiles, seconds: np.full((len(names), len(seconds)), True)
    fleet.bias = 30.0
    advice = fleet.days(6)
    assert advice.reasons == ()
    assert advice.days <= 2


def test_a_new_profile_is_a_reason_at_once_and_a_training_is_recommended_with_its_first_day(fleet):
    for number in range(2):
        fleet.servers[f"mf{number}"] = KnownServer(100 + number, f"mf{number}", None)
    fleet.hour()
    assert fleet.monitor.advice.reasons == ()
    assert "no rule matches the names of 1 server (7 %)" in fleet.monitor.advice.remarks[0]
    fleet.servers["mf2"] = KnownServer(102, "mf2", None)
    fleet.history_steps = {"mf2": 23}
    fleet.hour()
    advice = fleet.monitor.advice
    assert not advice.retrain_recommended
    assert advice.since_seconds == fleet.step * STEP + 1.0
    assert advice.reasons == (
        Reason(
            "mainframe",
            "profile mainframe: the model was not trained on it; 3 servers, 2 with a day of history; "
            "train again when 3 have one",
        ),
    )
    fleet.history_steps = {}
    fleet.hour()
    assert fleet.monitor.advice.retrain_recommended
    assert fleet.monitor.advice.since_seconds == advice.since_seconds
    assert fleet.monitor.advice.reasons[0].text.endswith("not trained on it; 3 servers, 3 with a day of history")


def test_a_damaged_state_file_and_a_model_without_reference_begin_anew(tmp_path, caplog):
    (tmp_path / "h.drift.json").write_text('{"model": "first", "days": 3}')
    made = Fleet(tmp_path, reference_days=0)
    made.days(4)
    assert "drift state not read" in caplog.text
    assert (made.monitor.advice.reference_days, made.monitor.advice.days) == (0, 3)
    assert json.loads((tmp_path / "h.drift.json").read_text())["model"] == "first"
    assert Stream("web_api", "cpu_pct") in made.monitor._detector.days[0].losses
