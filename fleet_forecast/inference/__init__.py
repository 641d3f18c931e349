"""Use of a trained model: model directory, engine, explanations, forecast tables, batches. No torch on a CPU.

Imports network, features and contract; imported by evaluation, training, serving and the scripts.
"""
