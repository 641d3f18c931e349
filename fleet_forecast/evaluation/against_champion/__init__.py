"""Comparison of a new model with the one in use: whether it is worse on the newest days."""
