"""Forecasts in Python, without the scripts: a DataFrame in, a DataFrame of quantiles out.

Imports inference and contract; imported by notebooks.
"""

from fleet_forecast.notebooks.loaded_model import Forecasts, LoadedModel, load_model

__all__ = ["Forecasts", "LoadedModel", "load_model"]
