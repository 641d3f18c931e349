"""Forecasts of server metrics: the library behind the scripts."""

__version__ = "2.0.0"
