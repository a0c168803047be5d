"""How exactly a student is computed privately. Nothing here loads torch."""

# The rings of the engine `lift`: those that rounded weights need, or those that carry every student.
PRECISIONS = (COMPACT, WIDE) = ("compact", "wide")
# The bits of rounded weights, and those that are taken where none are asked for.
BITS = (8, 6, 4)
WEIGHT_BITS = BITS[0]
