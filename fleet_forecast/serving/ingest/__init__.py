"""Ingest of samples: validation, the sink that every route and puller calls, the Prometheus puller.

Imports storage; imported by routes.
"""
