"""How good forecasts are: scores, baselines, rolling backtest, report. NumPy and pandas only.

Imports features and contract; imported by training, benchmarks and the scripts.
"""
