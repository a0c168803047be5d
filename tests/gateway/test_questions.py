"""Questions and answers in Hugging Face's shapes, without any model."""

import json
import math

import pytest

from mpcformer.errors import UserInputError
from parties.ask.classifier import NO_CHARACTERS, OUT_OF_RANGE
from parties.gateway.questions import OTHER_WORDS, Question, entry, parsed, what_to_do

LABELS = ["negative", "positive"]
SECRET = "the-secret-text"


def asked(**fields: object) -> Question:
    return parsed(json.dumps(fields).encode())


def test_what_may_be_asked() -> None:
    pair = {"text": "a", "text_pair": "b"}
    assert asked(inputs="a").texts == ["a"]
    assert asked(inputs=["a", pair, ["c", "d"]]).texts == ["a", pair, ("c", "d")]
    assert asked(inputs=pair).texts == [pair]
    assert asked(inputs=[]).texts == []
    found = asked(inputs="a", parameters={"top_k": 1, "function_to_apply": "none", "details": True})
    assert (found.top_k, found.function, found.details, found.seen) == (1, "none", True, False)
    # Hugging Face's clients send these, and put what concerns an embedding beside the inputs.
    assert not asked(inputs="a", normalize=False, truncate=True, options={"wait_for_model": True}).normalize
    assert asked(inputs="a", parameters={"top_k": None}) == Question(["a"])


@pytest.mark.parametrize(
    ("body", "message", "remedy"),
    [
        ("[]", "the body: a list is not an object", '"inputs"'),
        ('{"inputs": "the-secret-text', r"the body is no JSON: line 1, column \d+", '"inputs"'),
        (b'{"inputs": "\xff"}', "the body is not UTF-8", "UTF-8"),
        ("[" * 100_000, "nested too deeply", "inputs"),
        ('{"text": "a"}', "inputs: they are missing", '"inputs"'),
        ('{"inputs": null}', "inputs, text 0: NoneType is neither", "strings"),
        ('{"inputs": 3}', "inputs, text 0: int is neither", "strings"),
        ('{"inputs": ["a", ["the-secret-text", 2]]}', "inputs, text 1: str, int is neither", "strings"),
        ('{"inputs": {"text": "a", "pair": "the-secret-text"}}', "the field 'pair' is unknown", "text_pair"),
        ('{"inputs": "a", "parameters": []}', None, None),
        ('{"inputs": "a", "parameters": [1]}', "parameters: a list is not an object", "top_k"),
        ('{"inputs": "a", "parameters": {"top_k": 0}}', "top_k: a number is not a whole number", "leave it out"),
        ('{"inputs": "a", "parameters": {"top_k": true}}', "top_k: a truth value is not", "leave it out"),
        ('{"inputs": "a", "parameters": {"function_to_apply": "tanh"}}', "a string is not one of softmax", "leave"),
        ('{"inputs": "a", "parameters": {"details": "yes"}}', "details: a string is not true or false", "leave"),
        ('{"inputs": "a", "parameters": {"topk": 1}}', "'topk' is unknown", "top_k"),
    ],
)
def test_wrong_questions_are_named_and_never_quoted(body: str | bytes, message: str | None, remedy: str | None) -> None:
    given = body if isinstance(body, bytes) else body.encode()
    if message is None or remedy is None:
        assert parsed(given) == Question(["a"])
        return
    with pytest.raises(UserInputError, match=message) as caught:
        parsed(given)
    assert remedy in caught.value.remedy
    assert SECRET not in str(caught.value)


def test_too_many_texts() -> None:
    with pytest.raises(UserInputError, match="10001 texts are more than 10000") as caught:
        asked(inputs=["a"] * 10_001)
    assert getattr(caught.value, "status", None) == 413


def test_scores_of_all_labels() -> None:
    answer = {"label": "positive", "score": 0.9, "logits": [-1.0, 1.0]}

    def scores(**options: object) -> list[dict[str, object]]:
        return entry(answer, LABELS, "text-classification", Question(["a"], **options))  # type: ignore[arg-type]

    likely = 1 / (1 + math.exp(-2))
    first, second = scores()
    assert (first["label"], first["score"]) == ("positive", pytest.approx(likely))
    assert (second["label"], second["score"]) == ("negative", pytest.approx(1 - likely))
    assert scores(top_k=1) == [first]
    assert [each["score"] for each in scores(function="none")] == [1.0, -1.0]
    assert scores(function="sigmoid")[0]["score"] == pytest.approx(1 / (1 + math.exp(-1)))
    huge = entry({"logits": [-1e6, 1e6]}, LABELS, "text-classification", Question(["a"], function="sigmoid"))
    assert [each["score"] for each in huge] == [1.0, 0.0]
    assert entry({"logits": [3.5]}, ["similarity"], "text-classification", Question(["a"])) == [
        {"label": "similarity", "score": 3.5}
    ]


def test_embeddings_and_tokens() -> None:
    answer = {"label": None, "score": None, "embedding": [0.6, 0.8], "logits": [3.0, 4.0]}
    assert entry(answer, LABELS, "feature-extraction", Question(["a"])) == [0.6, 0.8]
    assert entry(answer, LABELS, "feature-extraction", Question(["a"], normalize=False)) == [3.0, 4.0]
    tokens = {"tokens": [{"label": "O", "score": 0.9}, {"label": "PER", "score": 0.8}], "logits": []}
    assert entry(tokens, LABELS, "token-classification", Question(["a"])) == [
        {"entity": "O", "score": 0.9, "index": 0},
        {"entity": "PER", "score": 0.8, "index": 1},
    ]


def test_a_refusal_has_no_label_and_says_what_to_do() -> None:
    answer = {"label": None, "score": None, "refused": True, "reason": OUT_OF_RANGE}
    told = {"refused": True, "reason": OUT_OF_RANGE, "fix": OTHER_WORDS}
    found = entry(answer, LABELS, "text-classification", Question(["a"]))
    assert found == [{"label": None, "score": None, **told}]
    assert entry(answer, LABELS, "feature-extraction", Question(["a"])) == told
    assert "UTF-8" in what_to_do(NO_CHARACTERS)
    assert "--max-length" in what_to_do("200 tokens are more than the model's 32 positions")
