"""The lessons without torch, as a site that runs them in the browser."""
