"""Replay of the daemon's alerts over a past: forecasts of every step, alerts, their judgement, a report.

Imports alerting and forecasts; imported by commands and the benchmarks.
"""
