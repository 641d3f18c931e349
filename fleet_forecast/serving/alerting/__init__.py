"""From forecasts to alerts: rules, severities, detectors, the alert book, messages.

Imports forecasts; imported by delivery, routes and serving's root modules.
"""
