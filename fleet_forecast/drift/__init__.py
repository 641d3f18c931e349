"""Whether a model's forecasts have become worse: a sequential test on daily losses, and its result as text.

The test receives numbers by day and does not depend on their source.
"""
