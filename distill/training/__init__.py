"""The training loop and what every recipe needs around it."""
