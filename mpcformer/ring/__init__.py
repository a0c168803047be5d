"""Ring arithmetic and randomness: tensors in, tensors out. Knows nothing of parties."""
