"""Routes that the dashboard's views need beside the API of forecasts: heat map, risks, past forecasts, evaluation.

Imports routes' responses and everything below them.
"""
