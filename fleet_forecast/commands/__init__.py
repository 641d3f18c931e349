"""What the scripts do once their flags are read.

Imports everything below; imported by the scripts alone.
"""
