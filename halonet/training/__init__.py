"""What every task shares: the loop, runs, configurations, checkpoints, processes."""
