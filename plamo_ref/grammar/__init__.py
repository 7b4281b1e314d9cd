"""Grammars, compiled and followed in processes of their own. Nothing here needs torch."""
