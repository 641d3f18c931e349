"""What the daemon exposes about itself: /metrics, online scores, events, logs.

Imports forecasts and alerting; imported by routes and fleet_forecast.serving.app.
"""
