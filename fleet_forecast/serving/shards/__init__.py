"""A fleet in shards: the addresses of the other shards, and the exchange of samples and peers with them.

Imports storage; imported by forecasts and ingest.
"""
