"""Windows: equal to TimeSeriesDataSet and to a plain loop, independent of the future and of unknown steps."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from pytorch_forecasting import TimeSeriesDataSet

from fleet_forecast.contract.calendar import DEFAULT_CALENDAR, BusinessCalendar
from fleet_forecast.features.history import row_distances
from fleet_forecast.features.peer_prior import PeerSample, fit_peer_prior
from fleet_forecast.features.peers import Peers, PeerTable, ProfileMembers, medians_without_one, order_statistics
from fleet_forecast.features.scaling import FleetScaling, fit_scaling
from fleet_forecast.features.seasonality import SEASONAL_MEAN_DAYS, seasonal_component
from fleet_forecast.features.window_batch import Windows
from fleet_forecast.features.windows import (
    CALENDAR_SIZES,
    INPUT_GRID,
    Calendar,
    FleetArrays,
    WindowRequest,
    WindowSpec,
    asinh,
    build_windows,
)
from fleet_forecast.network.build import build_network, dataset_of
from fleet_forecast.network.model import ForecastModel, window_tensors

METRICS = ("cpu_pct", "net_in_mb_s")
PROFILES = ("database", "web_api")
STEP_SECONDS = 1800
ROUNDING = 0.5 / INPUT_GRID + 1e-4
FIRST_STEP = int(np.datetime64("2026-03-02T00:00:00", "s").astype(np.int64)) // STEP_SECONDS


@pytest.fixture(scope="module")
def spec() -> WindowSpec:
    return WindowSpec(METRICS, STEP_SECONDS, DEFAULT_CALENDAR, context_steps=48, horizon_steps=16)


@pytest.fixture(scope="module")
def values() -> np.ndarray:
    random = np.random.default_rng(1)
    fleet = random.uniform(5, 80, (3, 600, 2)).astype(np.float32)
    fleet[random.random(fleet.shape) < 0.1] = np.nan
    return fleet


@pytest.fixture(scope="module")
def scaling(values: np.ndarray) -> FleetScaling:
    return fit_scaling(values, {"cpu_pct": "percent", "net_in_mb_s": "rate"}, ("database", "web_api", None), 48)


def windows_at(
    spec: WindowSpec,
    scaling: FleetScaling,
    values: np.ndarray,
    origins: list[int],
    encoder_steps: int = 48,
    known_steps: int = 10_000,
) -> Windows:
    """Windows of servers 0, 1, 2, ... at `origins`."""
    rows = np.arange(len(origins)) % len(values)
    at = np.array(origins)
    calendar = Calendar.over(FIRST_STEP - 100, FIRST_STEP + 1000, STEP_SECONDS, spec.calendar)
    fleet = FleetArrays(spec, scaling, calendar, scaling.bounds.transform(values))
    known, profile_rows = np.full(len(origins), known_steps), np.array([1, 2, 0])[rows]
    return build_windows(fleet, WindowRequest(rows, at, FIRST_STEP + at, profile_rows, encoder_steps, known))


def windows_of_rows(spec: WindowSpec, scaling: FleetScaling, values: np.ndarray, origins: list[int]) -> Windows:
    """As windows_at, of server 0, with the distances of its rows."""
    calendar = Calendar.over(FIRST_STEP - 100, FIRST_STEP + 1000, STEP_SECONDS, spec.calendar)
    distances = row_distances(values, spec.day_steps)
    fleet = FleetArrays(spec, scaling, calendar, scaling.bounds.transform(values), None, distances)
    at, rows = np.array(origins), np.zeros(len(origins), dtype=np.int64)
    return build_windows(fleet, WindowRequest(rows, at, FIRST_STEP + at, rows, 48, np.full(len(origins), 10_000)))


@pytest.mark.parametrize("distance", [2, 3, 6])
def test_rows_that_are_far_apart_have_the_daily_component_of_dense_rows(
    spec: WindowSpec, scaling: FleetScaling, distance: int
) -> None:
    steps = np.arange(500)
    dense = np.repeat(
        (50 + 35 * np.sin(2 * np.pi * steps / spec.day_steps)).astype(np.float32)[None, :, None], 2, axis=2
    )
    coarse = np.full_like(dense, np.nan)
    coarse[:, ::distance] = dense[:, ::distance]
    origins = [400 // distance * distance, 430 // distance * distance + 1]  # at a row, and one step after it
    expected, found = (windows_of_rows(spec, scaling, values, origins).target_scale for values in (dense, coarse))
    assert (np.abs(found.loc - expected.loc).max(axis=1) < 0.1 * np.ptp(expected.loc, axis=1)).all()


def test_rows_after_the_origin_do_not_change_a_window_of_rows_that_are_far_apart(
    spec: WindowSpec, scaling: FleetScaling, values: np.ndarray
) -> None:
    coarse = np.full_like(values, np.nan)
    coarse[:, ::3] = values[:, ::3]
    later = coarse.copy()
    later[:, 402:] *= 0.5
    origins = [399, 400, 401]
    before, after = (windows_of_rows(spec, scaling, rows, origins) for rows in (coarse, later))
    assert_equal(before, after)


def test_lengths_follow_from_the_step() -> None:
    five_minutes = WindowSpec(METRICS, 300, BusinessCalendar("UTC"), 288, 96)
    assert (five_minutes.day_steps, five_minutes.seasonal_lag_steps, five_minutes.history_steps) == (288, 288, 2022)
    assert five_minutes.encoder_lengths == (1, 3, 6, 12, 24, 48, 96, 192, 288)
    assert WindowSpec(METRICS, 60, BusinessCalendar("UTC"), 1440, 480).history_steps == 7 * 1440 + 30
    assert WindowSpec(METRICS, 300, BusinessCalendar("UTC"), 288, 300).seasonal_lag_steps == 2 * 288


def test_asinh_is_correct_for_any_float32() -> None:
    sizes = np.concatenate([[0.0], np.logspace(-9, 38, 4000)]).astype(np.float32)
    units = np.concatenate([sizes, -sizes, [np.nan]])
    np.testing.assert_allclose(asinh(units), np.arcsinh(units.astype(np.float64)), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("context_steps", "horizon_steps"), [(48, 16), (20, 10), (60, 50)])
def test_nothing_older_than_history_steps_is_read(
    values: np.ndarray, scaling: FleetScaling, context_steps: int, horizon_steps: int
) -> None:
    spec = WindowSpec(METRICS, STEP_SECONDS, DEFAULT_CALENDAR, context_steps, horizon_steps)
    origin = 520
    older = values.copy()
    older[:, : origin + 1 - spec.history_steps] = 1.0
    before, after = (windows_at(spec, scaling, fleet, [origin], context_steps) for fleet in (values, older))
    assert_equal(before, after)


@pytest.mark.filterwarnings("ignore:Found 1 unknown classes")
def test_windows_equal_those_of_timeseriesdataset(spec: WindowSpec, scaling: FleetScaling, values: np.ndarray) -> None:
    """Same columns, same order, same numbers, when the library is given the same variables (one series per window)."""
    windows = windows_at(spec, scaling, values, [400, 450, 501])
    model = ForecastModel(build_network(spec, PROFILES, 8), spec, scaling)
    ours = model.network_inputs(window_tensors(windows).inputs)
    theirs, _ = next(iter(library_dataset(spec, windows).to_dataloader(train=False, batch_size=3)))
    assert theirs["encoder_lengths"].tolist() == [48, 48, 48]
    assert theirs["decoder_lengths"].tolist() == [16, 16, 16]
    for name in ("encoder_cont", "decoder_cont", "encoder_cat", "decoder_cat"):
        expected = theirs[name]
        if name.endswith("cont"):  # variables of one side only are not compared on the other, which never reads them
            side = name.removesuffix("_cont")
            unread = set(spec.decoder_reals if side == "encoder" else spec.encoder_reals)
            kept = [i for i, real in enumerate(model.network.hparams.x_reals) if real not in unread]
            torch.testing.assert_close(ours[name][..., kept], expected[..., kept], msg=name)
        else:
            assert torch.equal(ours[name], expected), name


def library_dataset(spec: WindowSpec, windows: Windows) -> TimeSeriesDataSet:
    """The windows' variables as a frame, one series per window, in pytorch-forecasting's own data set."""
    steps = spec.context_steps + spec.horizon_steps
    parts = []
    for window in range(len(windows.inputs.profile)):
        frame = pd.DataFrame({"server": f"w{window}", "step": np.arange(steps)})
        frame["profile"] = ["mainframe", *PROFILES][windows.inputs.profile[window]]  # a profile it was not fitted on
        calendar = np.concatenate([windows.inputs.encoder_calendar[window], windows.inputs.decoder_calendar[window]])
        for column, name in enumerate(CALENDAR_SIZES):
            frame[name] = [f"{code:02d}" for code in calendar[:, column]]
        frame["market_open"] = np.concatenate(
            [windows.inputs.encoder_market[window], windows.inputs.decoder_market[window]]
        )[:, 0]
        reals = dict(zip(spec.static_reals, windows.inputs.static[window], strict=True))
        reals |= dict(
            zip(spec.encoder_reals, pad(windows.inputs.encoder[window], 0, spec.horizon_steps).T, strict=True)
        )
        reals |= dict(
            zip(spec.decoder_reals, pad(windows.inputs.decoder[window], spec.context_steps, 0).T, strict=True)
        )
        parts.append(frame.assign(**reals, **dict.fromkeys(spec.metrics, 0.0)))
    frame = pd.concat(parts, ignore_index=True)
    return dataset_of(frame, spec, PROFILES, spec.context_steps, spec.horizon_steps)


def assert_equal(one: Windows, other: Windows) -> None:
    for name, field in one.fields().items():
        np.testing.assert_array_equal(field, other.fields()[name], err_msg=name)


def pad(steps: np.ndarray, before: int, after: int) -> np.ndarray:
    return np.pad(steps, ((before, after), (0, 0)))


def seasonal_mean_by_loop(transformed: np.ndarray, at: int, spec: WindowSpec) -> np.ndarray:
    """Mean over the earlier days at exactly this time: [metric], NaN where none was measured."""
    days = [transformed[at - spec.seasonal_lag_steps - day * spec.day_steps] for day in range(SEASONAL_MEAN_DAYS)]
    return np.nanmean(days, axis=0)


def component_by_loop(transformed: np.ndarray, origin: int, spec: WindowSpec) -> np.ndarray:
    """Of the steps of the horizon: [H, metric]."""
    steps = range(origin + 1 - spec.context_steps, origin + 1 + spec.horizon_steps)
    seasonal_mean = np.stack([seasonal_mean_by_loop(transformed, at, spec) for at in steps])[None]
    context = transformed[None, origin + 1 - spec.context_steps : origin + 1]
    return seasonal_component(context, seasonal_mean, spec.day_steps).component[0, spec.context_steps :]


def test_the_window_of_a_server_that_repeats_its_day_is_flat_without_the_seasonal_component(
    spec: WindowSpec, scaling: FleetScaling
) -> None:
    """And its loc is the next day, up to a small shrinkage toward the profile."""
    day = np.random.default_rng(5).uniform(30, 60, (1, 48, 2)).astype(np.float32)
    windows = windows_at(spec, scaling, np.tile(day, (1, 12, 1)), [480])
    tomorrow = scaling.bounds.transform(np.tile(day, (1, 2, 1)))[:, 481 % 48 :][:, :16]
    np.testing.assert_allclose(np.diff(windows.target_scale.loc, axis=1), np.diff(tomorrow, axis=1), atol=0.01)
    np.testing.assert_allclose(windows.target_scale.loc, tomorrow, rtol=0.02)
    assert np.ptp(windows.inputs.encoder[..., 0::2], axis=1).max() < 0.02
    np.testing.assert_allclose(windows.inputs.static[:, 4:6], 1.0, atol=1e-3)


def test_seasonal_lags_equal_a_plain_loop(spec: WindowSpec, scaling: FleetScaling, values: np.ndarray) -> None:
    origin, server, half = 420, 1, spec.half_width_steps
    windows = windows_at(spec, scaling, values, [100, origin])
    transformed = scaling.bounds.transform(values)[server]
    component = component_by_loop(transformed, origin, spec)
    for horizon_step in (1, 7, 16):
        at = origin + horizon_step
        row = windows.inputs.decoder[1, horizon_step - 1]
        shares = []
        for metric in range(2):
            loc, scale = windows.target_scale.loc[1, horizon_step - 1, metric], windows.target_scale.scale[1, metric]
            latest = transformed[at - 48, metric]
            expected = 0.0 if np.isnan(latest) else np.arcsinh((latest - loc) / scale)
            assert row[2 * metric] == pytest.approx(expected, abs=ROUNDING)
            smoothed = [
                transformed[at - 48 * day + offset, metric]
                for day in range(1, SEASONAL_MEAN_DAYS + 1)
                for offset in range(-half, half + 1)
            ]
            measured = [value for value in smoothed if not np.isnan(value)]
            shares.append(len(measured) / len(smoothed))
            mean = np.arcsinh((np.mean(measured) - loc + component[horizon_step - 1, metric]) / scale)
            assert row[2 * metric + 1] == pytest.approx(mean, abs=ROUNDING)
        assert row[-1] == pytest.approx(np.mean(shares), abs=ROUNDING)


@pytest.mark.parametrize("horizon_steps", [16, 48, 60])
def test_values_after_the_origin_do_not_change_a_window(
    scaling: FleetScaling, values: np.ndarray, horizon_steps: int
) -> None:
    spec = WindowSpec(METRICS, STEP_SECONDS, DEFAULT_CALENDAR, 48, horizon_steps)
    origins = [400, 410, 420]
    before = windows_at(spec, scaling, values, origins)
    changed = values.copy()
    for server, origin in enumerate(origins):
        changed[server, origin + 1 :] = 1.0
    assert_equal(before, windows_at(spec, scaling, changed, origins))


def test_unknown_steps_equal_unmeasured_steps(spec: WindowSpec, scaling: FleetScaling, values: np.ndarray) -> None:
    """Six known steps give the window of a server whose older steps were never measured."""
    origins, known = [400, 410, 420], 6
    unmeasured = values.copy()
    for server, origin in enumerate(origins):
        unmeasured[server, : origin - known + 1] = np.nan
    limited = windows_at(spec, scaling, values, origins, encoder_steps=12, known_steps=known)
    assert_equal(limited, windows_at(spec, scaling, unmeasured, origins, 12))


def test_masks_are_one_where_a_value_was_measured(spec: WindowSpec, scaling: FleetScaling, values: np.ndarray) -> None:
    windows = windows_at(spec, scaling, values, [400])
    measured = ~np.isnan(values[0, 400 - 47 : 401])
    np.testing.assert_array_equal(windows.inputs.encoder[0, :, 1::2], measured)
    assert (windows.inputs.encoder[0, :, 0::2][~measured] == 0).all()


def test_calendar_is_in_business_time_with_daylight_saving_and_holidays() -> None:
    moments = ["2026-07-01T13:30", "2026-12-01T14:30", "2026-12-25T15:00", "2026-07-04T03:00"]
    expected = [(19, 2, 1.0), (19, 1, 1.0), (20, 7, 0.0), (46, 7, 0.0)]  # half hour, kind of day, market open
    for moment, (half_hour, day_kind, market_open) in zip(moments, expected, strict=True):
        step = int(np.datetime64(moment, "s").astype(np.int64)) // 300
        calendar = Calendar.over(step, step, 300, DEFAULT_CALENDAR)
        assert calendar.half_hour_and_day[0].tolist() == [half_hour, day_kind], moment
        assert calendar.market_open[0, 0] == market_open, moment


def fleet_with_peers(
    spec: WindowSpec, scaling: FleetScaling, random: np.random.Generator, early_spread: float = 1.0
) -> FleetArrays:
    """Six servers of one profile that share their load, and one without a profile.

    early_spread: factor of the differences between the servers in the first two fifths of the time.
    """
    load = 40 + 15 * np.sin(2 * np.pi * np.arange(600) / 48) + random.normal(0, 4, 600)
    own = random.normal(0, 5, (7, 1, 2)) + random.normal(0, 1, (7, 600, 2))
    own[:, :240] *= early_spread
    values = np.clip(load[None, :, None] + own, 0.1, 99)
    values[random.random(values.shape) < 0.1] = np.nan
    names, profiles = [str(row) for row in range(7)], ["web_api"] * 6 + [None]
    members = ProfileMembers.of(names, profiles)
    physical = values.astype(np.float32)
    peers = Peers(PeerTable.build(physical, members, FIRST_STEP), members.mask(7)).of_fleet(profiles, scaling.bounds)
    sample = PeerSample(
        physical, scaling.bounds, np.arange(7), np.array([2] * 6 + [0]), peers, FIRST_STEP, 1e-3 * scaling.scale
    )
    prior = fit_peer_prior(sample, spec.lag_steps(48), spec.history_steps)
    calendar = Calendar.over(FIRST_STEP - 100, FIRST_STEP + 1000, STEP_SECONDS, spec.calendar)
    transformed = scaling.bounds.transform(physical)
    return FleetArrays(spec, replace(scaling, peer_prior=prior), calendar, transformed, peers)


@pytest.fixture(scope="module")
def peer_fleet(spec: WindowSpec, scaling: FleetScaling) -> FleetArrays:
    return fleet_with_peers(spec, scaling, np.random.default_rng(3))


def request_of(known_steps: list[int], masked_profile: bool = False, masked_peers: bool = False) -> WindowRequest:
    windows = len(known_steps)
    profile_rows = np.full(windows, 0 if masked_profile else 2)
    at = np.full(windows, 450)
    masked = np.full(windows, masked_peers)
    return WindowRequest(
        np.arange(windows), at, FIRST_STEP + at, profile_rows, 48, np.array(known_steps), masked_peers=masked
    )


@pytest.mark.parametrize("masked", ["masked_profile", "masked_peers"])
def test_windows_without_peers_are_those_of_a_fleet_without_peers(peer_fleet: FleetArrays, masked: str) -> None:
    """To the bit, also beside windows with peers."""
    request = request_of([1000, 20, 1, 0], **{masked: True})
    without = build_windows(peer_fleet._replace(peers=None), request)
    assert_equal(build_windows(peer_fleet, request), without)
    some = replace(request_of([1000, 20, 1, 0]), profile_rows=np.array([2, 0, 2, 0]))
    mixed, alone = build_windows(peer_fleet, some), build_windows(peer_fleet._replace(peers=None), some)
    for name, field in mixed.fields().items():
        np.testing.assert_array_equal(field[[1, 3]], alone.fields()[name][[1, 3]], err_msg=name)


def test_a_server_without_history_has_the_loc_of_its_peers_now(peer_fleet: FleetArrays) -> None:
    windows = build_windows(peer_fleet, request_of([0] * 4))
    for window in range(4):
        others = [row for row in range(6) if row != window]
        expected = np.nanmean(peer_fleet.transformed[others, 403:451], axis=(0, 1))
        assert np.abs(windows.target_scale.loc[window].mean(axis=0) - expected).max() < 6
    assert (windows.inputs.encoder[..., 1::2] == 0).all()
    assert (windows.inputs.encoder[..., 0::2] != 0).mean() > 0.9
    np.testing.assert_allclose(windows.inputs.static[:, 7], np.log1p(5) / 4)


def test_the_first_steps_move_loc_towards_the_servers_own_level(peer_fleet: FleetArrays) -> None:
    none, hour = (build_windows(peer_fleet, request_of([known] * 6)).target_scale.loc for known in (0, 4))
    following = peer_fleet.transformed[:6, 451:467]
    errors = [np.nanmean(np.abs(following - loc)) for loc in (none, hour)]
    assert errors[1] < 0.7 * errors[0]


def test_peers_after_the_origin_and_a_members_own_hidden_values_are_not_used(peer_fleet: FleetArrays) -> None:
    changed = peer_fleet.transformed.copy()
    changed[0, 200:451] += 1.0  # server 0 without history: its values are no input, but its peers' level must not move
    request = request_of([0])
    peers = peer_fleet.peers
    assert peers is not None
    medians = medians_without_one(order_statistics(changed[:6]))
    other = peers._replace(medians=type(medians)(*(field[None] for field in medians)))
    before = build_windows(peer_fleet, request)
    after = build_windows(peer_fleet._replace(transformed=changed, peers=other), request)
    for name, field in before.fields().items():
        np.testing.assert_allclose(after.fields()[name], field, rtol=1e-5, atol=1e-5, err_msg=name)


def test_the_weight_of_the_own_level_grows_with_the_history(peer_fleet: FleetArrays) -> None:
    prior = peer_fleet.scaling.peer_prior
    assert prior is not None
    assert prior.exists.tolist() == [[False, False], [False, False], [True, True]]
    weight = prior.level_weight[2, 0]
    assert weight[0] == 0.0
    assert weight[1] > 0.5  # the servers' levels differ by more than a step's noise
    assert weight[-1] > weight[1] - 0.05
    assert (np.diff(prior.quantiles[2], axis=-1) >= 0).all()


def test_the_peer_prior_is_that_of_the_later_half_of_the_time(spec: WindowSpec, scaling: FleetScaling) -> None:
    """Differences between the servers in the first two fifths, six times as large, hardly widen the forecasts."""
    steady, settled = (
        fleet_with_peers(spec, scaling, np.random.default_rng(3), early_spread).scaling.peer_prior
        for early_spread in (1.0, 6.0)
    )
    assert steady is not None
    assert settled is not None
    np.testing.assert_allclose(settled.error_scale[2], steady.error_scale[2], rtol=0.15)
