"""Halo attention as pure functions on tensors; see README.md in this folder."""
