"""Run one party in this process, from its configuration file to its exit status (see mpcformer/errors.py)."""

import logging
import os
import resource
import signal
import sys
import threading
from pathlib import Path
from typing import NoReturn

from mpcformer.errors import MORE_FILES, MPCFormerError
from mpcformer.files import write_text
from mpcformer.machine import FEW_FILES, keep_freed_memory, open_many_files
from mpcformer.ring import gemm
from mpcformer.ring.random import fix_keys
from parties.session.failure import attended, report_failure_of
from parties.session.membership import join
from parties.settings import insecure, logs, metrics
from parties.settings.config import DataOwnerConfig, Service
from parties.settings.config_file import by_keys, load_party
from parties.wire.identity import check_own, watch_expiry

log = logging.getLogger("parties")
# gRPC does not always notice the end of a call whose request it could not read.
STOP_TIMEOUT_S = 5.0


def run_party(path: Path, *, once: bool = False, address_file: Path | None = None, with_parent: bool = False) -> int:
    """Do the job of a data owner, or serve as dealer or model owner until SIGTERM; return the exit status.

    Args:
        path: the configuration file.
        once: whether a service ends after its first session, with the status of that session.
        address_file: a file into which a service writes the address on which it listens.
        with_parent: whether a service ends when its standard input does, that is, when the process that started it
            ends, however that happens.
    """
    logs.set_up(path.stem, "text")
    keep_freed_memory()
    # A core file would contain weights, text and shares.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        config = load_party(path)
        logs.set_up(config.id, config.log)
        if config.tls is not None:
            check_own(config.tls, config.id)
        if insecure.text(config.insecure):
            log.warning("%s", insecure.text(config.insecure))
        seed = insecure.fixed_seed(config.insecure)
        if seed is not None:
            fix_keys(seed, config.id)
        import torch

        torch.set_num_threads(config.threads)
        gemm.use(config.device)
        if config.tls is not None:
            watch_expiry(config.tls)
        metrics.serve(config)
        if isinstance(config, DataOwnerConfig):
            return _take_part(config)
        return _serve(path, config, once, address_file, with_parent)
    except MPCFormerError as error:
        log.error("%s", by_keys(error))
        return error.exit_code


def _take_part(config: DataOwnerConfig) -> int:
    from parties.roles import data_owner

    # Before the coordinator, and everybody else, waits for what is not there.
    data_owner.check(config)
    membership = join(config)
    log.info("%s joined its coordinator", config.id)
    # Reading and tokenising may take minutes, and a disk may hang.
    return report_failure_of(lambda: attended(lambda: data_owner.run(config, membership), membership), membership)


def _serve(path: Path, config: Service, once: bool, address_file: Path | None, with_parent: bool) -> int:
    from parties.roles.dealer import Dealer
    from parties.roles.model_owner import ModelOwner
    from parties.roles.reload import Reloading
    from parties.roles.service import SessionHost
    from parties.wire.frames import start_server

    stop = threading.Event()

    def end(number: int, frame: object) -> None:
        stop.set()
        signal.signal(number, signal.SIG_DFL)  # A second signal ends the process at once.

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    if with_parent:
        threading.Thread(target=_wait_for_parent, args=(stop,), name="parent", daemon=True).start()
    if config.role == "dealer":
        party: Dealer | ModelOwner = Dealer(config)
        host = SessionHost(config, config.role, party.run_session, once=once)
    else:
        # A signal that comes while students are loaded must not end the process.
        reloading = Reloading(path, stop)
        party = ModelOwner(config)
        host = SessionHost(config, config.role, party.run_session, once=once, models=party.models)
        reloading.serve(party)

    def add(server: object) -> None:
        party.add_to(server)
        host.add_to(server)

    n_files = open_many_files()
    server, address = start_server(add, config.listen, config.credentials, rules=party.rules | host.rules)
    log.info("%s listens on %s; it may open %d files and connections", config.id, address, n_files)
    if n_files < FEW_FILES:
        log.warning("idle connections may use these up: %s", MORE_FILES)
    if address_file is not None:
        write_text(address_file, address)
    try:
        if once:
            status = host.wait_for_one(config.join_timeout_s, stop)
        else:
            stop.wait()
            log.info("shutting down: no new sessions")
            status = 0
        host.drain(config.grace_s)
    finally:
        server.stop(grace=1.0).wait(STOP_TIMEOUT_S)
    log.info("ended")
    return status


def _wait_for_parent(stop: threading.Event) -> None:
    while sys.stdin.buffer.read(1024):
        pass
    stop.set()


def run_and_exit(
    path: Path, *, once: bool = False, address_file: Path | None = None, with_parent: bool = False
) -> NoReturn:
    """Run the party, then end the process: it does nothing else."""
    status = run_party(path, once=once, address_file=address_file, with_parent=with_parent)
    logging.shutdown()
    # gRPC's threads may still be waiting for peers that are gone, and would keep the process alive.
    os._exit(status)
