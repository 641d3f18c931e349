"""The forecast cycle, its snapshots and the model in use.

Imports storage; imported by alerting, monitoring and routes.
"""
