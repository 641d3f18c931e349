"""NumPy features shared by training and serving: grid, bounded transform, scaling, seasonality, windows.

Imports contract; imported by network, evaluation, inference, training and serving.
"""
