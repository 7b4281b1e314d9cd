"""The embedded model and the command that trained it."""
