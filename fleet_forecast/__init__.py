"""Forecasts of server metrics: the library behind the scripts."""

__version__ = "1.0.0"
