"""Comparison of methods: the same start, data, reference and evaluation for each."""
