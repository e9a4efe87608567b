"""The run directory and what surrounds it on disk: where it is, what it holds, its commits and its lock."""
