"""CrypTen programs that are measured: what people of this field compute, in a table of cases with the right results.

`python -m experiments.programs` runs them on this machine and between services, and prints the table.
"""
