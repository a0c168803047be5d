"""Rows of the model owner's table for the data owner's words, without telling which: cheaper than whole one-hot rows.

The table is T, its mask B, and the data owner holds F = T - B since the set-up. The row of a word w is F[w] + B[w]: the
first the data owner looks up by itself, the second it asks for by buckets, see mpcformer/correlations/row_lookup.py.
"""

import math

import torch
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching

from mpcformer.correlations import Request
from mpcformer.correlations.row_lookup import (
    BITS,
    GROUP_BUCKETS,
    MAX_WORDS,
    N_BUCKETS,
    N_GROUPS,
    Places,
    Size,
    ask,
    choose,
)
from mpcformer.errors import ProtocolError
from mpcformer.protocols.party import Half


def request(name: str, n_rows: int, n_types: int, shape: tuple[int, ...], salt: int) -> Request:
    """The correlation for rows of the table `name` of `shape` (V + T, H), in a session of that salt."""
    return Request("row_lookup", ((n_rows, n_types), shape), op=name, bits=BITS, params=(salt,))


def is_cheaper(n_rows: int, n_types: int, shape: tuple[int, ...]) -> bool:
    """Whether a lookup is defined and makes the owners send less than one-hot rows would.

    It does not for few rows of short vectors, nor for small tables: its answers cost as much whatever is asked.
    """
    if not n_rows or not n_types or not 0 < shape[0] - n_types <= MAX_WORDS:
        return False
    size = Size.of(request("", n_rows, n_types, shape, 0))
    return sum(map(math.prod, (size.questions, size.choices, size.answers))) < n_rows * shape[0]


def place(words: torch.Tensor, where: Places) -> tuple[torch.Tensor, torch.Tensor]:
    """A bucket for every different word, of the three where its row lies, so that no two words share one.

    Args:
        words: (n,) those of one part.
        where: the session's places.

    Returns:
        Bucket of each entry of `words` and its column there, (n,) each.

    Raises:
        ProtocolError: there is no such choice.
    """
    different, entry = torch.unique(words, return_inverse=True)
    buckets = where.bucket[:, different].t().contiguous()  # (n different, 3)
    starts = torch.arange(0, buckets.numel() + 1, N_GROUPS)
    edges = torch.ones(buckets.numel(), dtype=torch.int8)
    graph = csr_array((edges.numpy(), buckets.reshape(-1).numpy(), starts.numpy()), (len(different), N_BUCKETS))
    bucket = torch.from_numpy(maximum_bipartite_matching(graph, perm_type="column")).long()
    if bool((bucket < 0).any()):
        raise ProtocolError(
            "the words of a batch find no places for a private lookup, which has a chance of 2^-40",
            "run it again: a new session has other places",
        )
    column = where.column[bucket // GROUP_BUCKETS, different]
    return bucket[entry], column[entry]


class Asked:
    """At the data owner: what it asks for, and its share of the result once the answers are there.

    Args:
        request: the correlation's.
        tensors: its part of it; the masks in it are used up.
    """

    def __init__(self, request: Request, tensors: list[torch.Tensor]) -> None:
        self._size, self._n_rows = Size.of(request), request.shapes[0][0]
        questions, choices, self._answers, self._result = tensors
        self._questions, self._choices = questions.neg_(), choices.neg_()
        self._types = self._choices[:, :, N_BUCKETS:].clone()  # -D's last columns
        self._bucket: torch.Tensor | None = None

    def halves(self, words: torch.Tensor, types: torch.Tensor) -> list[Half]:
        """The masked questions and choices. Once: two under the same masks would tell their difference.

        Args:
            words, types: (rows,), below V and T.

        Raises:
            ProtocolError: the words find no places; a number that is no word or type; asked before.
        """
        size = self._size
        if self._bucket is not None:
            raise ProtocolError("the masks of a private lookup are used once")
        if words.device.type == "meta":
            self._bucket = words
            return [(self._questions, BITS), (self._choices, BITS)]
        if not 0 <= int(words.min()) <= int(words.max()) < size.n_words:
            raise ProtocolError(f"a word's number is not in 0..{size.n_words - 1}")
        if not 0 <= int(types.min()) <= int(types.max()) < size.n_types:
            raise ProtocolError(f"a token type is not in 0..{size.n_types - 1}")
        placed = [place(some, size.places) for some in torch.split(words, size.n_rows)]
        self._bucket, column = (torch.cat([each[i] for each in placed]) for i in (0, 1))
        part, row = (f(torch.arange(self._n_rows), size.n_rows) for f in (torch.floor_divide, torch.remainder))
        # Equal words of a part ask the same question, once.
        spot = torch.unique(torch.stack([part, self._bucket, column]), dim=1)
        self._questions[*spot] += 1
        self._choices[part, row, self._bucket] += 1
        self._choices[part, row, N_BUCKETS + types] += 1
        return [(self._questions, BITS), (self._choices, BITS)]

    def share(self, words: torch.Tensor, answers: torch.Tensor, masked: torch.Tensor) -> torch.Tensor:
        """(rows, H), from the masked answers (K, 432, H) and F (V + T, H).

        Raises:
            ProtocolError: nothing was asked.
        """
        if self._bucket is None:
            raise ProtocolError("answers to a private lookup that was not asked")
        size, n_rows = self._size, self._n_rows
        result = self._result.view(-1, size.width)[:n_rows]
        if words.device.type == "meta":
            return result
        answered = answers + self._answers
        part = torch.arange(n_rows) // size.n_rows
        types = self._types.view(-1, size.n_types)[:n_rows] @ masked[size.n_words :].long()
        return masked[words].long() + answered[part, self._bucket] - types + result


def model_owner_answer(
    request: Request,
    questions: torch.Tensor,
    choices: torch.Tensor,
    mask: torch.Tensor,
    types: torch.Tensor,
    tensors: list[torch.Tensor],
) -> tuple[torch.Tensor, torch.Tensor]:
    """The masked answers (K, 432, H) for the data owner, and party 0's share of the rows (rows, H).

    Ideal function: T[w] + T[V + t] for each row's word w and type t, over Z_2^32.
    Shapes: questions (K, 432, size), choices (K, R, 432 + T), mask B (V + T, H), types (T, H) of the table; size is
        V / 144, rounded up.
    Scale: the table's.
    Range and error: exact modulo 2^32.
    Cost: 2 one-way rounds; 4 K (432 size + R (432 + T)) bytes from party 1 to party 0, 4 * 432 K H back;
        4 K H (432 + R) dealer bytes; K parts of R <= 256 rows.
    Source: batch codes as cited in mpcformer/correlations/row_lookup.py, with a dealer in place of homomorphic
        encryption. The masked weights are those of mpcformer/protocols/linear.py.

    What each side sees: the questions less A and the choices less D, at the model owner; at the data owner the answers
    less s, so that it knows s itself where it asked for nothing, and B[w] - s where it asked for w. The rows' shares
    contain s and leave the model owner under the mask of the opening that follows, never without.
    """
    s, asked, chosen = tensors
    answers = ask(questions, mask, Size.of(request)) + asked - s
    rows = choose(choices, s, types) + chosen
    return answers, rows.view(-1, rows.size(-1))[: request.shapes[0][0]]
