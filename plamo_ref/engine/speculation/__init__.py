"""Tokens that are guessed and checked, several in a step: the same texts, sooner."""
