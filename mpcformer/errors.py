"""The errors that a user can meet. Each says what is wrong and what to do; each class has its own exit status.

The command line shows an error as `error: WHAT` and, on the next line, `fix: REMEDY`; a party logs the same.
"""

import errno
from pathlib import Path

UNEXPECTED = 70
# The exit status of a command that answered some texts and refused others.
SOME_REFUSED = 7
# The most characters of a sentence in an error.
LONGEST = 1500
# What a remedy's line begins with, on the terminal and in a party's log.
FIX = "fix: "


# What to do about an error of the operating system, by its number, wherever it occurs.
MORE_FILES = "allow the process more open files: LimitNOFILE of its unit, or ulimit -n"
OS_REMEDIES = {
    errno.EMFILE: MORE_FILES,
    errno.ENFILE: MORE_FILES,
    errno.ENOSPC: "make room on that disk",
    errno.EDQUOT: "make room, or raise the quota",
    errno.EACCES: "check who may read and write there",
    errno.EPERM: "check who may read and write there",
    errno.EROFS: "choose a place that can be written to",
    errno.ENOENT: "it is not there, or was removed meanwhile: check the path",
    errno.ENOTDIR: "a file stands where a folder is needed: check the path",
    errno.EISDIR: "a folder stands where a file is needed: check the path",
    errno.EEXIST: "something else took this name meanwhile: choose another one",
    errno.ENOTEMPTY: "something else took this name meanwhile: choose another one",
    errno.ENAMETOOLONG: "choose a shorter name",
}


def os_remedy(error: OSError, otherwise: str = "check the path") -> str:
    """Return what to do about an error of the operating system.

    Args:
        error: the error.
        otherwise: the remedy if its number tells nothing.
    """
    return OS_REMEDIES.get(error.errno or 0, otherwise)


class MPCFormerError(Exception):
    """The base class of every error that this project raises on purpose.

    Args:
        what: one sentence that names the thing and its value.
        remedy: one sentence that says what to do about it.
        told: the sentence that other parties are told instead of `what`, if `what` shows figures of a secret.
    """

    exit_code = 1

    def __init__(self, what: str, remedy: str = "", *, told: str = "") -> None:
        self.what = what = shortened(what)
        self.remedy = remedy = shortened(remedy)
        self.told = shortened(told) or what
        super().__init__(f"{what}\n{FIX}{remedy}" if remedy else what)


class UserInputError(MPCFormerError):
    """A wrong argument, file or dataset that was found before any work started."""

    exit_code = 2


class PartyError(MPCFormerError):
    """An error because a party died, stopped answering, or reported a failure. It names the party."""

    exit_code = 3

    def __init__(self, party: str, what: str, remedy: str = "") -> None:
        self.party = party
        super().__init__(f"{party}: {what}", remedy)


class ProtocolError(MPCFormerError):
    """A message or correlation that the protocol does not allow, such as one of a wrong shape or one used twice."""

    exit_code = 4


class RangeError(MPCFormerError):
    """A number that fixed-point arithmetic cannot represent: NaN, infinite, or outside the calibrated range."""

    exit_code = 5


class DependencyError(MPCFormerError):
    """An error because something that must be installed or downloaded is missing."""

    exit_code = 6


def shortened(text: str) -> str:
    """Return a text that fits into an error: some quote what a file holds, which may be of any length."""
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def unexpected(error: BaseException) -> str:
    """Return the words for an error that nobody foresaw: its type and place. Its message may quote data."""
    trace, place = error.__traceback__, "?"
    while trace is not None:
        code = trace.tb_frame.f_code
        place = f"{Path(code.co_filename).name}:{trace.tb_lineno} in {code.co_name}"
        trace = trace.tb_next
    return f"unexpected {type(error).__name__} at {place}"


def escaped(text: str) -> str:
    """Return a text on one line, with an escape sequence for each character that would control a terminal or a log.

    Texts that other parties or files supplied are shown in this way: they can forge no line, colour or direction.
    """
    if text.isprintable():
        return text
    return "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in text)
