"""Replay of the daemon's alerts over a past period: forecasts of every step, alerts, their evaluation, a report.

Imports alerting and forecasts; imported by commands and the benchmarks.
"""
