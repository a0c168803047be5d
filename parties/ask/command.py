"""The command `mpcformer ask`."""

import io
import itertools
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from mpcformer import options
from mpcformer.engines.registry import DEFAULT_ENGINE
from mpcformer.errors import SOME_REFUSED, MPCFormerError, RangeError, UserInputError
from mpcformer.machine import keep_freed_memory
from mpcformer.options import INPUT, MACHINE, OUTPUT, choice, flag, option

# How many batches the prompt holds ready.
AHEAD = 2
REMEDY = "the answers to the others stand; for texts of this kind, calibrate the student on some of them (distil again)"
# What --list-models shows of a model.
PUBLIC = "answers", "labels", "layers", "positions", "forms"
FILES = (
    "To ask a model, get its public files from its owner (mpcformer export), and name them in [[models]] or"
    " public_model of the file."
)
SMALL_STUDENT = (
    "No --student is given, so this asks the small one that comes with mpcformer: negative or positive, about films."
)


def _ways() -> Iterable[str]:
    from parties.settings.job import ON_REFUSAL

    return ON_REFUSAL


def ask(
    texts: Annotated[
        list[str] | None, typer.Argument(help="Texts; without any, lines of standard input.", metavar="TEXT")
    ] = None,
    student: Annotated[
        Path | None,
        options.folder("--student", group=INPUT, about="A student to ask on this machine; default: a small one."),
    ] = None,
    config: Annotated[
        Path | None, options.file("--config", group=INPUT, about="A data owner's TOML file; the others are deployed.")
    ] = None,
    model: Annotated[str | None, option(group=INPUT, about="With --config: the model's name.")] = None,
    list_models: Annotated[
        bool, flag("--list-models", group=INPUT, about="With --config: list the models that may be asked.")
    ] = False,
    file: Annotated[
        Path | None, option("--file", group=INPUT, about="Texts in a file: txt, csv, jsonl or parquet.")
    ] = None,
    column: Annotated[
        list[str] | None,
        options.column("--text-column", "Its column of text, given twice for a pair; default: guessed."),
    ] = None,
    max_length: Annotated[
        int | None, option(group=INPUT, about="Cut texts to this many tokens; default: refuse longer ones.")
    ] = None,
    engine: Annotated[str, options.engine("The private protocols, with --student: {}.")] = DEFAULT_ENGINE,
    batch_size: Annotated[int, option(group=MACHINE, about="The most texts that share every round.")] = 16,
    deal_ahead: Annotated[
        int | None,
        option(group=MACHINE, about="Deal so many batches of one, then the dealer leaves, before any text is read."),
    ] = None,
    deal_length: Annotated[int, option(group=MACHINE, about="With --deal-ahead: the tokens of each.")] = 32,
    sessions: Annotated[int, option(group=MACHINE, about="Sessions that answer many texts side by side.")] = 1,
    threads: Annotated[int, option(group=MACHINE, about="CPU threads of each party, with --student.")] = 1,
    on_refusal: Annotated[
        str, choice("--on-refusal", _ways, group=OUTPUT, about="When a text is refused: {}.")
    ] = "skip",
    details: Annotated[bool, flag("--details", group=OUTPUT, about="Also show what each answer took.")] = False,
    resume: Annotated[bool, flag("--resume", group=OUTPUT, about="Go on with the unfinished --out.")] = False,
    out: Annotated[
        Path | None, option(group=OUTPUT, about="Write the answers to a csv, jsonl or parquet file.")
    ] = None,
) -> None:
    """Ask a model privately: neither the texts nor the weights leave their owners.

    The parties are semi-honest and do not collude; the dealer is trusted for randomness only.

    Example: mpcformer ask "A quiet film that stays with you."
    """
    from parties.ask.answers import AnswerFile, check_out
    from parties.ask.local import connect, local

    if student is not None and config is not None:
        raise UserInputError(
            "give either --student or --config", "--student runs all parties here, --config asks deployed ones"
        )
    for name, given in (("--model", model), ("--list-models", list_models)):
        if given and config is None:
            raise UserInputError(f"{name}: there is no --config", "give a data owner's file; --student is one model")
    if list_models and config is not None:
        _list_models(config)
        return
    if texts and file is not None:
        raise UserInputError("--file: texts were given as arguments too", "give one of them")
    if column and file is None:
        raise UserInputError("--text-column: there is no --file", "give the file that has this column")
    if resume and (out is None or file is None):
        raise UserInputError("--resume: it needs --out and --file", "give both as before")
    if out is not None:
        check_out(out, resume=resume)
    source = _Source(texts or [], file, column or [])
    common: dict[str, Any] = {
        "max_length": max_length,
        "batch_size": batch_size,
        "deal_ahead": deal_ahead,
        "sessions": sessions,
        "first": (1, deal_length),
        # Only at the prompt does anybody ask later what could be dealt now.
        "ahead": AHEAD if source.is_prompt else 0,
    }

    def opened() -> Any:
        if config is not None:
            return connect(config, model=model, **common)
        return local(student, engine=engine, threads=threads, **common)

    if student is None and config is None:
        from mpcformer.console import err_console

        err_console.print(SMALL_STUDENT, soft_wrap=True)
    keep_freed_memory()
    started = time.perf_counter()
    with opened() as classify:
        if source.is_prompt:
            _prompt(classify, details)
            return
        if out is None:
            n_refused = _print(classify, source, details, on_refusal, started)
        else:
            work = {"source": source.digest(), "model": classify.model, "max_length": max_length}
            answers = AnswerFile(out, source.columns, work, resume=resume)
            n_refused = _write(classify, source, answers, on_refusal, out)
    if n_refused:
        raise typer.Exit(SOME_REFUSED)


