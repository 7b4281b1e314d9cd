"""Norm, rotation and writing of queries, keys and values."""
