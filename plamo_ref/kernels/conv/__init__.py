"""The causal convolution before the scan."""
