"""The weights from which a student's training starts."""
