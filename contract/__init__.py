"""The data contract in parts; data_contract.py is its command and the door to its names."""
