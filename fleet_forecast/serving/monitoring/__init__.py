"""What the daemon exposes about itself: /metrics, online scores of the forecasts, event streams, logs.

Imports forecasts; imported by alerting, routes and serving's root modules.
"""
