"""Rows of the model owner's table for the data owner's words: where each row may be asked for, and the correlation.

To take n rows out of V, n one-hot vectors of length V cost n V ring elements. A batch code needs 3 V for all of up to
256 rows, and 432 n more to put the answers in order: every row lies in three of 432 public buckets, one in each of
three groups; every word gets a bucket of its own among its three (cuckoo hashing), and one short one-hot vector goes to
each bucket, whether a word took it or not.
Source: Ishai, Kushilevitz, Ostrovsky and Sahai, Batch Codes and Their Applications, STOC 2004; with cuckoo hashing
Angel, Chen, Laine and Setty, PIR with Compressed Queries and Amortized Query Processing, IEEE S&P 2018, section 5.
"""

import hashlib
import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from scipy.sparse import csc_array

from mpcformer.correlations.kinds import KINDS, MAX_ELEMENTS, Kind
from mpcformer.correlations.requests import Request, Shape
from mpcformer.correlations.suite import weight_mask
from mpcformer.errors import ProtocolError
from mpcformer.ring import gemm
from mpcformer.ring.random import KEY_BYTES, Stream, derive_key

BITS = 32
# With these, 256 words find no places with a probability of 2^-40; docs/security.md counts.
N_GROUPS, GROUP_BUCKETS, MAX_ROWS = 3, 144, 256
N_BUCKETS = N_GROUPS * GROUP_BUCKETS
# Four words with the same three buckets would have no places together.
MAX_ALIKE = N_GROUPS
# Among so many words four alike are rare; larger tables take one-hot rows.
MAX_WORDS = 1 << 16
SALT_BITS = 48


@dataclass(frozen=True)
class Places:
    """Public places of a table's rows.

    Attributes:
        bucket, column: (3, V) where each row lies in each group, whose rows are dealt out evenly.
    """

    bucket: torch.Tensor
    column: torch.Tensor


def bucket_size(n_words: int) -> int:
    """Columns of a bucket."""
    return math.ceil(n_words / GROUP_BUCKETS)


