"""Checkpoints: found, read, checked, put on the device, saved."""
