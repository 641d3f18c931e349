"""Forecasts and checks of fleets larger than one machine's memory: part by part, in this process or on a Ray cluster.

Imports inference; imported by commands.
"""
