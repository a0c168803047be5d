"""Searches what parties leave behind for secrets: words of the text, weights, keys, ring elements."""

import re
from pathlib import Path

from safetensors.numpy import load_file

from tests.tiny import BAD, GOOD

# A key in hexadecimal, or a ring element in decimal. Sessions and transcripts are named by eight or sixteen digits.
NUMBERS = re.compile(rb"[0-9a-f]{32}|\d{15,}")
MIN_BYTES = 16


def found(folder: Path, student: Path) -> list[str]:
    """Return the secrets found in the files below `folder`; logs are searched for long numbers too."""
    weights = [array.tobytes()[: 4 * MIN_BYTES] for array in load_file(student / "model.safetensors").values()]
    canaries = [word.encode() for word in (*GOOD, *BAD)] + [w for w in weights if len(w) >= MIN_BYTES and any(w)]
    leaks = []
    for path in sorted(folder.rglob("*")):
        if not path.is_file():
            continue
        data = path.read_bytes()
        leaks += [f"{path.name}: {canary!r}" for canary in canaries if canary in data]
        if path.suffix == ".log":
            leaks += [f"{path.name}: {match.group()!r}" for match in NUMBERS.finditer(data)]
        if re.fullmatch(r"core(\.\d+)?", path.name):
            leaks.append(f"{path.name} is a core file")
    return leaks
