"""Training of the risk model: labelled fleets, sampled features, trees, calibration and the curve of false alarms.

Imports risk, inference and simulation; imported by training.
"""
