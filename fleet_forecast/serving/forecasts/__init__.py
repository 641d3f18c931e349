"""Forecasts of the fleet: the forecast loop, its snapshots, the model in use, forecasts on request.

Imports storage and inference; imported by monitoring, alerting and routes.
"""
