"""One party as a process: python -m parties --config FILE. Exit status as in mpcformer/errors.py."""

import argparse
import logging
import os
import sys
from pathlib import Path
from typing import NoReturn

from mpcformer.errors import MPCFormerError, PartyError
from mpcformer.ring import gemm
from parties.config import PartyConfig, load_config
from parties.membership import Membership

log = logging.getLogger("parties")
UNEXPECTED = 70


def main(path: Path) -> int:
    """Join, do the role's work, leave; every failure is reported to the coordinator and logged with its reason."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    try:
        config = load_config(path, PartyConfig)
        import torch

        torch.set_num_threads(config.threads)
        gemm.use(config.device)
        membership = Membership(config)
    except MPCFormerError as error:
        log.error("%s", error)
        return error.exit_code
    log.info("%s joined %s", config.id, config.coordinator)
    return _work(config, membership)


def _work(config: PartyConfig, membership: Membership) -> int:
    from parties import data_owner, dealer, model_owner

    roles = {"dealer": dealer.run, "model-owner": model_owner.run, "data-owner": data_owner.run}
    try:
        roles[config.role](config, membership)
    except MPCFormerError as error:
        # What the coordinator said is the cause; a broken stream is only its consequence.
        log.error("%s", membership.error or error)
        membership.fail(error)
        return (membership.error or error).exit_code
    except Exception as error:
        if membership.error is not None:
            log.error("%s", membership.error)
            membership.close()
            return membership.error.exit_code
        # The message of an unforeseen error may quote data: only its type leaves this process, the trace stays out too.
        place = _place(error)
        log.error("unexpected %s at %s", type(error).__name__, place)
        membership.fail(PartyError(config.id, f"unexpected {type(error).__name__} at {place}", "please report this"))
        return UNEXPECTED
    membership.close()
    log.info("done")
    return 0


def _place(error: BaseException) -> str:
    frame = error.__traceback__
    place = "?"
    while frame is not None:
        code = frame.tb_frame.f_code
        place = f"{Path(code.co_filename).name}:{frame.tb_lineno} in {code.co_name}"
        frame = frame.tb_next
    return place


def run_and_exit(path: Path) -> NoReturn:
    """The party is all that this process is for."""
    status = main(path)
    logging.shutdown()
    # gRPC's threads may still wait for peers that are gone; nothing of this process is worth waiting for.
    os._exit(status)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m parties", description="Run one party from its configuration.")
    parser.add_argument("--config", type=Path, required=True)
    run_and_exit(parser.parse_args().config)
