"""fleet.toml: its tables, finding, reading and printing it, and the move of the content of earlier files."""
