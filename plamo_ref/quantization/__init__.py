"""Weights in fewer bytes: schemes, which weights they are for, how numbers become them."""
