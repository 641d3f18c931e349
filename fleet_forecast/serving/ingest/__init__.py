"""Samples on their way in: validation and the Prometheus puller.

Imports storage; imported by routes.
"""
