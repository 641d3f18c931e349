"""The durable store, its integrity checks and the ring buffer in memory.

Imports contract alone.
"""
