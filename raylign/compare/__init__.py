"""Algorithms side by side: the same start, data, reference and evaluation for each."""
