"""From forecasts to alerts: rules, detectors, the alert book, notifiers.

Imports forecasts; imported by routes and fleet_forecast.serving.app.
"""
