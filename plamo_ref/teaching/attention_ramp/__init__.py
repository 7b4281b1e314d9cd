"""What lesson 10 tries a reader's kernels on, and kernels of ours for those who go on without."""
