"""The selective state-space scan."""
