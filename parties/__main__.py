"""Run one party as a process of its own: python -m parties --config FILE."""

import argparse
from pathlib import Path

from mpcformer.machine import collect_rarely, spin_briefly

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m parties", description="Run one party from its configuration.")
    parser.add_argument("--config", type=Path, required=True, help="the party's TOML file")
    parser.add_argument("--once", action="store_true", help="end a service after one session")
    parser.add_argument("--address-file", type=Path, help="write the address on which a service listens to this file")
    parser.add_argument("--with-parent", action="store_true", help="end a service when its standard input ends")
    arguments = parser.parse_args()
    spin_briefly()
    collect_rarely()
    from parties.roles.start_party import run_and_exit  # loads torch

    run_and_exit(
        arguments.config,
        once=arguments.once,
        address_file=arguments.address_file,
        with_parent=arguments.with_parent,
    )
