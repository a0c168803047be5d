"""One case or more for each protocol, whose cost `test_costs.py` compares with what is counted."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from mpcformer.correlations.row_lookup import BITS, LookupSpec
from mpcformer.engines.lift.scales.tables import table as tables_of
from mpcformer.protocols import guard, lifted, linear, matmul, piecewise, row_lookup, sealed, table, window, zero_test
from mpcformer.protocols.cost import ProtocolCost, opening
from mpcformer.protocols.lifted import Mask, Opened
from mpcformer.protocols.party import DATA_OWNER, MODEL_OWNER, Party, add_halves, shapes_of, shift, split
from mpcformer.protocols.piecewise import Evaluation, Piece, PiecewiseFunction
from mpcformer.protocols.table import Lookup, TableFunction
from mpcformer.protocols.window import ExponentialFunction, Windowed, WindowFunction
from mpcformer.ring.random import Stream, fresh_key

# A run goes through set-up, offline part and online part, and yields at the end of each of the first two.
Run = Callable[[Party], Iterator[None]]


@dataclass(frozen=True)
class Case:
    """One run of a protocol.

    Attributes:
        cost: what the code states.
        docs: the docstrings that state the same, each with the label of its cost line, or None if no docstring does.
        sizes: the values of the variables in the cost lines.
    """

    name: str
    run: Run
    cost: ProtocolCost
    docs: list[tuple[str | None, str]] | None = None
    sizes: dict[str, int] = field(default_factory=dict)


def random(*shape: int) -> torch.Tensor:
    return Stream(fresh_key()).int64(shape)


def online(run: Callable[[Party], Any]) -> Run:
    """Make a run that has only an online part."""

    def phases(party: Party) -> Iterator[None]:
        yield
        yield
        run(party)

    return phases


def openings() -> Iterator[Case]:
    halves = [(random(3, 5), 24), (random(7), 64)]
    n = 45 + 56
    yield Case(
        "open", online(lambda p: p.open(halves)), opening(*shapes_of(halves)), [(Party.open.__doc__, "")], {"n": n}
    )
    bits = opening(((3, 5), 16))
    yield Case(
        "open bits", online(lambda p: p.open_bits(random(3, 5), 16)), bits, [(Party.open_bits.__doc__, "")], {"n": 30}
    )
    yield Case("shift", online(lambda p: shift(random(4), 3, p.rank)), ProtocolCost(), [(shift.__doc__, "")])


def linear_maps(bits: int) -> Case:
    shapes = {"w": (6, 5), "g": (6,)}

    def run(party: Party) -> Iterator[None]:
        key = party.store.weight_mask_key()  # type: ignore[attr-defined]
        weights = [random(*shape).to(torch.int32 if bits == 32 else torch.int64) for shape in shapes.values()]
        masked = [(linear.masked_weight(w, key, n, bits), bits) for w, n in zip(weights, shapes, strict=True)]
        masked_shapes = shapes_of(masked)
        if party.rank == MODEL_OWNER:
            party.send(masked)
        else:
            party.receive(masked_shapes)
        yield
        yield
        tensors = party.take(linear.request(["w", "g"], 4, shapes, [bits, bits]))
        if party.rank == DATA_OWNER:
            party.send([(random(4, 6) - tensors[0], bits)])
            return
        ((x, _),) = split(party.receive([((4, 6), bits)]), [((4, 6), bits)])
        linear.model_owner_share(random(4, 6) + x, weights, tensors, [bits, bits])

    weights = list(shapes.values())
    cost = linear.cost(4, weights, [bits, bits]) + linear.setup_cost(weights, bits)
    docs = [(linear.model_owner_share.__doc__, ""), (linear.masked_weight.__doc__, "")]
    return Case(f"linear, {bits} bits", run, cost, docs, {"k": bits, "rows": 4, "in": 6, "out": 11, "n": 36})


def map_and_opening() -> Case:
    """A linear map and the opening of its result, of which the data owner sends its half before it knows its input."""
    bits, shape = 56, (4, 5)

    def run(party: Party) -> Iterator[None]:
        yield
        maps, lift = linear.request(["w"], 4, {"w": (6, 5)}, [bits]), lifted.request("square", shape, 32)
        wanted = [(shape, 32)]
        if party.rank == DATA_OWNER:
            a, c = party.store.preview(0, maps).shares
            half = Mask(party.store.preview(1, lift).shares, 32, "square").half(c, party.rank)
            party.send([half])
            yield
            party.send([(random(4, 6) - a, bits)])
            opened = add_halves([half], split(party.receive(wanted), wanted))
        else:
            ahead = party.receive(wanted)
            yield
            tensors, mask = party.take(maps), Mask(party.take(lift), 32, "square")
            ((x, _),) = split(party.receive([((4, 6), bits)]), [((4, 6), bits)])
            z = linear.model_owner_share(random(4, 6) + x, [random(6, 5)], tensors, [bits])[0]
            half = mask.half(z, party.rank)
            party.send([half])
            opened = add_halves([half], split(ahead, wanted))
        assert opened[0].shape == shape

    return Case("map and opening", run, linear.cost(4, [(6, 5)], [bits]) + lifted.cost("square", shape, 32, ahead=True))


def matrix_product(bits: int) -> Case:
    x, y = (2, 3, 5, 7), (2, 3, 6, 7)

    def run(party: Party) -> None:
        masks = party.take(matmul.request(x, y, bits))
        halves = [matmul.half(random(*shape), mask, bits) for shape, mask in zip((x, y), masks, strict=False)]
        matmul.product(party, *party.open(halves), masks, bits)

    sizes = {"k": bits, "b": 6, "m": 5, "n": 7, "p": 6}
    doc = matmul.product.__doc__
    return Case(f"matmul, {bits} bits", online(run), matmul.cost(x, y, bits), [(doc, "")], sizes)


def lift(use: str, bits: int, large: int = 64) -> Case:
    shape = (5, 12)

    def run(party: Party) -> None:
        mask = Mask(party.take(lifted.request(use, shape, bits, large)), bits, use, large)
        opened = Opened(party, mask, party.open([mask.half(random(*shape), party.rank)])[0])
        opened.value()

    sizes = {"k": bits, "T": large, "n": 60, "m": 5}
    docs, cost = [(lifted.cost.__doc__, use)], lifted.cost(use, shape, bits, large)
    return Case(f"lifted for {use}, {bits} to {large} bits", online(run), cost, docs, sizes)


def factor() -> Case:
    shape = (5, 11)

    def run(party: Party) -> None:
        mask = Mask(party.take(lifted.request("scale", shape, 24)), 24, "scale")
        c = party.open([mask.half(random(*shape), party.rank)])[0]
        factor = party.open([mask.factor_half(random(5, 1), party.rank)])[0]
        Opened(party, mask, c).times(factor)

    cost = lifted.cost("scale", shape, 24) + lifted.factor_cost(shape)
    docs = [(lifted.cost.__doc__, "scale"), (lifted.factor_cost.__doc__, "")]
    return Case("lifted with its factor", online(run), cost, docs, {"k": 24, "T": 64, "n": 55, "m": 5})


def looked_up(label: str, low: float, guarded: bool, n_keys: int = 0) -> Case:
    function = tables_of("reciprocal", low, 1.0, 2.0**-30, 12, 0.33, max_log_bins=7, guarded=guarded)
    function = replace(function, upper=replace(function.upper, spec=replace(function.upper.spec, tags=n_keys)))

    def run(party: Party) -> None:
        tensors = [party.take(request) for request in Lookup.requests(function, 9)]
        lookup = Lookup(function, tensors, party.rank)
        lookup.evaluate(party, party.open(lookup.halves(random(9))))

    cost = table.cost(function, 9)
    return Case(f"lookup in {label}", online(run), cost, [(Lookup.__doc__, label)], {"m": 9, **bins(function)})


def bins(function: TableFunction) -> dict[str, int]:
    parts = {"u": function.upper, "l": function.lower, "g": function.guard}
    return {name: part.spec.log_bins for name, part in parts.items() if part}


def pieces(name: str, function: PiecewiseFunction) -> Case:
    shape = (3, 7)

    def run(party: Party) -> None:
        evaluation = Evaluation(function, party.take(function.request(shape)), party.rank)
        evaluation.evaluate(party, party.open([evaluation.half(random(*shape))])[0])

    degrees = [len(piece.coefficients) - 1 for piece in function.pieces]
    t = len(function.thresholds)
    sizes = {"k": function.bits, "n": 21, "t": t, "w": next(w for w in (1, 2, 3, 4, 5, 6, 7, 8) if w >= t)}
    sizes |= {"s": int(2 in degrees), "h": (64 - function.bits) // 8}
    sizes |= {f"p{degree}": degrees.count(degree) for degree in range(3)}
    return Case(name, online(run), piecewise.cost(function, shape), [(Evaluation.__doc__, "")], sizes)


def window_of(name: str, function: Windowed) -> Case:
    shape = (3, 8)

    def run(party: Party) -> None:
        evaluation = function.evaluation(party.take(function.request(shape)), party.rank)
        evaluation.evaluate(party, party.open([evaluation.half(random(*shape))])[0])

    spec = function.spec(shape)
    sizes = {"k": spec.bits, "T": spec.lift, "v": spec.value_bits, "u": spec.slope_bits, "n": 24}
    sizes |= {"a": spec.value_high_bits, "b": spec.slope_high_bits, "c": spec.lift * spec.counted}
    sizes |= {"h": (spec.lift + 3 * spec.high_bits) * spec.degree}
    label = f"{'lines' if spec.slope_bits else 'an exponential'} for n elements with the opening"
    return Case(name, online(run), window.cost(function, shape), [(window.Evaluation.__doc__, label)], sizes)


def words(n_rows: int) -> Case:
    n_words, n_types, width = 2000, 2, 8
    shape = n_words + n_types, width
    request = row_lookup.request("words", n_rows, n_types, shape, 123)
    spec = LookupSpec.of(request)

    def run(party: Party) -> None:
        key = party.store.weight_mask_key()  # type: ignore[attr-defined]
        whole = random(*shape).to(torch.int32)
        masked = linear.masked_weight(whole, key, "words", BITS)
        tensors, rows = party.take(request), torch.zeros(n_rows, dtype=torch.int64)
        asked = [(spec.questions, BITS), (spec.choices, BITS)]
        if party.rank == DATA_OWNER:
            mine = row_lookup.Asked(request, tensors)
            party.send(mine.halves(rows, rows))
            ((answers, _),) = split(party.receive([(spec.answers, BITS)]), [(spec.answers, BITS)])
            mine.share(rows, answers, masked)
            return
        (questions, _), (choices, _) = split(party.receive(asked), asked)
        types = whole[n_words:]
        answers, _ = row_lookup.model_owner_answer(request, questions, choices, whole - masked, types, tensors)
        party.send([(answers, BITS)])

    sizes = {
        "K": spec.n_parts,
        "R": spec.n_rows,
        "T": n_types,
        "H": width,
        "size": spec.bucket_size,
        "G": spec.n_buckets,
    }
    cost = row_lookup.cost(n_rows, n_types, shape)
    return Case(f"row lookup of {n_rows}", online(run), cost, [(row_lookup.model_owner_answer.__doc__, "")], sizes)


def zero() -> Case:
    def run(party: Party) -> None:
        tensors = party.take(zero_test.request(5))
        zero_test.verdict(tensors, party.open([(random(5) + tensors[0], 64)])[0])

    return Case("zero test", online(run), zero_test.cost(5), [(zero_test.verdict.__doc__, "")], {"n": 5})


def withheld() -> Case:
    def run(party: Party) -> None:
        if party.rank == MODEL_OWNER:
            party.send(sealed.seal(random(5, 2), random(5, 3), 24))
        else:
            shapes = sealed.shapes(5, 3, 24)
            (tags, _), (numbers, _) = split(party.receive(shapes), shapes)
            sealed.unseal(random(5, 2), tags, numbers)

    return Case("sealed", online(run), sealed.cost(5, 3, 24), [(sealed.seal.__doc__, "")], {"n": 5, "m": 3, "k": 24})


def guarded() -> Case:
    groups = [(random(42), 30, torch.ones(42, dtype=torch.int64)), (random(3), 20, torch.ones(3, dtype=torch.int64))]
    cost = guard.cost([(42, 30), (3, 20)])
    run = online(lambda party: guard.mark(party, groups, 3))
    return Case("guard", run, cost, [(guard.mark.__doc__, "")], {"n": 45})


STEPS = PiecewiseFunction(40, tuple(Piece((t,), (1, 2, 3)[: 1 + t % 3]) for t in range(8)))
CASES = [
    *openings(),
    linear_maps(32),
    linear_maps(56),
    map_and_opening(),
    matrix_product(40),
    matrix_product(64),
    *(lift(use, bits) for use in ("plain", "square", "length", "norm", "scale") for bits in (24, 40)),
    *(lift(use, 20, 48) for use in ("plain", "square", "scale")),
    *(lift(use, 28, 56) for use in ("length", "norm")),
    factor(),
    looked_up("one table", 0.1, False),
    looked_up("one table with a guard", 0.1, True),
    looked_up("one table with tags", 0.1, False, n_keys=3),
    looked_up("two tables", 0.003, False),
    looked_up("two tables with a guard", 0.003, True),
    pieces("relu", piecewise.relu(24)),
    pieces("steps", STEPS),
    window_of("gelu", WindowFunction(24, 52, 14, (30_000,) * 128, (70,) * 128, (0, 64), down=4)),
    window_of("counted lines", WindowFunction(28, 64, 12, (100,) * 128, (7,) * 128, (3,), down=2, counted=True)),
    window_of("exponential", ExponentialFunction(24, 65_536, 15, 19)),
    words(3),
    words(300),
    zero(),
    withheld(),
    guarded(),
]
