"""Trained models in a few lines: load, and use on images as they come."""
