"""A fleet in shards: the other shards' addresses, what is sent to them and what comes from them.

Imports storage; imported by forecasts and ingest.
"""
