"""A trained model in use: model directory, engine, explanations, forecast tables, batches. No torch on a CPU.

Imports network, features and contract; imported by evaluation, training, serving and the scripts.
"""
