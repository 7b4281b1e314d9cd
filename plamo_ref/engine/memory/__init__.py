"""Who owns which block and which slot."""
