"""Prints the table of the cases: error, correlations, rounds, bytes and seconds, on this machine and between services.

    python -m experiments.programs                  # all cases, both ways
    python -m experiments.programs --only nearest

It fails if an error is above 0.003, if other correlations are used than were planned, or if rounds are not what
was told before, or bytes not to within 10%.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from experiments.programs.cases import CASES
from experiments.programs.measure import HERE, SERVICES, Row, rows
from parties.programs.command import told_bytes, wire_seconds
from parties.runs.network import PROFILES

HEADINGS = (
    *("program", "way", "error", "correlations, used / planned", "rounds, run / told"),
    *("MiB between the owners, run / told", "MiB from the dealer", "MiB passed on"),
    *("dealing [s]", "running [s]", "told on the wire, LAN / WAN [s]", "accuracy"),
)


def cells(row: Row) -> list[str]:
    """Return a row of the table."""
    told, report = row.told, row.report
    return [
        row.case.about,
        row.way,
        f"{row.error:.5f}",
        f"{report['correlations']} / {told['n_requests']}",
        f"{report['rounds']} / {row.told_rounds}",
        f"{row.n_bytes / 2**20:.2f} / {told_bytes(told) / 2**20:.2f}",
        f"{told['dealer_bytes'] / 2**20:.2f}",
        f"{told['passed_on_bytes'] / 2**20:.2f}",
        f"{report['dealing_seconds']:.2f}",
        f"{report['seconds']:.2f}",
        " / ".join(f"{wire_seconds(told, PROFILES[name]):.2f}" for name in ("lan", "wan")),
        "" if row.accuracy is None else "{:.0%}, plaintext {:.0%}".format(*row.accuracy),
    ]


def main() -> None:
    """Run what the command line asks for, print the table, and end with 1 if something is not as it should be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=[case.name for case in CASES], help="these cases alone")
    parser.add_argument("--way", choices=[HERE, SERVICES], help="this way alone")
    given = parser.parse_args()
    chosen = [case for case in CASES if given.only is None or case.name in given.only]
    faults = []
    print(f"| {' | '.join(HEADINGS)} |\n|{'---|' * len(HEADINGS)}")
    for way in (HERE, SERVICES) if given.way is None else (given.way,):
        with tempfile.TemporaryDirectory(prefix="mpcformer-") as folder:
            for row in rows(chosen, way, Path(folder)):
                print(f"| {' | '.join(cells(row))} |", flush=True)
                faults += [f"{row.case.name}, {way}: {fault}" for fault in row.faults()]
    if faults:
        sys.exit("error: " + "\nerror: ".join(faults))


if __name__ == "__main__":
    main()
