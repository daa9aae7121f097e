"""Classifiers: training, evaluation, prediction, recipes."""
