"""Several processes that train one model, as torchrun starts them: each has a rank.

Imports inference; imported by training.
"""
