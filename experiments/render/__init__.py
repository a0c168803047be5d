"""Render the rows of an experiment as tables, figures and an HTML report."""
