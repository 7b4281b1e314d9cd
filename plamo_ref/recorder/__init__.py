"""A run written to a file, step by step, and read again."""
