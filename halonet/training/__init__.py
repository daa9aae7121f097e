"""Training of every task: the loop, runs, configurations, checkpoints, processes."""
