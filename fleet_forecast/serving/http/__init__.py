"""The HTTP server and its middleware: deadlines, limits, tokens.

Imports settings; imported by fleet_forecast.serving.app and commands.
"""
