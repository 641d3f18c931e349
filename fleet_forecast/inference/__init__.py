"""A trained model in use: model directory, engine, explanations, forecast tables. No torch on a CPU.

Imports network, features and contract; imported by training, serving and the scripts.
"""
