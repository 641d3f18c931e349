"""HTTP routes by topic: parse, call, answer.

Imported by fleet_forecast.serving.app alone.
"""
