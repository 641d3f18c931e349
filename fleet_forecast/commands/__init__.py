"""The commands of the scripts, called with parsed flags.

Imports all lower packages; imported by the scripts alone.
"""
