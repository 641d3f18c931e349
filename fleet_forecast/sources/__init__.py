"""Sources of measured rows of the data contract: Prometheus, and protocols that write to the daemon.

Imports contract; imported by serving and the scripts.
"""
