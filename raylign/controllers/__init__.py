"""The loops and what holds them: stages, actors, commits, evaluation and the summary of a run."""
