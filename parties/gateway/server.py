"""The gateway as a server on the loopback interface."""

import contextlib
import errno
import fcntl
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import uvicorn

from mpcformer.errors import UserInputError, os_remedy
from parties.gateway.app import build
from parties.gateway.gate import HOST
from parties.gateway.served import ServedModel
from parties.gateway.token_file import Token, load_token
from parties.gateway.uploads import Uploads

# How long replies that are on their way may take once the gateway is to stop, in seconds.
GRACE_S = 2


@dataclass
class Place:
    """Where the gateway listens and keeps its files; nothing of it is slow or needs a model.

    Args:
        listener: the socket, which listens already. Whoever calls before `serve` waits.
        folder: the folder for uploads.
        token: what a caller must show.
        token_file: where the token is.
    """

    listener: socket.socket
    folder: Path
    token: Token
    token_file: Path

    @property
    def address(self) -> str:
        """The address of the page."""
        return f"http://{HOST}:{self.listener.getsockname()[1]}/"


@contextlib.contextmanager
def place(port: int, folder: Path, token_file: Path | None) -> Iterator[Place]:
    """Take a port and a folder, and read or make the token.

    Args:
        port: the port; 0 for any that is free.
        folder: made if it is missing; other users may then not read it.
        token_file: the file of the token; None for `token` in the folder.

    Raises:
        UserInputError: the port is taken, another gateway uses the folder, or the token's file is wrong.
    """
    with contextlib.ExitStack() as held:
        _make_folder(folder)
        lock = held.enter_context((folder / "lock").open("w"))
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserInputError(
                f"--folder: another gateway uses {folder}", "stop it, or choose another folder"
            ) from None
        path = token_file or folder / "token"
        token = load_token(path)
        listener = held.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
        # A port that a gateway has just left can be taken again at once.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((HOST, port))
            # Until it listens, another user could bind to the port as well, and take what is sent to it.
            listener.listen()
        except (OSError, OverflowError) as error:
            taken = isinstance(error, OSError) and error.errno == errno.EADDRINUSE
            what = "is in use" if taken else "cannot be used"
            raise UserInputError(f"--port: {port} {what}", "choose another one, or 0 for any that is free") from None
        yield Place(listener, folder, token, path)


def _make_folder(folder: Path) -> None:
    try:
        if not folder.exists():
            folder.parent.mkdir(parents=True, exist_ok=True)
            folder.mkdir(mode=0o700)
        status = folder.stat()
    except OSError as error:
        raise UserInputError(f"--folder: {folder}: {error.strerror}", os_remedy(error)) from None
    # Whoever may write there could put another token in the place of this one.
    if not folder.is_dir() or status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise UserInputError(
            f"--folder: {folder} is no folder that this user alone can write to",
            f"choose another one, or chmod 700 {folder}",
        )


def serve(site: Place, models: Sequence[ServedModel], *, most_upload_bytes: int, on_start: Callable[[], None]) -> int:
    """Serve until SIGINT or SIGTERM; what is being computed then ends first.

    Args:
        site: where.
        models: what is served.
        most_upload_bytes: how large an upload may be.
        on_start: called once requests are taken.

    Returns:
        How many uploads are not done. They go on when a gateway of the same folder is told to.
    """
    uploads = Uploads(site.folder / "uploads", {model.name: (model.classify, model.max_length) for model in models})
    try:
        server = uvicorn.Server(
            uvicorn.Config(
                build(models, uploads, site.token, most_upload_bytes),
                # Neither an address nor a body is ever logged.
                access_log=False,
                log_config=None,
                log_level="critical",
                server_header=False,
                proxy_headers=False,
                lifespan="off",
                http="h11",
                ws="none",
                loop="asyncio",
                timeout_graceful_shutdown=GRACE_S,
                h11_max_incomplete_event_size=64 << 10,
            )
        )
        on_start()
        # Once the server has ended in good order, uvicorn raises the signal again.
        with contextlib.suppress(KeyboardInterrupt):
            server.run(sockets=[site.listener])
    finally:
        left = uploads.close()
    return left
