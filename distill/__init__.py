"""Recipes that make a student: teacher -> student -> saved checkpoint with calibrated ranges."""
