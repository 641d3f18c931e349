"""The durable store of received samples and the ring buffer of the newest steps in memory.

Imports contract alone.
"""
