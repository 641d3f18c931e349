"""Evaluation of forecasts: scores, baselines, rolling backtest, cold start, report. NumPy and pandas only.

Imports inference, features and contract; imported by training, serving, benchmarks and the scripts.
"""
