"""The student that comes with the package answers two texts, by the forward pass of the engine `crypten`."""

from mpcformer.modeling.folder import first_student
from mpcformer.programs import bert_program

# The tokens of each text.
LENGTHS = [13, 9]
bert = bert_program(first_student(), LENGTHS)
