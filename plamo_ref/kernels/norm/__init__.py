"""RMS norms, alone and with the addition before them."""