def salt_of(session_id: bytes) -> int:
    """What a session's places are drawn from: who writes texts before it begins cannot fit them to the places."""
    return int.from_bytes(hashlib.sha256(b"places of words" + session_id).digest()[: SALT_BITS // 8], "big")


@lru_cache(maxsize=4)
def places(n_words: int, salt: int) -> Places:
    """The places of a table of V rows in a session: public, no three buckets shared by more than three words."""
    number = torch.arange(n_words)
    for attempt in range(10):  # at 2^16 words one in 35 fails
        stream = Stream(derive_key(bytes(KEY_BYTES), "places of words", n_words, salt, attempt))
        bucket, column = (torch.empty((N_GROUPS, n_words), dtype=torch.int64) for _ in range(2))
        for group in range(N_GROUPS):
            order = stream.int64((n_words,)).argsort()
            bucket[group, order] = group * GROUP_BUCKETS + number % GROUP_BUCKETS
            column[group, order] = number // GROUP_BUCKETS
        first, second, third = bucket
        _, alike = torch.unique((first * N_BUCKETS + second) * N_BUCKETS + third, return_counts=True)
        if int(alike.max()) <= MAX_ALIKE:
            return Places(bucket, column)
    raise ProtocolError(f"a table of {n_words} rows finds no places in the buckets of a private lookup")


@dataclass(frozen=True)
class Size:
    """The numbers of a lookup, from its request.

    Attributes:
        salt: see `salt_of`.
        n_words, n_types: V rows looked up by words and T more, of which each row adds one, by their one-hot vector.
        n_parts, n_rows: K parts of R rows each, of which the last may be partly empty.
        width: H.
    """

    salt: int
    n_words: int
    n_types: int
    n_parts: int
    n_rows: int
    width: int

    @staticmethod
    def of(request: Request) -> "Size":
        """From shapes (rows, T) and (V + T, H), and the salt."""
        (n_rows, n_types), (n_table, width) = request.shapes
        n_parts = math.ceil(n_rows / MAX_ROWS)
        return Size(int(request.params[0]), n_table - n_types, n_types, n_parts, math.ceil(n_rows / n_parts), width)

    @property
    def places(self) -> Places:
        """Of the session."""
        return places(self.n_words, self.salt)

    @property
    def questions(self) -> Shape:
        """One vector a bucket: (K, 432, size)."""
        return self.n_parts, N_BUCKETS, bucket_size(self.n_words)

    @property
    def choices(self) -> Shape:
        """By row, which bucket's answer and which type: (K, R, 432 + T)."""
        return self.n_parts, self.n_rows, N_BUCKETS + self.n_types

    @property
    def answers(self) -> Shape:
        """(K, 432, H)."""
        return self.n_parts, N_BUCKETS, self.width

    @property
    def result(self) -> Shape:
        """(K, R, H)."""
        return self.n_parts, self.n_rows, self.width


def ask(questions: torch.Tensor, table: torch.Tensor, size: Size) -> torch.Tensor:
    """Each bucket's vector (K, 432, size) times its rows of the int32 table (V + T, H): (K, 432, H) over Z_2^32, int64.

    A sparse product, column by column: the table is read once and in order, where buckets would jump about in it.
    """
    if questions.device.type == "meta":
        return torch.empty(size.answers, dtype=torch.int64, device="meta")
    where, n_parts = size.places, size.n_parts
    values = questions[:, where.bucket, where.column].to(torch.int32)  # (K, 3, V)
    rows = where.bucket + N_BUCKETS * torch.arange(n_parts)[:, None, None]
    data, indices = (x.permute(2, 0, 1).reshape(-1).to(torch.int32).numpy() for x in (values, rows))
    starts = torch.arange(0, values.numel() + 1, N_GROUPS * n_parts, dtype=torch.int32).numpy()
    matrix = csc_array((data.view(np.uint32), indices, starts), (n_parts * N_BUCKETS, size.n_words))
    product = matrix @ table[: size.n_words].numpy().view(np.uint32)
    return torch.from_numpy(product.view(np.int32)).view(size.answers).long()


def choose(choices: torch.Tensor, answers: torch.Tensor, types: torch.Tensor) -> torch.Tensor:
    """(K, R, 432 + T) times the answers (K, 432, H) over the types' rows (T, H): (K, R, H) over Z_2^32, as int64."""
    products = [gemm.matmul(c, torch.cat([a.to(torch.int32), types])) for c, a in zip(choices, answers, strict=True)]
    return torch.stack(products)


class RowLookup(Kind):
    """Masks for the questions and the choices at party 1, and what makes up for them.

    shapes: (rows, T), (V + T, H); op: the table's name; bits: 32; params: the salt. Over Z_2^32.
    At party 0 s (K, 432, H), new masks of the answers. At party 1 A (K, 432, size) and D (K, R, 432 + T). At both
    [A_k B_k]* (K, 432, H) by bucket, with B the table's mask, which party 0 derives from its own key, and
    [D (s, B's types)]* (K, R, H).
    Dealer bytes: 4 K H (432 + R).
    """

    n_operands = 2

    def check(self, request: Request) -> None:
        """A table with words and types, a salt, and masks that fit into memory."""
        super().check(request)
        if request.bits != BITS or any(len(shape) != 2 for shape in request.shapes):
            raise ProtocolError(f"a lookup of shapes {request.shapes} over {request.bits} bits is not defined")
        (_, n_types), (n_table, _) = request.shapes
        if "," in request.op or not request.op or not 0 < n_types <= N_BUCKETS:
            raise ProtocolError(f"a lookup of {n_types} types in {request.op[:40]!r} is not defined")
        if not 0 < n_table - n_types <= MAX_WORDS:
            raise ProtocolError(f"a lookup takes 1 to {MAX_WORDS} words, not {n_table - n_types}")
        (salt,) = request.params if len(request.params) == 1 else (-1.0,)
        if not 0 <= salt < 1 << SALT_BITS or not float(salt).is_integer():
            raise ProtocolError(f"a lookup's parameters are one salt below 2^{SALT_BITS}")
        size = Size.of(request)
        drawn = size.questions, size.choices, size.answers, size.answers, size.result, request.shapes[1]
        if sum(map(math.prod, drawn)) > MAX_ELEMENTS:
            raise ProtocolError(f"a lookup's masks exceed {MAX_ELEMENTS} elements", "use smaller batches")

    def layout(self, request: Request) -> list[tuple[Shape, int]]:
        """Answers and results."""
        size = Size.of(request)
        return [(size.answers, BITS), (size.result, BITS)]

    def weight_masks(self, request: Request, key: bytes) -> list[torch.Tensor]:
        """B."""
        return [weight_mask(key, request.op, request.shapes[1], BITS)]

    def draw(self, request: Request, stream: Stream, party: int) -> list[torch.Tensor]:
        """[s] at party 0; A, D and its shares at party 1."""
        size = Size.of(request)
        if party == 0:
            return [stream.int64(size.answers)]
        return [stream.int64(size.questions), stream.int64(size.choices), *self._last(request, stream, party)]

    def correct(self, request: Request, share_0: list[torch.Tensor], share_1: list[torch.Tensor]) -> list[torch.Tensor]:
        """Both products minus party 1's shares."""
        (s, b), (a, d, asked, chosen) = share_0, share_1
        size = Size.of(request)
        return [ask(a, b, size) - asked, choose(d, s, b[size.n_words :]) - chosen]


KINDS.update(row_lookup=RowLookup())
