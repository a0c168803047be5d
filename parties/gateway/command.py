"""The command `mpcformer gateway`."""

from pathlib import Path
from typing import Annotated, Any

from mpcformer import options
from mpcformer.engines.registry import DEFAULT_ENGINE
from mpcformer.errors import UserInputError
from mpcformer.machine import keep_freed_memory, open_many_files
from mpcformer.options import INPUT, MACHINE, OUTPUT, option

FOLDER = Path("runs/gateway")
# A caller of the gateway does not wait longer for a party that does not answer, whatever the file says.
PATIENCE_S = 15.0


def gateway(
    student: Annotated[
        Path | None,
        options.folder("--student", group=INPUT, about="A student to ask on this machine; default: a small one."),
    ] = None,
    config: Annotated[
        Path | None, options.file("--config", group=INPUT, about="A data owner's TOML file; the others are deployed.")
    ] = None,
    model: Annotated[
        list[str] | None, option(group=INPUT, about="With --config: these of its models; default: all in the file.")
    ] = None,
    name: Annotated[
        str | None, option(group=INPUT, about="The model's name in addresses; default: its own, or its folder's.")
    ] = None,
    max_length: Annotated[
        int | None, option(group=INPUT, about="Cut texts to this many tokens; default: refuse longer ones.")
    ] = None,
    engine: Annotated[str, options.engine("The private protocols, with --student: {}.")] = DEFAULT_ENGINE,
    port: Annotated[int, option(group=MACHINE, about="The port on 127.0.0.1; 0 takes another one at each start.")] = 0,
    batch_size: Annotated[int, option(group=MACHINE, about="The most texts that share every round.")] = 16,
    threads: Annotated[int, option(group=MACHINE, about="CPU threads of each party, with --student.")] = 1,
    folder: Annotated[Path, option(group=OUTPUT, about="For uploads, their answers and the token.")] = FOLDER,
    token_file: Annotated[
        Path | None, option(group=OUTPUT, about="The token that callers show; made if it is missing.")
    ] = None,
    max_upload: Annotated[
        int, options.at_least("--max-upload", 1, group=OUTPUT, about="MiB of the largest file that is taken.")
    ] = 256,
) -> None:
    """Serve a page and an API like Hugging Face's on this machine, for questions that stay private.

    Only programs and pages of this machine that have the token are answered.

    Example: mpcformer gateway --config data-owner.toml
    """
    if student is not None and config is not None:
        raise UserInputError(
            "give either --student or --config", "--student runs all parties here, --config asks deployed ones"
        )
    if model and config is None:
        raise UserInputError("--model: there is no --config", "give a data owner's file; --student is one model")
    if not 0 <= port <= 65535:
        raise UserInputError(f"--port: {port} is outside 0..65535", "give a free port, or 0 for any")
    keep_freed_memory()
    open_many_files()
    from mpcformer.console import console, err_console
    from parties.gateway.models import chosen, opened
    from parties.gateway.server import place, serve

    given: dict[str, Any] = {"max_length": max_length, "batch_size": batch_size}
    models = chosen(config, model, name, student)
    with place(port, folder, token_file) as site:
        if student is None and config is None:
            from parties.ask.command import SMALL_STUDENT

            err_console.print(SMALL_STUDENT, soft_wrap=True)
        if config is not None:
            _watch_certificates(config)
            given |= {"patience_s": PATIENCE_S}
        else:
            given |= {"engine": engine, "threads": threads}
        err_console.print("opening a session ..." if len(models) == 1 else "asking the model owner for its models ...")
        with opened(models, config, student, given) as served:

            def on_start() -> None:
                # What is no terminal may be a log, and a log must not hold what opens the page.
                if console.is_terminal:
                    console.print(f"Open {site.token.address(site.address)}", soft_wrap=True)
                    console.print(f"It opens the page once; later, paste the token of {site.token_file}. Ctrl-C stops.")
                else:
                    console.print(f"Serving {site.address} with the token in {site.token_file}", soft_wrap=True)

            left = serve(site, served, most_upload_bytes=max_upload << 20, on_start=on_start)
    if left:
        many = "uploads are" if left > 1 else "upload is"
        err_console.print(f"{left} {many} not finished; what is answered is kept, and goes on from the page")


def _watch_certificates(config: Path) -> None:
    from parties.settings.config_file import load_party
    from parties.wire.identity import watch_expiry

    files = load_party(config).tls
    if files is not None:
        watch_expiry(files)
