"""Launch files for clusters, all made from one small spec."""
