"""NumPy features shared by training and serving: grid, transform, scaling, seasonality, windows.

Imports contract; imported by network, evaluation, inference, training and serving.
"""
