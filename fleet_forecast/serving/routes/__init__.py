"""HTTP routes by topic: parse, call, respond.

Imported by fleet_forecast.serving.app alone.
"""
