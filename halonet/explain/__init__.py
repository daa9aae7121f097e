"""What a classifier looked at: the relevance of each pixel for a class, and attention weights."""
