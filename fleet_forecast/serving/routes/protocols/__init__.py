"""Routes of protocols that fleets speak already: Prometheus remote write and OTLP.

Imports routes; imported by the application.
"""
