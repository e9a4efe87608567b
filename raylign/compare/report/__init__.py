"""The report of a comparison: claims, figures and tables, made from its records alone."""