def _list_models(config: Path) -> None:
    """Print a line for each model that the model owner lets this data owner ask."""
    from mpcformer.console import err_console, printable
    from parties.ask.models import SAME, models

    found = models(config)
    print("name", *PUBLIC, "left today", "left in all", "public files", "sha256", sep="\t")
    for each in found:
        left = ("any" if n is None else n for n in (each["left_today"], each["left_in_all"]))
        about = (printable(each["about"].get(key, "")) for key in PUBLIC)
        print(printable(each["name"]), *about, *left, each["public_files"], printable(each["sha256"]), sep="\t")
    if not found:
        err_console.print("The model owner lets this data owner ask no model.")
    elif any(each["public_files"] != SAME for each in found):
        err_console.print(FILES, soft_wrap=True)


class _Source:
    """Where the texts come from.

    Args:
        texts: the arguments of the command.
        file, columns: a file and its columns of text, if they are named.
    """

    def __init__(self, texts: list[str], file: Path | None, columns: list[str]) -> None:
        self._texts, self._file = texts, None
        self.columns: list[str] = ["text"]
        self.n_rows: int | None = len(texts) or None
        self.is_prompt = not texts and file is None and sys.stdin.isatty()
        if file is not None:
            from mpcformer.console import err_console
            from mpcformer.tasks.files import TextFile

            self._file = TextFile.open(file, columns)
            # Reading all of it once finds rows without a text before any work starts, and tells how many there are.
            self.columns, self.n_rows = list(self._file.columns), sum(1 for _ in self._file)
            if self._file.guessed and self.columns != ["text"]:
                err_console.print(f"texts: column {' and '.join(self.columns)} of {file}")

    def __iter__(self) -> Iterator[tuple[str, ...]]:
        if self._file is not None:
            yield from self._file
        elif self._texts:
            yield from ((text,) for text in self._texts)
        else:
            # What is no UTF-8 is refused as a text, not as a whole input.
            if isinstance(sys.stdin, io.TextIOWrapper):
                sys.stdin.reconfigure(errors="surrogateescape")
            yield from ((line.rstrip("\r\n"),) for line in sys.stdin)

    def digest(self) -> str:
        """Return what tells this source from another, for --resume."""
        if self._file is None:
            return "texts"
        path = self._file.path
        files = [path] if path.is_file() else sorted(each for each in path.rglob("*") if each.is_file())
        from mpcformer.files import sha256_file

        return " ".join(sha256_file(each) for each in files)


