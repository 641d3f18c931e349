"""A simulated fleet: its physics, its writer and its live feed.

Imports contract; imported by the scripts alone.
"""
