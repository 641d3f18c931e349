"""Reads a history file while the daemon writes to it.

Imports storage; imported by commands.
"""