def _print(classify: Any, source: Iterable[tuple[str, ...]], details: bool, on_refusal: str, started: float) -> int:
    """Print an answer for each text as soon as it is known; return how many were refused."""
    from mpcformer.console import err_console, printable

    texts, told = itertools.tee(source)
    n_texts = n_refused = n_bytes = 0
    first = ""
    for answer in classify.answers((text[0] if len(text) == 1 else text for text in texts), details=True):
        text = " | ".join(next(told))
        n_texts += 1
        n_refused += bool(answer.get("refused"))
        print(_line(answer, printable(text), details), flush=True)
        if answer.get("refused"):
            first = first or f"text {n_texts - 1}: {answer['reason']}"
        n_bytes += answer.get("bytes", 0) // max(1, answer.get("batch", [1])[0])
    if n_texts:
        seconds = time.perf_counter() - started
        refused = f", {n_refused} of them refused" if n_refused else ""
        err_console.print(
            f"{n_texts} text{'s' if n_texts > 1 else ''}{refused}; {seconds:.1f} s in all,"
            f" {n_bytes / n_texts / 2**20:.1f} MiB online a text"
        )
    # Whoever asks no more after a refusal tells the model owner that there was one.
    if first and on_refusal == "stop":
        raise RangeError(first, "leave it out, or give --on-refusal skip")
    return n_refused


def _line(answer: dict[str, Any], text: str, details: bool) -> str:
    if answer.get("refused"):
        return f"refused\t-\t{text}\t({answer['reason']})"
    line = f"{_shown(answer)}\t{text}"
    return f"{line}\t{_cost(answer)}" if details else line


def _shown(answer: dict[str, Any]) -> str:
    """Return an answer in a few words."""
    if "embedding" in answer:
        first = ", ".join(f"{value:.4f}" for value in answer["embedding"][:3])
        return f"embedding of {len(answer['embedding'])}\t{first}, ..."
    if "tokens" in answer:
        return f"{len(answer['tokens'])} tokens\t{' '.join(str(token['label']) for token in answer['tokens'])}"
    return f"{answer['label']}\t{answer['score']:.4f}"


def _cost(answer: dict[str, Any]) -> str:
    size, length = answer["batch"]
    waited_s = answer["seconds"] - answer["online_seconds"]
    dealt = "dealt ahead" if answer["dealt_ahead"] else f"{waited_s:.2f} s waiting for the dealer's part"
    return (
        f"{answer['online_seconds']:.2f} s online, {dealt}, {answer['rounds']} rounds,"
        f" {answer['bytes'] / 2**20:.1f} MiB, batch {size} x {length}"
    )


def _prompt(classify: Any, details: bool) -> None:
    from mpcformer.console import console, err_console, printable, show_error

    console.print("Write a text and press Enter. An empty line ends.")
    while True:
        try:
            text = input("> ")
        except EOFError:
            return
        if not text:
            return
        try:
            answer = classify(text, details=True)[0]
        except MPCFormerError as error:
            show_error(error.what, error.remedy)
            continue
        if answer.get("refused"):
            err_console.print(f"refused: {answer['reason']}")
            continue
        seconds = f"{answer['seconds']:.2f} s"
        shown = printable(_shown(answer).replace("\t", "  "))
        console.print(f"{shown}  ({_cost(answer) if details else seconds})")


def _write(classify: Any, source: _Source, answers: Any, on_refusal: str, out: Path) -> int:
    """Write the answers to a file with a progress bar; return how many texts were refused."""
    from mpcformer.console import err_console, progress

    done, first = answers.n_rows, ""
    texts, told = itertools.tee(itertools.islice(iter(source), done, None))
    try:
        with progress(description_width=0) as bar:
            task = bar.add_task("texts", total=source.n_rows, completed=done, info="")
            for answer in classify.answers(text[0] if len(text) == 1 else text for text in texts):
                answers.add(next(told), answer)
                if answer.get("refused"):
                    first = first or f"row {answers.n_rows - 1}: {answer['reason']}"
                info = f"{answers.n_refused} refused" if answers.n_refused else ""
                bar.update(task, completed=answers.n_rows, info=info)
        answers.finish()
    except BaseException as error:
        answers.close()
        kept = f"{answers.n_rows} answers are in {answers.partial}; --resume goes on from there"
        if isinstance(error, MPCFormerError):
            error.remedy = f"{error.remedy}; {kept}".removeprefix("; ")
        else:
            err_console.print(kept)
        raise
    err_console.print(f"{answers.n_rows} answers are in {out}, {answers.n_refused} of them refusals")
    if first and on_refusal == "stop":
        raise RangeError(first, "leave it out, or give --on-refusal skip")
    if answers.n_refused:
        err_console.print(REMEDY)
    return int(answers.n_refused)
