"""Thin Ray shells over the plain classes, groups of them with deadlines, and their placement."""
