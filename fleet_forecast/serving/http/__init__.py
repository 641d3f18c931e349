"""The HTTP server and its middleware: deadlines, limits, tokens.

Imported by fleet_forecast.serving.app alone.
"""
