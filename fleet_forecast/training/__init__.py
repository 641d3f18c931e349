"""One training run: job, split, augmentation, batches, gradients, trainer, checkpoint, ablation.

Imports network, evaluation, inference, features and contract; imported by the trainer script alone.
"""
