"""The places of a private table's rows, and the correlation for looking them up; see `protocols.row_lookup`.

Taking n rows out of V by n one-hot vectors of length V costs n V ring elements. A batch code needs 3 V for all of up
to 256 rows, and G n more to put the answers in order. Every row lies in three of G public buckets, one in each of
three groups; G depends on n. Every word gets a bucket of its own among its three (cuckoo hashing), and one short
one-hot vector is sent for each bucket, whether a word took it or not.
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

from mpcformer.correlations.base import MAX_ELEMENTS, Kind
from mpcformer.correlations.linear import weight_mask
from mpcformer.correlations.requests import MaskKeys, Request, Shape
from mpcformer.errors import ProtocolError
from mpcformer.ring import gemm
from mpcformer.ring.kernels import load
from mpcformer.ring.random import KEY_BYTES, Stream, derive_key

BITS = 32
N_GROUPS, MAX_ROWS = 3, 256
# By the most rows of a part: the buckets of a group with which so many words find no places with a probability below
# 2^-40. docs/security.md has the calculation, and a test repeats it.
GROUP_BUCKETS = {16: 40, 32: 56, 64: 78, 96: 94, 128: 107, 192: 129, MAX_ROWS: 147}
# Four words that share the same three buckets could not be placed together.
MAX_ALIKE = N_GROUPS
APART = 4
# Larger tables take one-hot rows.
MAX_WORDS = 1 << 19
SALT_BITS, MAX_TYPES = 48, 1024
# How often words that share their buckets may be moved.
MAX_REPAIRS = 20


@dataclass(frozen=True)
class Places:
    """The public places of a table's rows.

    Attributes:
        bucket, column: (3, V), where each row lies in each of the three groups. The buckets of a group are equally
            full, to within one row.
        in_group: the number of buckets in a group.
    """

    bucket: torch.Tensor
    column: torch.Tensor
    in_group: int


def group_buckets(n_rows: int, n_words: int) -> int:
    """Return the number of buckets in a group for up to `n_rows` rows of a part, at most MAX_ROWS, of a table of V."""
    buckets = next(buckets for most, buckets in GROUP_BUCKETS.items() if n_rows <= most)
    # There are so many different triples of buckets that few words share theirs with three others.
    while buckets**N_GROUPS < APART * n_words:
        buckets += 1
    return buckets


def salt_of(session_id: bytes) -> int:
    """Derive the number from which a session's places are drawn. Texts written before cannot be fitted to them."""
    return int.from_bytes(hashlib.sha256(b"places of words" + session_id).digest()[: SALT_BITS // 8], "big")


@lru_cache(maxsize=4)
def places(n_words: int, in_group: int, salt: int) -> Places:
    """Draw the public places of a table of V rows, such that no more than three words share the same three buckets.

    Args:
        n_words: V.
        in_group: the number of buckets in a group.
        salt: see `salt_of`.

    Raises:
        ProtocolError: the words of a table cannot be told apart by so few buckets.
    """
    number = torch.arange(n_words)
    stream = Stream(derive_key(bytes(KEY_BYTES), "places of words", n_words, in_group, salt))
    # The word at each spot of a group; spots are dealt to the buckets in turn.
    order = torch.stack([stream.int64((n_words,)).argsort() for _ in range(N_GROUPS)])
    spot = order[0].argsort()
    bucket, column = (torch.empty((N_GROUPS, n_words), dtype=torch.int64) for _ in range(2))
    for _ in range(MAX_REPAIRS):
        for group in range(N_GROUPS):
            bucket[group, order[group]] = group * in_group + number % in_group
            column[group, order[group]] = number // in_group
        crowded = _crowded(bucket, in_group)
        if not len(crowded):
            return Places(bucket, column, in_group)
        # Each word too many changes places with another one in the first group.
        others = stream.int64((len(crowded),)).remainder(n_words)
        for word, other in zip(crowded.tolist(), others.tolist(), strict=True):
            mine, theirs = int(spot[word]), int(spot[other])
            order[0, mine], order[0, theirs] = other, word
            spot[word], spot[other] = theirs, mine
    raise ProtocolError(f"a table of {n_words} rows finds no places in the buckets of a private lookup")


def _crowded(bucket: torch.Tensor, in_group: int) -> torch.Tensor:
    """Return the words that share all three buckets with three words before them."""
    first, second, third = bucket
    code = (first * in_group * N_GROUPS + second) * in_group * N_GROUPS + third
    code, words = code.sort(stable=True)
    crowded: torch.Tensor = words[MAX_ALIKE:][code[MAX_ALIKE:] == code[:-MAX_ALIKE]]
    return crowded


@dataclass(frozen=True)
class LookupSpec:
    """A lookup of rows in one table.

    Args:
        table: the name of the table.
        n_lookups: the number of rows that are looked up.
        n_words, n_types: the table has V rows that are looked up by words, and T more; one of these is added to each
            row, by a one-hot vector.
        width: the length H of a row.
        salt: the number from which the session's places are drawn, see `salt_of`.
    """

    table: str
    n_lookups: int
    n_words: int
    n_types: int
    width: int
    salt: int

    def request(self) -> Request:
        """Return the request for the dealer."""
        shapes = ((self.n_lookups, self.n_types), self.table_shape)
        return Request("row_lookup", shapes, op=self.table, bits=BITS, params=(self.salt,))

    @staticmethod
    def of(request: Request) -> "LookupSpec":
        """Read a request.

        Raises:
            ProtocolError: the request describes no table with words and types, or has no salt.
        """
        if request.bits != BITS or any(len(shape) != 2 for shape in request.shapes):
            raise ProtocolError(f"a lookup of shapes {request.shapes} over {request.bits} bits is not defined")
        (n_lookups, n_types), (n_table, width) = request.shapes
        if "," in request.op or not request.op or not 0 < n_types <= MAX_TYPES:
            raise ProtocolError(f"a lookup of {n_types} types in {request.op[:40]!r} is not defined")
        if not 0 < n_table - n_types <= MAX_WORDS:
            raise ProtocolError(f"a lookup takes 1 to {MAX_WORDS} words, not {n_table - n_types}")
        (salt,) = request.params if len(request.params) == 1 else (-1.0,)
        if not 0 <= salt < 1 << SALT_BITS or not float(salt).is_integer():
            raise ProtocolError(f"a lookup's parameters are one salt below 2^{SALT_BITS}")
        return LookupSpec(request.op, n_lookups, n_table - n_types, n_types, width, int(salt))

    @property
    def table_shape(self) -> Shape:
        """(V + T, H)."""
        return self.n_words + self.n_types, self.width

    @property
    def n_parts(self) -> int:
        """The number K of parts, each of which has questions of its own."""
        return math.ceil(self.n_lookups / MAX_ROWS)

    @property
    def n_rows(self) -> int:
        """The number R of rows in each part; the last part may be partly empty."""
        return math.ceil(self.n_lookups / self.n_parts)

    @property
    def places(self) -> Places:
        """The session's places."""
        return places(self.n_words, self.in_group, self.salt)

    @property
    def in_group(self) -> int:
        """The number of buckets in a group."""
        return group_buckets(self.n_rows, self.n_words)

    @property
    def n_buckets(self) -> int:
        """The number G of all buckets."""
        return N_GROUPS * self.in_group

    @property
    def bucket_size(self) -> int:
        """The number of columns of a bucket."""
        return math.ceil(self.n_words / self.in_group)

    @property
    def questions(self) -> Shape:
        """The shape of the questions, one vector for each bucket: (K, G, size)."""
        return self.n_parts, self.n_buckets, self.bucket_size

    @property
    def choices(self) -> Shape:
        """The shape of the choices, which tell the bucket and the type of each row: (K, R, G + T)."""
        return self.n_parts, self.n_rows, self.n_buckets + self.n_types

    @property
    def answers(self) -> Shape:
        """The shape of the answers, one for each bucket: (K, G, H)."""
        return self.n_parts, self.n_buckets, self.width

    @property
    def result(self) -> Shape:
        """The shape of the rows that were looked up: (K, R, H)."""
        return self.n_parts, self.n_rows, self.width


def ask(questions: torch.Tensor, table: torch.Tensor, spec: LookupSpec) -> torch.Tensor:
    """Multiply the vector of each bucket with the rows in that bucket.

    The table is read once and in order; going bucket by bucket would jump about in it.

    Args:
        questions: the vectors, (K, G, size).
        table: int32 (V + T, H).
        spec: the lookup.

    Returns:
        int64 (K, G, H) over Z_2^32.
    """
    where, words = spec.places, table[: spec.n_words]
    factors = questions[:, where.bucket, where.column].to(torch.int32)  # (K, 3, V)
    kernels, _ = load()
    add_up = by_bucket if kernels is None else kernels.tables.by_bucket
    return add_up(factors, where.bucket, words, spec.n_buckets).long()


def by_bucket(factors: torch.Tensor, buckets: torch.Tensor, table: torch.Tensor, n_buckets: int) -> torch.Tensor:
    """Do as `ring.tables.TableKernels.by_bucket`, without the compiled functions: by a sparse product."""
    n_parts, n_groups, n_rows = factors.shape
    places = buckets + n_buckets * torch.arange(n_parts)[:, None, None]
    data, indices = (x.permute(2, 0, 1).reshape(-1).to(torch.int32).numpy() for x in (factors, places))
    starts = torch.arange(0, factors.numel() + 1, n_groups * n_parts, dtype=torch.int32).numpy()
    matrix = csc_array((data.view(np.uint32), indices, starts), (n_parts * n_buckets, n_rows))
    product = matrix @ table.numpy().view(np.uint32)
    return torch.from_numpy(product.view(np.int32)).view(n_parts, n_buckets, table.size(1))


def choose(choices: torch.Tensor, answers: torch.Tensor, types: torch.Tensor) -> torch.Tensor:
    """Pick the answer and the type of each row.

    Args:
        choices: one-hot for the bucket and for the type, (K, R, G + T).
        answers: (K, G, H).
        types: the rows of the types, int32 (T, H).

    Returns:
        int64 (K, R, H) over Z_2^32.
    """
    products = [
        gemm.matmul(c, torch.cat([a.to(torch.int32), types]), 32) for c, a in zip(choices, answers, strict=True)
    ]
    return torch.stack(products)


class RowLookup(Kind):
    """Masks for the questions and the choices at rank 1, and the products that make up for them; over Z_2^32.

    At rank 0: s (K, G, H), fresh masks of the answers. At rank 1: A (K, G, size) and D (K, R, G + T). At both:
    [A_k B_k]* (K, G, H) by bucket, for the table's mask B, which rank 0 derives from its own key, and
    [D (s, the types' rows of B)]* (K, R, H).
    The shapes of the request are (rows, T) and (V + T, H), `op` is the table's name, and the one parameter is the salt.
    Dealer bytes: 4 K H (G + R).
    """

    n_operands = 2

    def check(self, request: Request) -> None:
        """Require a table with words and types, a salt, and masks that fit into memory."""
        super().check(request)
        spec = LookupSpec.of(request)
        drawn = spec.questions, spec.choices, spec.answers, spec.answers, spec.result, spec.table_shape
        if sum(map(math.prod, drawn)) > MAX_ELEMENTS:
            raise ProtocolError(f"a lookup's masks exceed {MAX_ELEMENTS} elements", "use smaller batches")

    def layout(self, request: Request) -> list[tuple[Shape, int]]:
        """Return the layouts of the answers and of the results."""
        spec = LookupSpec.of(request)
        return [(spec.answers, BITS), (spec.result, BITS)]

    def weight_masks(self, request: Request, keys: MaskKeys) -> list[torch.Tensor]:
        """Derive B."""
        spec = LookupSpec.of(request)
        return [weight_mask(keys.weights, spec.table, spec.table_shape, BITS)]

    def draw(self, request: Request, stream: Stream, rank: int) -> list[torch.Tensor]:
        """Draw s at rank 0; draw A, D and the shares of both products at rank 1."""
        spec = LookupSpec.of(request)
        if rank == 0:
            return [stream.int64(spec.answers)]
        return [stream.int64(spec.questions), stream.int64(spec.choices), *self.draw_corrected(request, stream, rank)]

    def correct(self, request: Request, share_0: list[torch.Tensor], share_1: list[torch.Tensor]) -> list[torch.Tensor]:
        """Compute both products minus rank 1's shares of them."""
        (s, b), (a, d, asked, chosen) = share_0, share_1
        spec = LookupSpec.of(request)
        return [ask(a, b, spec) - asked, choose(d, s, b[spec.n_words :]) - chosen]
