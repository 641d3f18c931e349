"""The daemon: what only tft_inference.py --daemon needs.

Imports every package but simulation, evaluation and training; imported by the inference script alone.
"""
