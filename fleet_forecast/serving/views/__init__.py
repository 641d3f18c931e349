"""Further routes for the dashboard's views: heat map, risks, past forecasts, evaluation.

Imports routes' responses and everything below them.
"""
