"""Work on fleets larger than one machine's memory: part by part, in this process or on a Ray cluster.

Imports inference and simulation; imported by commands and tft_trainer.py, which trains by Ray Train.
"""
