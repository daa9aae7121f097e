"""Training, evaluation and prediction on images."""
