"""Generate parties/stubs from protos/; with --check, fail if the committed stubs differ from what would be generated.

Run it with: make proto. The folder of a proto file equals its package. The stubs are written to the folder where they
are used, by means of protoc's virtual path (`-Iparties/stubs=protos/mpcformer/v1`).
"""

import filecmp
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
STUBS = Path("parties/stubs")
SOURCE = Path("protos/mpcformer/v1")
# The name that generated code gives to the module of the messages.
MESSAGES = "parties_dot_stubs_dot_parties__pb2"


def generate(target: Path) -> Path:
    """Generate the stubs below `target` and return their folder."""
    names = [f"{STUBS}/{path.name}" for path in sorted((ROOT / SOURCE).glob("*.proto"))]
    outputs = [f"--{kind}_out={target}" for kind in ("python", "pyi", "grpc_python")]
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{STUBS}={SOURCE}", *outputs, *names]
    subprocess.run(command, cwd=ROOT, check=True)
    # Frames are written and read by a class of our own, which makes fewer copies of their payload.
    services = target / STUBS / "parties_pb2_grpc.py"
    text = services.read_text().replace(f"{MESSAGES}.Frame.", "parties_dot_wire_dot_frame.Frame.")
    first = f"from parties.stubs import parties_pb2 as {MESSAGES}\n"
    services.write_text(text.replace(first, first + "from parties.wire import frame as parties_dot_wire_dot_frame\n"))
    (target / STUBS / "__init__.py").write_text('"""Generated from protos/ by protos/generate.py. Do not edit."""\n')
    return target / STUBS


def main() -> None:
    """Write the stubs, or compare them with the committed ones."""
    if "--check" not in sys.argv[1:]:
        generate(ROOT)
        return
    with tempfile.TemporaryDirectory() as name:
        fresh = generate(Path(name))
        names = sorted(path.name for path in fresh.iterdir())
        _, different, missing = filecmp.cmpfiles(fresh, ROOT / STUBS, names, shallow=False)
    if different or missing:
        sys.exit(
            f"error: parties/stubs differs from what protos/ gives ({', '.join(different + missing)}); run: make proto"
        )
    print("stubs are fresh")


if __name__ == "__main__":
    main()
