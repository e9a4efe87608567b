"""The comparison on the task `exact`, where score and optimum are computed without noise."""
