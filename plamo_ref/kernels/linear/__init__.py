"""Products with weights, and SwiGLU."""
