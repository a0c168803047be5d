"""Questions and answers as Hugging Face's inference API has them, in JSON.

The shapes are those of its tasks text-classification, [[{"label", "score"}, ...], ...], and feature-extraction,
[[0.1, ...], ...]: one entry for each text, also where there is only one. A model that labels tokens is answered as in
token-classification, [[{"entity", "score", "index"}, ...], ...].
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mpcformer.errors import UserInputError
from parties.ask.classifier import NO_CHARACTERS, OUT_OF_RANGE, TO_CUT, Answer, Text, as_pair
from parties.gateway.replies import TOO_LARGE, RequestError
from parties.session.seen import Seen

MOST_TEXTS = 10_000
# A function that makes scores of logits, by the name that Hugging Face gives it; the default depends on the model.
FUNCTIONS = ("softmax", "sigmoid", "none")
FIELDS = {"text", "text_pair"}
# What Hugging Face's clients send without being asked; here it makes no difference.
WITHOUT_EFFECT = {"options", "truncate"}
OTHER_WORDS = "say it in other words; for many texts of this kind, calibrate the student on some of them (distil again)"


@dataclass(frozen=True)
class Question:
    """What a request asks.

    Args:
        texts: the texts, each one a str or a pair.
        top_k: how many labels each answer has, the likeliest first; None for all.
        function: one of `FUNCTIONS`; None for that of the model.
        normalize: whether an embedding has the length 1.
        details: whether the reply also says what each answer took.
        seen: whether it also says what the other parties saw.
    """

    texts: list[Text]
    top_k: int | None = None
    function: str | None = None
    normalize: bool = True
    details: bool = False
    seen: bool = False


def parsed(body: bytes) -> Question:
    """Read a question.

    Args:
        body: {"inputs": a text, a pair {"text": ..., "text_pair": ...}, or a list of these, "parameters": {...}}.

    Raises:
        UserInputError: it is no such JSON; the error names the field and what was found, and never shows a text.
    """
    value = _json(body)
    if "inputs" not in value:
        raise UserInputError("inputs: they are missing", 'give {"inputs": "a text"} or {"inputs": ["a text", ...]}')
    parameters = value.get("parameters") or {}
    if not isinstance(parameters, dict):
        raise _wrong("parameters", parameters, "an object", 'give for example {"top_k": 1}')
    # For feature-extraction, Hugging Face's clients put the parameters beside the inputs.
    beside = {name: each for name, each in value.items() if name not in ("inputs", "parameters")}
    return Question(_texts(value["inputs"]), **_parameters(beside | parameters))


def _json(body: bytes) -> dict[str, Any]:
    try:
        value = json.loads(body)
    except UnicodeDecodeError:
        raise UserInputError("the body is not UTF-8", "send JSON in UTF-8") from None
    except RecursionError:
        raise UserInputError("the body is nested too deeply", 'send {"inputs": ...}') from None
    except ValueError as error:
        place = f"line {error.lineno}, column {error.colno}" if isinstance(error, json.JSONDecodeError) else "a number"
        raise UserInputError(f"the body is no JSON: {place}", 'send {"inputs": ...}') from None
    if not isinstance(value, dict):
        raise _wrong("the body", value, "an object", 'send {"inputs": ...}')
    return value


def _texts(inputs: object) -> list[Text]:
    several: list[Any] = inputs if isinstance(inputs, list) else [inputs]
    if len(several) > MOST_TEXTS:
        raise RequestError(
            TOO_LARGE,
            f"inputs: {len(several)} texts are more than {MOST_TEXTS}",
            "ask in several requests, or upload a file",
        )
    for index, text in enumerate(several):
        if isinstance(text, Mapping) and (unknown := sorted(set(text) - FIELDS)):
            raise UserInputError(
                f"inputs, text {index}: the field {unknown[0][:40]!r} is unknown",
                'give {"text": ..., "text_pair": ...}',
            )
        try:
            as_pair(index, text)
        except UserInputError as error:
            raise UserInputError(f"inputs, {error.what}", 'give strings, or {"text": ..., "text_pair": ...}') from None
    return [text if isinstance(text, (str, dict)) else tuple(text) for text in several]


def _parameters(given: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in given.items():
        if value is None or name in WITHOUT_EFFECT:
            continue
        if name == "top_k":
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise _wrong(name, value, "a whole number from 1 up", "leave it out for all labels")
            found[name] = value
        elif name == "function_to_apply":
            if value not in FUNCTIONS:
                raise _wrong(name, value, f"one of {', '.join(FUNCTIONS)}", "leave it out for that of the model")
            found["function"] = value
        elif name in ("normalize", "details", "seen"):
            if not isinstance(value, bool):
                raise _wrong(name, value, "true or false", "leave it out for the default")
            found[name] = value
        else:
            known = "top_k, function_to_apply, normalize, details, seen"
            raise UserInputError(f"parameters: {name[:40]!r} is unknown", f"give some of: {known}")
    return found


def _wrong(name: str, value: object, wanted: str, remedy: str) -> UserInputError:
    kinds = {type(None): "null", bool: "a truth value", str: "a string", list: "a list", dict: "an object"}
    return UserInputError(f"{name}: {kinds.get(type(value), 'a number')} is not {wanted}", remedy)


def entry(answer: Answer, labels: list[str], task: str, question: Question) -> Any:
    """Return what the reply has for a text.

    Args:
        answer: from a classifier, with details.
        labels: the names of the classes.
        task: what the model answers.
        question: what was asked.
    """
    if answer.get("refused"):
        told = refusal(answer)
        return told if task == "feature-extraction" else [{"label": None, "score": None, **told}]
    if "embedding" in answer:
        return answer["embedding"] if question.normalize else answer["logits"]
    if "tokens" in answer:
        return [
            {"entity": token["label"], "score": token["score"], "index": index}
            for index, token in enumerate(answer["tokens"])
        ]
    scores = _scores(answer["logits"], question.function)
    ordered = sorted(zip(labels, scores, strict=True), key=lambda item: -item[1])
    return [{"label": label, "score": score} for label, score in ordered[: question.top_k]]


def refusal(answer: Answer) -> dict[str, Any]:
    """Return why a text was refused, and what its owner can do."""
    return {"refused": True, **because(answer["reason"])}


def because(reason: str) -> dict[str, str]:
    """Return why a text was refused, without what a Python program would do, and what its owner can do here."""
    return {"reason": reason.removesuffix(TO_CUT), "fix": what_to_do(reason)}


def what_to_do(reason: str) -> str:
    """Return what the owner of a text can do, if it was refused for this reason."""
    if reason == OUT_OF_RANGE:
        return OTHER_WORDS
    if reason == NO_CHARACTERS:
        return "save the text as UTF-8"
    return "shorten the text, or start the gateway with --max-length, which cuts long texts"


def _scores(logits: list[float], function: str | None) -> list[float]:
    if function == "sigmoid":
        # Written with tanh, it has no power that overflows.
        return [0.5 * (1 + math.tanh(value / 2)) for value in logits]
    if function == "none" or (function is None and len(logits) == 1):
        return logits
    largest = max(logits)
    weights = [math.exp(value - largest) for value in logits]
    return [weight / sum(weights) for weight in weights]


def detail(answer: Answer) -> dict[str, Any]:
    """Return what an answer took, and what the other parties saw of it if that was asked; of a refused text, too."""
    names = "seconds", "online_seconds", "rounds", "bytes", "batch", "dealt_ahead"
    found = {name: answer[name] for name in names if name in answer}
    seen = answer.get("seen")
    return found | ({"seen": _shown(seen)} if isinstance(seen, Seen) else {})


def _shown(seen: Seen) -> dict[str, Any]:
    listed = [{"kind": kind, "shapes": shapes, "count": count} for kind, shapes, count in seen.requests]
    return {
        "model_owner": {"first": seen.first.hex(), "histogram": seen.histogram, "counted": sum(seen.histogram)},
        "dealer": {"correlations": seen.n_requests, "listed": listed},
    }
