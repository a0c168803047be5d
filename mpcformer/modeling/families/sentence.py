"""How a folder in the format of sentence-transformers makes a sentence's embedding of the rows of the last layer."""

from pathlib import Path

from mpcformer.errors import UserInputError
from mpcformer.files import read_json

MODULES = "modules.json"
# What sentence-transformers calls the poolings that private engines compute.
POOLINGS = {"pooling_mode_cls_token": "first", "pooling_mode_mean_tokens": "mean"}
# The receiver brings an embedding to length one, whether the folder says so or not.
KNOWN = ("Transformer", "Pooling", "Normalize")


def pooling_of(folder: Path) -> str:
    """Return the pooling of a sentence encoder: mean, unless the folder names another one.

    Raises:
        UserInputError: the folder names a pooling or a module that private engines do not compute.
    """
    if not (folder / MODULES).is_file():
        return "mean"
    modules = read_json(folder / MODULES)
    try:
        kinds = {str(module["type"]).rsplit(".", 1)[-1]: str(module["path"]) for module in modules}
    except (TypeError, KeyError):
        raise UserInputError(f"{folder}/{MODULES} is no list of modules", "restore the checkpoint") from None
    if others := [kind for kind in kinds if kind not in KNOWN]:
        raise UserInputError(
            f"{folder}/{MODULES}: the module {others[0]} is not supported", f"these are: {', '.join(KNOWN)}"
        )
    path = folder / kinds.get("Pooling", "1_Pooling") / "config.json"
    if path.resolve().parent.parent != folder.resolve():
        raise UserInputError(f"{folder}/{MODULES} names a folder elsewhere", "restore the checkpoint")
    if not path.is_file():
        return "mean"
    settings = read_json(path)
    chosen = [name for name, is_on in settings.items() if name.startswith("pooling_mode_") and is_on is True]
    if len(chosen) != 1 or chosen[0] not in POOLINGS:
        raise UserInputError(
            f"{path}: the pooling {', '.join(chosen) or 'none'} is not supported", f"these are: {', '.join(POOLINGS)}"
        )
    return POOLINGS[chosen[0]]
