"""A model in a notebook forecasts what the script forecasts of a file, and refuses what the contract refuses."""

import numpy as np
import pandas as pd
import pytest

import tft_inference
from data_contract import ContractError
from fleet_forecast.inference.batch import OriginError
from fleet_forecast.inference.model_config import ModelError
from fleet_forecast.notebooks import load_model
from tests.conftest import TINY_METRICS, tiny_fleet


@pytest.fixture(scope="module")
def model(tiny_model_dir):
    return load_model(tiny_model_dir, threads=1)


@pytest.fixture(scope="module")
def frame():
    return tiny_fleet(hours=12)


@pytest.mark.parametrize("flags", [(), ("--origins", "every:4h")], ids=["last", "regular"])
def test_a_frame_has_the_forecasts_of_its_file(model, frame, tiny_model_dir, tmp_path, capsys, flags):
    frame.to_parquet(tmp_path / "rows.parquet", index=False)
    command = ["--model", tiny_model_dir, "--input", tmp_path / "rows.parquet", "--output", tmp_path / "f.parquet"]
    assert tft_inference.main([*map(str, command), "--threads", "1", *flags]) == 0
    capsys.readouterr()
    found = model.forecast(frame.sample(frac=1.0, random_state=1), 4 * 3600 if flags else None)
    pd.testing.assert_frame_equal(found.table, pd.read_parquet(tmp_path / "f.parquet"))
    assert found.notices == ()
    assert model.metrics == TINY_METRICS


def test_notices_name_what_is_not_used(model, frame):
    own = frame.drop(columns=["profile", "mem_pct"]).assign(rack=1)
    own.loc[3, "cpu_pct"] = 250.0
    own["timestamp"] = own["timestamp"].dt.tz_localize(None)
    table, notices = model.forecast(own, input_timezone="UTC")
    assert set(table["server_name"]) == set(frame["server_name"])
    for text in (
        "column rack is not in the contract: left out; a metric needs [metrics.rack] in the fleet file",
        "profile of 8 of 8 servers inferred from the name",
        "the data has no mem_pct: forecast as not measured for servers whose profile had it in the training data",
    ):
        assert text in notices
    assert any(text.startswith("cpu_pct: 1 row: outside the range") for text in notices), notices


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda frame: frame.drop(columns="server_name"), "server_name: the column is missing"),
        (lambda frame: frame.iloc[:0], "there are no rows"),
        (lambda frame: frame.assign(cpu_pct=frame["cpu_pct"] / 100), "fractions"),
        (lambda frame: frame.set_index("timestamp"), "timestamp: the column is missing"),
    ],
)
def test_a_frame_that_breaks_the_contract_is_refused(model, frame, change, message):
    with pytest.raises(ContractError, match=message):
        model.forecast(change(frame))


def test_an_unknown_time_zone_is_named(model, frame):
    with pytest.raises(ValueError, match="Tokyo"):
        model.forecast(frame, input_timezone="Tokyo")


def test_errors_name_arguments_and_no_flags(model, frame, tiny_model_dir):
    naive = frame.assign(timestamp=frame["timestamp"].dt.tz_localize(None))
    for message, wrong in (
        ("state the zone with input_timezone", lambda: model.forecast(naive)),
        ("every_seconds: 7 s is not a multiple", lambda: model.forecast(frame, every_seconds=7)),
        ("every_seconds: 864000 s is longer than", lambda: model.forecast(frame, every_seconds=864_000)),
        ("device cuda: torch finds no GPU .* use device cpu", lambda: load_model(tiny_model_dir, device="cuda")),
    ):
        with pytest.raises((ContractError, OriginError, ModelError), match=message) as raised:
            wrong()
        assert "--" not in str(raised.value)


def test_a_frame_is_not_changed(model, frame):
    before = frame.copy()
    model.forecast(frame)
    pd.testing.assert_frame_equal(frame, before)


def test_a_server_without_a_measurement_is_forecast_and_named(model, frame):
    new = frame.iloc[:1].assign(server_name="ppdb999", **dict.fromkeys(TINY_METRICS, np.float32(np.nan)))
    table, notices = model.forecast(pd.concat([frame, new]))
    assert "ppdb999" in set(table["server_name"])
    assert "ppdb999 has no measurement the model can use: forecast without history" in notices


def test_a_distance_that_no_step_has_is_refused(model, frame):
    with pytest.raises(OriginError, match="450 s is not a multiple"):
        model.forecast(frame, every_seconds=450)


def test_a_notebook_shows_a_model_in_one_line_and_refuses_what_is_no_frame(model):
    assert repr(model).startswith("<LoadedModel tft_model_")
    assert repr(model).endswith(f": {', '.join(TINY_METRICS)}>")
    with pytest.raises(TypeError, match="frame is a list; give a pandas DataFrame"):
        model.forecast([1, 2])


def test_forecasts_of_the_starter_model_say_so(frame):
    table, notices = load_model("models/starter", threads=1).forecast(frame)
    assert len(table) > 0
    assert any("which was not trained on this fleet" in notice for notice in notices)
