"""Thin Ray actors around the plain classes, typed groups of them, and their placement."""
