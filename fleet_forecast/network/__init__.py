"""The Temporal Fusion Transformer in torch: build, fast forward, quantile head, loss, export.

Imports features and contract; imported by training, and by inference where a GPU or an explanation needs torch.
"""
