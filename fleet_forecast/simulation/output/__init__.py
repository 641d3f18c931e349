"""Output of a simulated scenario: files of the data contract, counts, a picture.

Imports the simulation; imported by commands alone.
"""
