"""One training run: job, split, augmentation, batches, gradients, trainer, checkpoint, ablation, publishing.

Imports network, evaluation, inference, features and contract; imported by the trainer script alone.
"""
