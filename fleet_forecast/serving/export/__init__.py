"""Writes forecasts to a time-series database that takes samples from the future.

Imports forecasts; imported by monitoring, routes and the application.
"""
