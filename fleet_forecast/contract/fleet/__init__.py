"""fleet.toml: its tables, how it is found, read and shown, and where the content of earlier files moves."""
