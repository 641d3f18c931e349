"""The features of the risk model, its labels and the evaluation of its alarms, shared by training and serving.

Imports contract and features; imported by inference, training and serving.
"""
