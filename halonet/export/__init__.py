"""A model on its way out of PyTorch: files that other runtimes run, checked beside the model."""
