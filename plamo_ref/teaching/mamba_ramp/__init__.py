"""Lesson 11: Mamba's kernels as its reader writes them, ours to lend, and how they are tried."""
