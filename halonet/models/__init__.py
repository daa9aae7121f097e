"""The family of models and their weights."""
