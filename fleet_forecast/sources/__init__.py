"""What brings rows of the data contract from outside: Prometheus.

Imports contract; imported by serving and the scripts.
"""
