"""The live feed: sends a simulated fleet step by step to a running daemon.

Imports the simulation; imported by commands alone.
"""
