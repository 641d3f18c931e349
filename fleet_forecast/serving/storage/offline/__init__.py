"""What reads a history file beside the daemon that writes to it.

Imports storage; imported by commands.
"""
