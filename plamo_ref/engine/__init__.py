"""The machine: request → schedule → memory → batch → run → sample → output."""
