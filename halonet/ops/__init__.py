"""The operator: pure functions on tensors."""
