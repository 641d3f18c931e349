"""A new model beside the one in use: whether it is worse on the newest days."""
