"""Training batches: which windows an epoch has, how they are augmented, and their arrays on a CPU or a GPU.

Imports features; imported by training.
"""
