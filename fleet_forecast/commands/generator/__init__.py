"""The commands of metrics_generator.py, called with parsed flags.

Imports the simulation and sources; imported by the script alone.
"""
