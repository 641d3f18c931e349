"""Times given by users: incidents, silences and exclusions.

Imports contract; imported by training, serving and the scripts.
"""
