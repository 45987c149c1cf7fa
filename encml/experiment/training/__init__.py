"""Training on encrypted data, as an experiment: the parties' program, its checkpoints, and the report."""
