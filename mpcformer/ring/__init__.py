"""Ring arithmetic and randomness on tensors. Nothing here knows of owners, channels or protocols."""
