"""Whether a model's forecasts have become worse: a sequential test on daily losses, and its result in words.

The test knows numbers by day only, not where they come from.
"""
