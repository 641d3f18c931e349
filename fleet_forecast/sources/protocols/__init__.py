"""Decoders of protocols that write to the daemon: bytes of a request to rows of the contract.

Imports sources; imported by serving.
"""
