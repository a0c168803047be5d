"""The families of encoders that load: one file each, which names a family's tensors and fields as BERT names them.

After loading, a model of any family is one and the same thing: `ModelDescription` says what it computes, and its
tensors have the names of a BERT's. To add a family, write its file and add a line to `PLACES`; docs/extending.md shows
how. Importing this package loads neither torch nor any family.
"""

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mpcformer.errors import UserInputError

if TYPE_CHECKING:
    from mpcformer.modeling.families.family import Family

# By the `model_type` of a config.json: the module of this folder and the family in it.
PLACES = {
    "mpcformer": "bert.BERT",
    "bert": "bert.BERT",
    "ernie": "ernie.ERNIE",
    "roberta": "roberta.ROBERTA",
    "camembert": "roberta.ROBERTA",
    "xlm-roberta": "roberta.ROBERTA",
    "distilbert": "distilbert.DISTILBERT",
    "electra": "electra.ELECTRA",
    "mpnet": "mpnet.MPNET",
    "albert": "albert.ALBERT",
}
# What private engines would need for families that users ask for; docs/extending.md says more.
NEEDS = {
    "deberta": "scores that depend on content and distance together",
    "deberta-v2": "scores that depend on content and distance together",
    "modernbert": "rotary positions, gated units and LayerNorms before each block",
    "nomic_bert": "rotary positions and gated units",
    "new": "rotary positions and gated units",
}


def family_of(config: Mapping[str, Any], where: str) -> "Family":
    """Return the family of a config.json.

    Args:
        config: the content of the file.
        where: the checkpoint, for the error.

    Raises:
        UserInputError: private engines compute no model of this type.
    """
    name = config.get("model_type")
    if not isinstance(name, str) or name not in PLACES:
        needs = f", which needs {NEEDS[name]}" if isinstance(name, str) and name in NEEDS else ""
        supported = ", ".join(each for each in PLACES if each != "mpcformer")
        raise UserInputError(
            f"{where} holds a model of the type {name!r}{needs}; that is not supported",
            f"choose a checkpoint of one of these types: {supported}",
        )
    module, _, constant = PLACES[name].partition(".")
    found: Family = getattr(importlib.import_module(f"mpcformer.modeling.families.{module}"), constant)
    return found
