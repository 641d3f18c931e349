"""From forecasts to alerts: rules, detectors, the alert book, messages, notifiers.

Imports forecasts and monitoring; imported by routes and serving's root modules.
"""
