"""Build the file system of the parties' image from the steps of parties/deploy/Dockerfile, without a container runtime.

    pip download --dest wheels torch==2.13.0
    pip download --dest wheels --no-deps --require-hashes -r requirements.txt
    sudo .venv/bin/python scripts/image.py --wheels wheels --out build/image

The folder --out gets the file system, `root`, and what a runtime has to know of the image, `image.json`. This needs
Linux, root and Debian's package `debootstrap`.

The base that the Dockerfile begins from is replaced by Debian's own packages (`BASES`), because nothing here can
download images. Each RUN step is carried out in namespaces of its own, without a network: pip takes all packages from
the folder --wheels, whatever index the step names. An instruction that this script does not know is an error.
`scripts/containers.py` runs the parties of compose.yaml from the result.
"""

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).resolve().parent.parent
DOCKERFILE = ROOT / "parties" / "deploy" / "Dockerfile"
WHEELS = "/wheels"
# What stands in for an image: a release of Debian that has this Python, and the packages that make it one.
BASES = {"python:3.11-slim": ("bookworm", "python3,python3-pip,python3-setuptools")}
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# The names of a container's namespaces: mounts, processes, messages between processes, and the machine's name.
APART = ["unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child", "--ipc", "--uts"]


class ScriptError(Exception):
    """Something that the person who called the script can mend; the message says what is wrong and how to mend it."""


@dataclass
class Image:
    """What a runtime has to know of an image.

    Args:
        env: the environment of its processes.
        user: UID:GID.
        workdir: the folder in which they start.
        entrypoint: the words before the command of a container.
    """

    env: dict[str, str] = field(default_factory=lambda: {"PATH": PATH})
    user: str = "0:0"
    workdir: str = "/"
    entrypoint: list[str] = field(default_factory=list)

    @staticmethod
    def read(folder: Path) -> "Image":
        """Return the facts of the image in a folder.

        Raises:
            ScriptError: the folder has none.
        """
        path = folder / "image.json"
        if not path.is_file():
            raise ScriptError(f"{folder} has no image.json: build one with scripts/image.py --out {folder}")
        return Image(**json.loads(path.read_text()))


def instructions(text: str) -> Iterator[tuple[str, str]]:
    """Yield the instructions of a Dockerfile: the first word in capitals, and the rest with its lines joined.

    Raises:
        ScriptError: the file uses another syntax, such as here-documents.
    """
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        word, _, rest = line.strip().partition(" ")
        if "<<" in rest:
            raise ScriptError(f"Dockerfile: {line!r} has a here-document, which this script does not know")
        yield word.upper(), rest.strip()


def ignored(path: PurePosixPath, rules: Sequence[str]) -> bool:
    """Tell whether a path of the build context is left out, by the rules of a .dockerignore.

    The last rule that fits the path, or a folder above it, decides.
    """
    names = [str(PurePosixPath(*path.parts[: n + 1])) for n in range(len(path.parts))]
    found = False
    for rule in rules:
        pattern = _pattern(rule.removeprefix("!"))
        if any(pattern.fullmatch(name) for name in names):
            found = not rule.startswith("!")
    return found


def _pattern(rule: str) -> re.Pattern[str]:
    if set(rule) & set("[\\"):
        raise ScriptError(f".dockerignore: {rule!r} has a character that this script does not know")
    parts = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    words = re.split(r"(\*\*/|\*\*|\*|\?)", rule.strip("/"))
    return re.compile("".join(parts.get(word, re.escape(word)) for word in words))


