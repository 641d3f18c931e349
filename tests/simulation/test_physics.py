"""The simulated fleet against its documentation and against slow references."""

from dataclasses import replace

import numpy as np
import pytest

from data_contract import METRICS, STATES
from fleet_forecast.contract.calendar import DEFAULT_CALENDAR, business_time
from fleet_forecast.simulation.calibration import burst, calibrate, noise_mean, soft_limit
from fleet_forecast.simulation.fleet import Fleet
from fleet_forecast.simulation.metric_model import simulated
from fleet_forecast.simulation.noise import sources
from fleet_forecast.simulation.scenario import Scenario, Trace, World
from fleet_forecast.simulation.simulator import Simulator, simulate
from fleet_forecast.simulation.states import (
    CRITICAL,
    HEALTHY,
    HEAVY_LOAD,
    IDLE,
    MAINTENANCE,
    MORNING_SPIKE,
    OFFLINE,
    RECOVERY,
)
from server_profiles import PROFILES, ServerProfile

START = np.datetime64("2026-09-14T04:00:00", "s")  # midnight in New York, before ten weeks without a holiday
WEEKS, SERVERS, FLEETS = 3, 60, 6
CPU, MEM, DISK, NET_IN, NET_OUT, LATENCY = range(6)


@pytest.fixture(scope="module")
def healthy():
    """60 servers of each profile for three weeks without incidents: metrics by profile, business time of the steps.

    They are of six fleets, because the servers of one fleet share demand. Servers of a fleet follow each other.
    """
    fleets = [Fleet.of(dict.fromkeys(ServerProfile, SERVERS // FLEETS), seed) for seed in range(7, 7 + FLEETS)]
    traces = [simulate(Scenario(f, START, WEEKS * 2016, 300, incident_rate=0, outage_rate=0)) for f in fleets]
    codes = np.concatenate([fleet.profile_codes for fleet in fleets])
    by_code = np.argsort(codes, kind="stable")
    joined = [np.concatenate(arrays)[by_code] for arrays in zip(*(trace[1:] for trace in traces), strict=True)]
    trace = Trace(traces[0].timestamps, *joined)
    maintenance = (trace.states == MAINTENANCE)[:, :, None]
    metrics = np.where(maintenance, np.nan, trace.metrics).astype(np.float64)
    by_profile = dict(zip(ServerProfile, np.split(metrics, len(ServerProfile)), strict=True))
    return by_profile, business_time(trace.timestamps, DEFAULT_CALENDAR), trace


def small(**options):
    fleet = Fleet.of({"web_api": 3, "database": 2, "ml_compute": 1}, seed=5)
    return Scenario(**{"fleet": fleet, "start": START, "steps": 500, "step_seconds": 300, **options})


def same(one, other):
    return np.array_equal(one, other, equal_nan=True)


# --- against the documentation --------------------------------------------------------------------------------------


@pytest.mark.parametrize("profile", ServerProfile)
def test_the_weekly_mean_of_healthy_servers_is_the_documented_baseline(healthy, profile):
    means = np.nanmean(healthy[0][profile], axis=(0, 1))
    documented = np.array([baseline.mean for baseline in PROFILES[profile].baselines.values()])
    assert np.abs(means / documented - 1).max() < 0.05


@pytest.mark.parametrize("profile", ServerProfile)
def test_the_deviation_around_the_rhythm_is_the_documented_spread(healthy, profile):
    weeks = healthy[0][profile].reshape(-1, 2016, len(simulated()))  # [server and week, time of week, metric]
    counted = (~np.isnan(weeks)).sum(axis=0)  # 0 in maintenance
    rhythm = np.nansum(weeks, axis=0) / np.where(counted, counted, np.nan)
    deviation = np.sqrt(np.nanmean((weeks - rhythm) ** 2, axis=(0, 1)))
    documented = np.array([baseline.spread for baseline in PROFILES[profile].baselines.values()])
    assert np.abs(deviation / documented - 1).max() < 0.25


UPLIFTS = [  # profile, hours of the uplift, hours of ordinary demand, documented uplift; on business days
    ("ml_compute", (19, 24), (7, 9), 0.4),
    ("ml_compute", (0, 7), (16, 19), 0.4),
    ("database", (9, 11), (19, 24), 0.2),
    ("database", (16, 19), (0, 8), 0.4),
    ("web_api", (9.5, 16), (16.5, 19.5), 0.3),
    ("web_api", (0, 6.5), (7.5, 8.5), -0.5),
    ("web_api", (20.5, 24), (16.5, 19.5), -0.5),
    ("conductor_mgmt", (16, 19), (10, 15.5), 0.4),
    ("data_ingest", (9.5, 16), (0, 9), 0.5),
    ("risk_analytics", (16, 19), (0, 15.5), 1.0),
]


@pytest.mark.parametrize(("profile", "hours", "ordinary", "uplift"), UPLIFTS)
def test_documented_uplifts_are_measurable_in_disk_network_and_the_odds_of_cpu(
    healthy, profile, hours, ordinary, uplift
):
    metrics, when = healthy[0][ServerProfile(profile)], healthy[1]
    hour = when.minute_of_day / 60

    def during(span):
        return metrics[:, (when.day_of_week < 5) & (hour >= span[0]) & (hour < span[1])]

    lifted, plain = during(hours), during(ordinary)
    for metric in (DISK, NET_IN, NET_OUT):
        measured = np.nanmean(lifted[..., metric]) / np.nanmean(plain[..., metric]) - 1
        assert abs(measured - uplift) < abs(uplift) / 3, METRICS[metric]
    odds = [np.nanmean(part[..., CPU]) / (100 - np.nanmean(part[..., CPU])) for part in (lifted, plain)]
    assert abs(odds[0] / odds[1] - 1 - uplift) < abs(uplift) / 3


def test_documented_peaks_are_measurable(healthy):
    by_profile, when, _ = healthy
    business = when.day_of_week < 5

    def disk(profile, first, last, days=business):
        minutes = (when.minute_of_day >= first * 60) & (when.minute_of_day < last * 60)
        return np.nanmean(by_profile[ServerProfile(profile)][:, days & minutes, DISK])

    assert disk("web_api", 9, 9.5) > 1.1 * disk("web_api", 10, 11.5)
    assert disk("web_api", 12, 13) > 1.05 * disk("web_api", 13.5, 15.5)
    assert disk("conductor_mgmt", 9, 9.75) > 1.3 * disk("conductor_mgmt", 10, 15)
    assert disk("data_ingest", 16, 17) > 1.05 * disk("data_ingest", 11, 15)
    assert disk("ml_compute", 9, 16) < 0.95 * disk("ml_compute", 7, 9)
    assert disk("ml_compute", 0, 24, ~business) > 1.1 * disk("ml_compute", 0, 24)
    assert disk("generic", 9, 17) == pytest.approx(disk("generic", 20, 24), rel=0.05)


def test_memory_follows_demand_weakly_and_slowly(healthy):
    by_profile, when, _ = healthy
    risk, business = by_profile[ServerProfile.RISK_ANALYTICS], when.day_of_week < 5
    by_hour = [np.nanmean(risk[:, business & (when.minute_of_day // 60 == hour)], axis=(0, 1)) for hour in range(24)]
    memory, disk = np.array(by_hour)[:, MEM], np.array(by_hour)[:, DISK]
    assert disk.argmax() in (16, 17, 18)
    assert memory.argmax() in (18, 19, 20), "it still fills when demand is at its height"
    assert np.ptp(memory) / memory.mean() < 0.1 * np.ptp(disk) / disk.mean()


def test_the_rhythm_follows_business_time_over_daylight_saving():
    fleet = Fleet.of({"risk_analytics": 40}, seed=3)
    trace = simulate(Scenario(fleet, np.datetime64("2026-10-26T00:00:00", "s"), 2 * 2016, 300, incident_rate=0))
    disk = np.nanmean(trace.metrics[..., DISK], axis=0)
    utc_hour = (trace.timestamps - trace.timestamps.astype("datetime64[D]")).astype(int) / 3600
    summer, weekday = trace.timestamps < np.datetime64("2026-11-01"), trace.timestamps.astype("datetime64[D]")
    business = np.is_busday(weekday)
    for season, first in ((summer, 20), (~summer, 21)):  # 16:00 in New York
        inside = season & business & (utc_hour >= first + 0.5) & (utc_hour < first + 2.5)
        before = season & business & (utc_hour >= first - 1) & (utc_hour < first - 0.1)
        assert disk[inside].mean() > 1.6 * disk[before].mean()


def test_percentages_saturate_rarely_and_softly(healthy):
    trace = healthy[2]
    assert np.nanmax(trace.metrics[..., [CPU, MEM]]) <= 100
    assert np.mean(trace.metrics[..., CPU] >= 99.95) < 0.02
    assert np.mean(trace.metrics[..., MEM] >= 99.95) < 0.02
    assert np.nanmin(trace.metrics) >= 0


# --- noise ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def residuals(healthy):
    """Generic servers have no rhythm: logarithms or log odds without their mean, [server, step, metric]."""
    values = healthy[0][ServerProfile.GENERIC]
    logs = np.log(np.where(np.arange(len(simulated())) < 2, values / (100 - values), values))
    return logs - logs.mean(axis=1, keepdims=True)


def test_metrics_of_a_server_are_correlated_but_different(residuals):
    correlation = np.mean([np.corrcoef(server.T) for server in residuals], axis=0)
    others = correlation[~np.eye(len(simulated()), dtype=bool)]
    assert others.max() < 0.9
    for one, other in ((CPU, DISK), (CPU, NET_IN), (CPU, LATENCY), (NET_IN, NET_OUT)):
        assert correlation[one, other] > 0.3
    assert correlation[NET_IN, NET_OUT] > correlation[NET_IN, DISK]
    assert correlation[MEM, [CPU, DISK, NET_IN]].max() < 0.4


def test_noise_is_autocorrelated_and_its_innovations_are_independent_between_servers(residuals):
    for metric in range(len(simulated())):
        series = residuals[..., metric]
        lag_1, lag_day = (np.mean(series[:, lag:] * series[:, :-lag]) / np.mean(series**2) for lag in (1, 288))
        assert 0.5 < lag_1 < 1
        assert lag_day < (0.7 if metric == MEM else 0.2)
    steps = np.diff(residuals[..., CPU], axis=1)
    between = np.corrcoef(steps)[~np.eye(SERVERS, dtype=bool)]
    assert np.abs(between).max() < 6 / np.sqrt(steps.shape[1])


@pytest.fixture(scope="module")
def around_rhythm(healthy):
    """Standardised deviations from each server's own week, by profile: [fleet, server, time, metric]."""

    def standardised(values):
        logs = np.log(np.where(np.arange(len(simulated())) < 2, values / (100.01 - values), values + 0.01))
        weeks = logs.reshape(FLEETS, SERVERS // FLEETS, WEEKS, 2016, len(simulated()))
        deviations = (weeks - weeks.mean(axis=2, keepdims=True)).reshape(*weeks.shape[:2], -1, len(simulated()))
        return np.nan_to_num(deviations / np.nanstd(deviations, axis=2, keepdims=True))  # 0 in maintenance

    return {profile: standardised(values) for profile, values in healthy[0].items()}


@pytest.mark.parametrize("profile", ServerProfile)
def test_servers_of_a_profile_are_correlated_by_the_documented_share(around_rhythm, profile):
    deviations = around_rhythm[profile]
    servers, steps = deviations.shape[1:3]
    total = (deviations.sum(axis=1) ** 2).mean(axis=(0, 1))  # [metric] servers + correlation * servers * (servers - 1)
    correlation = (total - servers * (deviations**2).mean(axis=(0, 1, 2))) / (servers * (servers - 1))
    assert steps == WEEKS * 2016
    assert correlation[[CPU, DISK, NET_IN, NET_OUT, LATENCY]] == pytest.approx(
        np.full(5, PROFILES[profile].shared_demand), abs=0.08
    )
    assert abs(correlation[MEM]) < 0.1, "memory depends on the data that a server holds"


def test_profiles_of_a_fleet_and_fleets_share_nothing(around_rhythm):
    means = np.array(
        [deviations.mean(axis=1) for deviations in around_rhythm.values()]
    )  # [profile, fleet, time, metric]
    means = means[..., [CPU, NET_IN, LATENCY]].reshape(len(around_rhythm) * FLEETS, -1, 3)
    for metric in range(3):
        correlation = np.corrcoef(means[..., metric])[~np.eye(len(means), dtype=bool)]
        assert abs(correlation.mean()) < 0.02
        assert correlation.std() < 0.2


def test_shared_demand_changes_neither_the_variance_nor_the_autocorrelation_of_a_server():
    lags = np.array([1, 3, 6])
    for profile in ("web_api", "generic"):
        scenario = Scenario(Fleet.of({profile: 1}, seed=8), START, 60_000, 300)
        noise, scale = Simulator(World.of(scenario)).noise.advance(60_000)[:, 0], scenario.fleet.traits.time_scale[0]
        fast = noise[1]
        assert fast.var() == pytest.approx(1, abs=0.06)
        autocorrelation = [np.mean(fast[lag:] * fast[:-lag]) / fast.var() for lag in lags]
        assert autocorrelation == pytest.approx(np.exp(-lags * 5 / (25 * scale)), abs=0.04)


def test_rates_have_bursts_beyond_a_normal_distribution_of_logarithms(residuals):
    for metric in (DISK, NET_IN, NET_OUT):
        standard = residuals[..., metric] / residuals[..., metric].std()
        assert np.mean(standard**3) > 0.15
        assert np.mean(standard > 3) > 2 * 0.00135


def test_servers_of_a_profile_differ_in_level():
    fleet = Fleet.of(dict.fromkeys(ServerProfile, SERVERS), seed=7)
    metrics = simulate(Scenario(fleet, START, 2016, 300, incident_rate=0, outage_rate=0)).metrics
    for code, profile in enumerate(ServerProfile):
        levels = np.nanmean(metrics[fleet.profile_codes == code], axis=1, dtype=np.float64)  # [server, metric]
        spreads = np.array([baseline.spread for baseline in PROFILES[profile].baselines.values()])
        assert (levels.std(axis=0) > 0.3 * spreads).all()
        assert (levels.std(axis=0) < 0.9 * spreads).all()


# --- against slow references ----------------------------------------------------------------------------------------


def test_noise_is_the_plain_recursion_step_by_step():
    noise = Simulator(World.of(small()), np.array([0, 3])).noise
    first = noise.state.reshape(2, 8).astype(np.float64)
    fast = noise.advance(50)
    reference = Simulator(World.of(small()), np.array([0, 3])).noise
    sampling = np.sqrt(sources().sampling_noise)
    for position, (server, profile) in enumerate(((0, "ml_compute"), (3, "web_api"))):
        share = PROFILES[profile].shared_demand * sources().follows_demand
        decay = np.exp(-5 / (sources().correlation_minutes * small().fleet.traits.time_scale[server]))
        scale = np.sqrt(1 - decay**2)
        signal = -sampling * scale + np.sqrt(1 - sampling**2 + (sampling * scale) ** 2)
        x = first[position]
        for step in range(50):
            own = reference.streams[position].standard_normal(8, dtype=np.float32)
            common = reference.shared_streams[position].standard_normal(8, dtype=np.float32)
            innovation = np.sqrt(1 - share) * own + np.sqrt(share) * common
            x = decay * x + scale * innovation
            assert fast[:, position, step] == pytest.approx(signal * x + sampling * innovation, abs=1e-5)


def test_noise_has_variance_1_with_its_sampling_noise():
    fleet = Fleet.of({"generic": 400}, seed=1)
    simulator = Simulator(World.of(Scenario(fleet, START, 400, 300)))
    noise = simulator.noise.advance(400)
    assert noise.var(axis=(1, 2)) == pytest.approx(np.ones(8), abs=0.12)
    assert noise[:, :, 0].var(axis=1) == pytest.approx(np.ones(8), abs=0.3)


def test_rates_are_level_times_demand_times_bounded_noise_as_documented():
    """One server without rhythm, computed from its noise by the formulas of calibration.py in float64."""
    fleet = Fleet.of({"generic": 1}, seed=11)
    scenario = Scenario(fleet, START, 300, 300, incident_rate=0, outage_rate=0)
    simulator = Simulator(World.of(scenario))
    noise = simulator.noise.advance(300).astype(np.float64)[:, 0]
    trace = simulate(scenario)
    load = 0.6**0.5 * noise[0] + 0.4**0.5 * noise[1]
    calibration, traits = calibrate(ServerProfile.GENERIC), fleet.traits
    within = calibration.within * float(traits.noise_scale[0])
    weight = 0.65
    factor = soft_limit(np.exp(within[NET_IN] * burst(weight * load + (1 - weight**2) ** 0.5 * noise[2 + NET_IN])))
    level = np.exp(calibration.loc[NET_IN] + calibration.between[NET_IN] * float(traits.level[0, NET_IN]))
    expected = level * factor / noise_mean(within[NET_IN])
    assert trace.metrics[0, :, NET_IN] == pytest.approx(expected, abs=0.02)


def test_the_mean_of_the_noise_factor_is_that_of_many_draws():
    draws = soft_limit(np.exp(0.4 * burst(np.random.default_rng(1).standard_normal(2_000_000))))
    assert noise_mean(np.array(0.4)) == pytest.approx(draws.mean(), rel=2e-3)


# --- nothing but the scenario shows in the result -------------------------------------------------------------------


def test_values_do_not_depend_on_the_chunks():
    scenario = small(fork_step=333, fork_seed=9, incident_rate=20, outage_rate=20)
    whole = Simulator(World.of(scenario)).advance(500)
    simulator = Simulator(World.of(scenario))
    parts = [simulator.advance(steps) for steps in (1, 2, 97, 200, 33, 67, 100)]
    for name in ("metrics", "states", "incidents"):
        assert same(getattr(whole, name), np.concatenate([getattr(part, name) for part in parts], axis=-1))


def test_a_server_is_the_same_alone_in_a_group_and_in_a_larger_fleet():
    rates = {"incident_rate": 20, "outage_rate": 20}
    whole = simulate(small(**rates))
    alone = Simulator(World.of(small(**rates)), np.array([4])).advance(500)
    assert same(whole.metrics[4], alone.metrics[:, 0].T)
    larger = Fleet.of({"web_api": 30, "database": 20, "ml_compute": 1, "generic": 5}, seed=5)
    grown = simulate(small(fleet=larger, **rates))
    for position, name in enumerate(small().fleet.names):
        assert same(whole.metrics[position], grown.metrics[larger.names.index(name)])


def test_a_longer_scenario_begins_with_the_shorter_one():
    short, longer = simulate(small(incident_rate=20)), simulate(small(incident_rate=20, steps=900))
    assert same(short.metrics, longer.metrics[:, :500])
    assert same(short.states, longer.states[:, :500])


def test_values_depend_on_the_seed_only():
    assert same(simulate(small()).metrics, simulate(small()).metrics)
    other = Fleet.of({"web_api": 3, "database": 2, "ml_compute": 1}, seed=6)
    assert not same(simulate(small()).metrics, simulate(small(fleet=other)).metrics)


# --- forks ----------------------------------------------------------------------------------------------------------


def test_a_fork_keeps_the_past_and_draws_the_future_anew():
    rates = {"incident_rate": 10, "outage_rate": 10}
    base = simulate(small(**rates))
    forks = [simulate(small(fork_step=200, fork_seed=seed, **rates)) for seed in (1, 2)]
    for fork in forks:
        assert same(base.metrics[:, :200], fork.metrics[:, :200])
        assert same(base.states[:, :200], fork.states[:, :200])
        assert not same(base.metrics[:, 200:], fork.metrics[:, 200:])
    assert not same(forks[0].metrics[:, 200:], forks[1].metrics[:, 200:])
    assert np.corrcoef(base.metrics[0, 320:, CPU], forks[0].metrics[0, 320:, CPU])[0, 1] < 0.9


def test_a_fork_draws_the_shared_demand_anew_for_the_whole_profile():
    noise = Simulator(World.of(Scenario(Fleet.of({"web_api": 10}, seed=3), START, 2_000, 300))).noise
    futures = [one.advance(2_000)[1] for one in (noise.fork(1), noise.fork(2), noise)]
    correlation = np.corrcoef(np.concatenate(futures)).reshape(3, 10, 3, 10)
    others = ~np.eye(10, dtype=bool)
    for one in range(3):
        assert correlation[one, :, one][others].mean() == pytest.approx(PROFILES["web_api"].shared_demand, abs=0.06)
        for other in range(one):
            assert abs(correlation[one, :, other].mean()) < 0.15


def test_forks_in_memory_are_those_of_the_scenario():
    quiet = small(incident_rate=0, outage_rate=0)
    simulator = Simulator(World.of(quiet))
    simulator.advance(200)
    futures = simulator.forks(50, [1, 2, 3])
    assert futures.shape == (3, 6, 50, 6)
    for position, seed in enumerate((1, 2, 3)):
        fork = simulate(replace(quiet, fork_step=200, fork_seed=seed))
        assert same(futures[position], fork.metrics[:, 200:250])
    assert same(simulator.advance(300).metrics.transpose(1, 2, 0), simulate(quiet).metrics[:, 200:])


def test_the_actual_future_lies_within_the_distribution_of_the_forks():
    """The real future is one more draw: its rank among the forks is uniform."""
    fleet = Fleet.of({"generic": 30}, seed=2)
    scenario = Scenario(fleet, START, 300 + 97, 300, incident_rate=0, outage_rate=0)
    simulator = Simulator(World.of(scenario))
    simulator.advance(300)
    futures, truth = simulator.forks(97, range(100, 139)), simulate(scenario).metrics[:, 300:]
    ranks = (futures < truth).mean(axis=0)[:, 96]  # [server, metric] one late step: nearly independent
    assert ranks.mean() == pytest.approx(0.5, abs=0.12)
    assert 0.68 < np.mean((ranks > 0.1) & (ranks < 0.9)) < 0.92


# --- states ---------------------------------------------------------------------------------------------------------


def runs(flags):
    """Lengths of the runs of true values in each row."""
    edges = [np.flatnonzero(np.diff(np.concatenate([[0], row, [0]]).astype(int))) for row in flags]
    return np.concatenate([row[1::2] - row[::2] for row in edges])


def test_state_codes_are_positions_in_the_contract():
    names = {HEAVY_LOAD: "heavy_load", IDLE: "idle", MAINTENANCE: "maintenance", MORNING_SPIKE: "morning_spike"}
    names |= {HEALTHY: "healthy", CRITICAL: "critical_issue", RECOVERY: "recovery", OFFLINE: "offline"}
    assert tuple(names[code] for code in range(len(STATES))) == STATES


def test_states_last_minutes_to_hours_and_no_single_ticks():
    fleet = Fleet.of({"web_api": 20}, seed=4)
    trace = simulate(Scenario(fleet, START, 4 * 17_280, 5, outage_rate=5))
    for state in (HEAVY_LOAD, IDLE):
        minutes = runs(trace.states == state)[1:-1] * 5 / 60
        assert 10 < np.median(minutes) < 300
    offline = runs(trace.states == OFFLINE) * 5 / 60
    assert (offline >= 5).all()


def test_heavy_load_and_idle_change_the_metrics(healthy):
    trace = healthy[2]
    usual = np.nanmean(trace.metrics[trace.states == 0], axis=0)
    assert (np.nanmean(trace.metrics[trace.states == HEAVY_LOAD], axis=0) > usual)[[CPU, DISK, NET_IN, LATENCY]].all()
    assert (np.nanmean(trace.metrics[trace.states == IDLE], axis=0) < usual)[[CPU, DISK, NET_IN, LATENCY]].all()


def test_maintenance_is_at_its_documented_time_only(healthy):
    _, when, trace = healthy
    window = (when.day_of_week == 5) & (when.minute_of_day >= 120) & (when.minute_of_day < 180)
    at = trace.states == MAINTENANCE
    databases = np.repeat([profile == "database" for profile in ServerProfile], SERVERS)
    assert np.array_equal(at, databases[:, None] & window)


def test_morning_spikes_are_in_the_morning_of_business_days(healthy):
    _, when, trace = healthy
    spikes = (trace.states == MORNING_SPIKE).any(axis=0)
    assert spikes.any()
    assert (when.day_of_week[spikes] < 5).all()
    assert (np.abs(when.minute_of_day[spikes] - 9 * 60 - 30) <= 30 + 25).all()


def test_offline_servers_measure_nothing_and_recover_afterwards():
    fleet = Fleet.of({"database": 40}, seed=4)
    trace = simulate(Scenario(fleet, START, 2016, 300, incident_rate=0, outage_rate=10))
    offline = trace.states == OFFLINE
    assert 0.001 < offline.mean() < 0.05
    assert np.array_equal(np.isnan(trace.metrics).all(axis=2), offline)
    assert np.array_equal(np.isnan(trace.metrics).any(axis=2), offline)
    back = offline[:, :-1] & ~offline[:, 1:]
    assert (trace.states[:, 1:][back] == RECOVERY).all()
