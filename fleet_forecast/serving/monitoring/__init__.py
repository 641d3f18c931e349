"""The daemon's own data: /metrics, online scores of the forecasts, event streams, logs.

Imports forecasts; imported by alerting, routes and serving's root modules.
"""
