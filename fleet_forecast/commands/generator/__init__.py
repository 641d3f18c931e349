"""What metrics_generator.py does once its flags are read.

Imports the simulation and sources; imported by the script alone.
"""