class Build:
    """One build: a file system that the instructions change, one after the other.

    Args:
        root: the folder of the file system.
        context: the folder that COPY copies from.
        rules: what COPY leaves out, see `ignored`.
        wheels: the folder of packages for pip.
    """

    def __init__(self, root: Path, context: Path, rules: Sequence[str], wheels: Path) -> None:
        self._root, self._context, self._rules, self._wheels = root, context, rules, wheels
        self.image = Image()

    def steps(self, text: str) -> None:
        """Carry out a whole Dockerfile.

        Raises:
            ScriptError: see `step`.
        """
        for word, rest in instructions(text):
            print(f"{word} {rest}", flush=True)
            self.step(word, rest)

    def step(self, word: str, rest: str) -> None:
        """Carry out one instruction.

        Raises:
            ScriptError: it is not known here, or it failed.
        """
        steps = {
            "FROM": self._from,
            "ENV": self._env,
            "WORKDIR": self._workdir,
            "COPY": self._copy,
            "RUN": self._run,
            "USER": self._user,
            "ENTRYPOINT": self._entrypoint,
        }
        if word not in steps:
            raise ScriptError(
                f"Dockerfile: {word} is an instruction that this script does not know; {', '.join(steps)}"
            )
        steps[word](rest)

    def _from(self, rest: str) -> None:
        if rest not in BASES:
            raise ScriptError(f"Dockerfile: FROM {rest} has no stand-in; add it to BASES in {Path(__file__).name}")
        release, packages = BASES[rest]
        command = ["debootstrap", "--variant=minbase", f"--include={packages}", release, str(self._root)]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        if done.returncode:
            last = (done.stdout.strip().splitlines() or ["it said nothing"])[-1]
            raise ScriptError(f"debootstrap ended with status {done.returncode}: {last}; it needs a mirror of Debian")
        for path in (self._root / "usr/lib").glob("python3*/EXTERNALLY-MANAGED"):
            path.unlink()  # The image's Python is the image's own; with this file, Debian's pip refuses to install.

    def _env(self, rest: str) -> None:
        for word in shlex.split(rest):
            name, equals, value = word.partition("=")
            if not equals or "$" in value:
                raise ScriptError(f"Dockerfile: ENV {word}: only NAME=VALUE without variables is known here")
            self.image.env[name] = value

    def _workdir(self, rest: str) -> None:
        self.image.workdir = rest
        self._inside(rest).mkdir(parents=True, exist_ok=True)

    def _inside(self, path: str) -> Path:
        return self._root / str(PurePosixPath(self.image.workdir) / path).lstrip("/")

    def _copy(self, rest: str) -> None:
        *sources, target = rest.split()
        if any(source.startswith("--") or set(source) & set("*?[") for source in sources):
            raise ScriptError(f"Dockerfile: COPY {rest}: options and patterns are not known here")
        for source in sources:
            here = self._context / source
            if not here.exists():
                raise ScriptError(f"Dockerfile: COPY {source}: the context {self._context} has no such file")
            files = [here] if here.is_file() else sorted(path for path in here.rglob("*") if path.is_file())
            for path in files:
                if ignored(PurePosixPath(path.relative_to(self._context)), self._rules):
                    continue
                below = path.name if here.is_file() else str(path.relative_to(here))
                whole = here.is_file() and not target.endswith("/")
                copy = self._inside(target) if whole else self._inside(target) / below
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, copy)
                copy.chmod(0o755 if os.access(path, os.X_OK) and path.stat().st_mode & 0o111 else 0o644)

    def _run(self, rest: str) -> None:
        if rest.startswith(("[", "--")):
            raise ScriptError(f"Dockerfile: RUN {rest}: only a line for the shell is known here")
        # pip asks no index and takes from the folder, also where the step names an index.
        env = self.image.env | {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": WHEELS}
        words = ["env", "--ignore-environment", *(f"{name}={value}" for name, value in env.items())]
        inside = shlex.join(["chroot", str(self._root), *words, "/bin/sh", "-c", f"cd {self.image.workdir} && {rest}"])
        place = self._root / WHEELS.lstrip("/")
        place.mkdir()
        lines = [
            shlex.join(["mount", "--bind", "-o", "ro", str(self._wheels), str(place)]),
            shlex.join(["mount", "-t", "proc", "proc", str(self._root / "proc")]),
            shlex.join(["mount", "-t", "tmpfs", "tmp", str(self._root / "tmp")]),
            f"exec {inside}",
        ]
        done = subprocess.run([*APART, "--net", "sh", "-ec", "\n".join(lines)], check=False, stdin=subprocess.DEVNULL)
        place.rmdir()
        if done.returncode:
            raise ScriptError(f"Dockerfile: RUN {rest}: ended with status {done.returncode}")

    def _user(self, rest: str) -> None:
        if not re.fullmatch(r"\d+:\d+", rest):
            raise ScriptError(f"Dockerfile: USER {rest}: only UID:GID is known here")
        self.image.user = rest

    def _entrypoint(self, rest: str) -> None:
        if not rest.startswith("["):
            raise ScriptError(f"Dockerfile: ENTRYPOINT {rest}: only the form with brackets is known here")
        self.image.entrypoint = json.loads(rest)


def missing(*programs: tuple[str, str]) -> str:
    """Return why this machine cannot make containers, in a sentence with the remedy; empty if it can.

    Args:
        programs: further programs that are needed, each with the Debian package that has it.
    """
    if os.geteuid() != 0:
        return "file systems and namespaces are root's to make: run this as root"
    needed = (("unshare", "util-linux"), ("mount", "mount"), ("chroot", "coreutils"), *programs)
    for program, package in needed:
        if not shutil.which(program):
            return f"{program} is not installed: apt-get install {package}"
    tried = subprocess.run([*APART, "--net", "true"], capture_output=True, text=True, check=False)
    return f"this machine makes no namespaces: {tried.stderr.strip()}" if tried.returncode else ""


def build(dockerfile: Path, context: Path, wheels: Path, out: Path) -> None:
    """Build an image.

    Args:
        dockerfile: its steps; rules for what is left out are in the file of this name with `.dockerignore`.
        context: the folder that COPY copies from.
        wheels: the folder of packages for pip.
        out: the new folder for the image.

    Raises:
        ScriptError: this machine cannot build one, a folder is wrong, or a step failed. Then `out` has no image.json.
    """
    if reason := missing(("debootstrap", "debootstrap")):
        raise ScriptError(reason)
    if not any(wheels.glob("*.whl")):
        raise ScriptError(f"--wheels: {wheels} has no wheels; fill it with pip download, as this script's head shows")
    if out.exists() and any(out.iterdir()):
        raise ScriptError(f"--out: {out} is not empty; give a new folder")
    ignore = dockerfile.with_name(f"{dockerfile.name}.dockerignore")
    lines = ignore.read_text().splitlines() if ignore.exists() else []
    rules = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    root = out.resolve() / "root"
    root.mkdir(parents=True)
    made = Build(root, context.resolve(), rules, wheels.resolve())
    made.steps(dockerfile.read_text())
    (out / "image.json").write_text(json.dumps(asdict(made.image), indent=2) + "\n")


def main() -> int:
    """Build the image and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wheels", type=Path, required=True, help="folder of packages for pip")
    parser.add_argument("--out", type=Path, required=True, help="new folder for the image")
    parser.add_argument("--dockerfile", type=Path, default=DOCKERFILE, help="its steps; default: parties/deploy")
    given = parser.parse_args()
    try:
        build(given.dockerfile, ROOT, given.wheels, given.out)
    except ScriptError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
