"""Times that users know about: incidents they had, silences and exclusions.

Imports contract; imported by training, serving and the scripts.
"""
