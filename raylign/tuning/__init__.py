"""Ray Tune over whole runs: one trial is one run, in one placement group."""
