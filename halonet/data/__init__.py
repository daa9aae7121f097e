"""Images and labels: where they come from, and their way to a model."""
