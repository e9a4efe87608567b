"""The version of raylign, for the package, its build and the records of a run."""

__version__ = "0.1.0"
