"""Everything that a run reads, worked out before any actor exists: the runs that it needs, and its rows of data."""
