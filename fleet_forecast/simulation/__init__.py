"""A simulated fleet: its servers, rhythms, noise and incidents; output files and a live feed in two sub-packages.

Imports contract; imported by the scripts alone.
"""
