"""Routes that shards of one fleet call.

Imports routes; imported by the application.
"""
