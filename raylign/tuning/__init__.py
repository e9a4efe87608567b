"""Sweeps of whole runs with Ray Tune: each trial is a run with its own placement group."""
