"""The kernels' checks against their twins, their times and their ceilings."""
