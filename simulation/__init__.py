"""A fleet of servers that behaves like one: what metrics_generator.py writes, streams and plots.

One idea per file: randomness.py (numbers by key, in any order), fleet.py (servers and their habits), calibration.py
(documented baselines into parameters), rhythm.py (business time into demand), incidents.py (what goes wrong, when, and
how it shows), physics.py (time into metrics and states), writer.py (metrics into files), live.py (metrics to a running
daemon), plot.py (a picture).

    from simulation.fleet import Fleet
    from simulation.physics import Scenario, simulate
    fleet = Fleet.of({"web_api": 10, "database": 5}, seed=42)
    trace = simulate(Scenario(fleet, start=np.datetime64("2026-09-14T00:00:00"), steps=2016, step_seconds=300))
    trace.metrics                       # float32 [server, step, metric], NaN where offline
"""
