"""Measurements of the engine. A result carries its machine, its versions and its command."""
