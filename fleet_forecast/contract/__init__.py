"""The data contract: metric specs, schema, reading, checks, metadata, business calendar.

Imports server_profiles and the modules directly below fleet_forecast; every other package may import it.
"""
