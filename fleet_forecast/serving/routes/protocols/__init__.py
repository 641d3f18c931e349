"""Routes of standard protocols: Prometheus remote write and OTLP.

Imports routes; imported by the application.
"""
