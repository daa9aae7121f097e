"""Layers around the operator."""
