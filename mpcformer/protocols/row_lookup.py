"""Look up rows of the model owner's table for the data owner's words without telling which words they are.

This costs less than whole one-hot rows. The table is T, its mask is B, and the data owner has held F = T - B since the
set-up. The row of a word w is F[w] + B[w]. The data owner looks up F[w] by itself and asks for B[w] by buckets, see
`mpcformer.correlations.row_lookup`.
"""

import math

import torch
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching

from mpcformer.correlations import Request
from mpcformer.correlations.row_lookup import (
    BITS,
    MAX_WORDS,
    N_GROUPS,
    LookupSpec,
    Places,
    ask,
    choose,
)
from mpcformer.errors import ProtocolError
from mpcformer.protocols.cost import ProtocolCost, dealt, message
from mpcformer.protocols.party import DATA_OWNER, MODEL_OWNER, Half
from mpcformer.ring.filed import FiledTable


def request(name: str, n_rows: int, n_types: int, shape: tuple[int, ...], salt: int) -> Request:
    """Return the request for `n_rows` rows of the table `name` of `shape` (V + T, H), in a session with that salt."""
    return _spec(name, n_rows, n_types, shape, salt).request()


def cost(n_rows: int, n_types: int, shape: tuple[int, ...]) -> ProtocolCost:
    """Return the cost of a lookup, as `model_owner_answer` states it."""
    spec = _spec("table", n_rows, n_types, shape)
    asked = message(MODEL_OWNER, (spec.questions, BITS), (spec.choices, BITS))
    return asked + message(DATA_OWNER, (spec.answers, BITS)) + dealt(spec.request())


def is_cheaper(n_rows: int, n_types: int, shape: tuple[int, ...]) -> bool:
    """Return whether a lookup is defined and makes the owners send less than one-hot rows would.

    A lookup costs more for few rows of short vectors and for small tables, because its answers cost as much however few
    rows are asked for.
    """
    if not n_rows or not n_types or not 0 < shape[0] - n_types <= MAX_WORDS:
        return False
    spec = _spec("table", n_rows, n_types, shape)
    return sum(map(math.prod, (spec.questions, spec.choices, spec.answers))) < n_rows * shape[0]


def _spec(name: str, n_rows: int, n_types: int, shape: tuple[int, ...], salt: int = 0) -> LookupSpec:
    return LookupSpec(name, n_rows, shape[0] - n_types, n_types, shape[1], salt)


