"""What makes a step cheaper to launch. Injected by build.py; the book never imports it."""
