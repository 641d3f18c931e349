"""Sources of measured rows of the data contract: Prometheus.

Imports contract; imported by serving and the scripts.
"""