def place(words: torch.Tensor, where: Places) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose for every different word one of the three buckets where its row lies, such that no two words share one.

    Args:
        words: the words of one part, (n,).
        where: the session's places.

    Returns:
        The bucket of each entry of `words`, (n,), and its column there, (n,).

    Raises:
        ProtocolError: there is no such choice.
    """
    different, entry = torch.unique(words, return_inverse=True)
    buckets = where.bucket[:, different].t().contiguous()  # (n different, 3)
    starts = torch.arange(0, buckets.numel() + 1, N_GROUPS)
    edges = torch.ones(buckets.numel(), dtype=torch.int8)
    graph = csr_array(
        (edges.numpy(), buckets.reshape(-1).numpy(), starts.numpy()), (len(different), N_GROUPS * where.in_group)
    )
    bucket = torch.from_numpy(maximum_bipartite_matching(graph, perm_type="column")).long()
    if bool((bucket < 0).any()):
        raise ProtocolError(
            "the words of a batch find no places for a private lookup, which happens with probability 2^-40",
            "run it again: a new session has other places",
        )
    column = where.column[bucket // where.in_group, different]
    return bucket[entry], column[entry]


class Asked:
    """The data owner's side of a lookup: what it asks for, and its share of the rows once the answers are there.

    Args:
        request: the request of the correlation.
        tensors: the data owner's part of the correlation. The masks in it are overwritten.
    """

    def __init__(self, request: Request, tensors: list[torch.Tensor]) -> None:
        self._spec = LookupSpec.of(request)
        questions, choices, self._answers, self._result = tensors
        self._questions, self._choices = questions.neg_(), choices.neg_()
        self._types = self._choices[:, :, self._spec.n_buckets :].clone()  # -D's last columns
        self._bucket: torch.Tensor | None = None

    def halves(self, words: torch.Tensor, types: torch.Tensor) -> list[Half]:
        """Return the masked questions and choices, once: two under the same masks would tell their difference.

        Args:
            words, types: (rows,), below V and T.

        Raises:
            ProtocolError: the words find no places, a number is no word or type, or this was called before.
        """
        spec = self._spec
        if self._bucket is not None:
            raise ProtocolError("the masks of a private lookup are used once")
        if not 0 <= int(words.min()) <= int(words.max()) < spec.n_words:
            raise ProtocolError(f"a word's number is not in 0..{spec.n_words - 1}")
        if not 0 <= int(types.min()) <= int(types.max()) < spec.n_types:
            raise ProtocolError(f"a token type is not in 0..{spec.n_types - 1}")
        placed = [place(some, spec.places) for some in torch.split(words, spec.n_rows)]
        self._bucket, column = (torch.cat([each[i] for each in placed]) for i in (0, 1))
        part, row = (f(torch.arange(spec.n_lookups), spec.n_rows) for f in (torch.floor_divide, torch.remainder))
        # Equal words of a part ask the same question, once.
        spot = torch.unique(torch.stack([part, self._bucket, column]), dim=1)
        self._questions[*spot] += 1
        self._choices[part, row, self._bucket] += 1
        self._choices[part, row, spec.n_buckets + types] += 1
        return [(self._questions, BITS), (self._choices, BITS)]

    def share(self, words: torch.Tensor, answers: torch.Tensor, masked: torch.Tensor | FiledTable) -> torch.Tensor:
        """Compute the data owner's share of the rows, (rows, H).

        Args:
            words: as in `halves`.
            answers: the masked answers, (K, G, H).
            masked: F, (V + T, H).

        Raises:
            ProtocolError: `halves` was not called before.
        """
        if self._bucket is None:
            raise ProtocolError("answers to a private lookup that was not asked")
        spec, n_rows = self._spec, self._spec.n_lookups
        result = self._result.view(-1, spec.width)[:n_rows]
        answered = answers + self._answers
        part = torch.arange(n_rows) // spec.n_rows
        types = self._types.view(-1, spec.n_types)[:n_rows] @ masked[spec.n_words :].long()
        return masked[words].long() + answered[part, self._bucket] - types + result


def model_owner_answer(
    request: Request,
    questions: torch.Tensor,
    choices: torch.Tensor,
    mask: torch.Tensor,
    types: torch.Tensor,
    tensors: list[torch.Tensor],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the masked answers (K, G, H) for the data owner, and the model owner's share of the rows, (rows, H).

    Ideal function: T[w] + T[V + t] for each row's word w and type t, over Z_2^32.
    Shapes: questions (K, G, size), choices (K, R, G + T), mask B (V + T, H), types (T, H), which are the last rows
        of the table; size is 3 V / G, rounded up.
    Scale: that of the table.
    Range and error: exact modulo 2^32.
    Cost for K parts of R <= 256 rows: 2 rounds; 4 K (G size + R (G + T)) bytes to the model owner;
        4 G K H bytes to the data owner; 4 K H (G + R) dealer bytes.
    Source: batch codes as cited in `mpcformer.correlations.row_lookup`, with a dealer in place of homomorphic
        encryption. The masked weights are those of `mpcformer.protocols.linear`.

    What each owner sees: the model owner sees the questions minus A and the choices minus D. The data owner sees the
    answers minus s. It therefore knows s itself where it asked for nothing, and B[w] - s where it asked for w. The
    model owner's shares of the rows contain s; they leave it only under the mask of the opening that follows.
    """
    s, asked, chosen = tensors
    spec = LookupSpec.of(request)
    answers = ask(questions, mask, spec) + asked - s
    rows = choose(choices, s, types) + chosen
    return answers, rows.view(-1, rows.size(-1))[: spec.n_lookups]
