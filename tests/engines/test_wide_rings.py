"""The wide rings: every shift leaves the next opening its bits; `test_compact.py` asks the same of compact rings."""

import pytest

from mpcformer.approximations import gelu_form
from mpcformer.engines.lift.scales import fixed_point as fp
from mpcformer.engines.lift.scales.fixed_point import Rings
from mpcformer.engines.lift.scales.model import activation
from mpcformer.engines.lift.scales.norms import MIN_STREAM_SCALE
from mpcformer.engines.lift.scales.rows import LayerScales, row_bits, row_function
from mpcformer.ring.packing import WORD


def left(ring: int, scale: int, to: int) -> int:
    """Return the bits of a ring that a shift from one scale to another leaves."""
    return ring - max(0, scale - to)


@pytest.mark.parametrize("log_keys", range(1, 10))
@pytest.mark.parametrize(("rings", "squarings"), [(fp.WIDE, 0), (fp.EXPONENTIAL, 1), (fp.EXPONENTIAL, 6)])
def test_every_chain_of_attention_fits_its_rings(rings: Rings, squarings: int, log_keys: int) -> None:
    layer = LayerScales(0, 0, 0.05, None, None, squarings=squarings, rings=rings)  # type: ignore[arg-type]
    row = row_bits(layer, log_keys)
    numerators = left(rings.score_lift(row, log_keys), row, rings.numerator_scale)
    context = rings.numerator_scale + rings.value_scale
    room = left(min(numerators, rings.numerator_bits, rings.value_lift), context, rings.context_scale)
    assert room >= rings.context_bits
    # The reciprocal has the scale that the shift behind it takes away.
    assert row_function(layer, log_keys).upper.spec.scale - fp.FACTOR_EXTRA_BITS == rings.row_scale
    attended = left(rings.context_lift, rings.context_scale + rings.row_scale, rings.attended_scale)
    stream = left(min(attended, rings.output_bits), rings.output_scale, MIN_STREAM_SCALE)
    assert stream >= rings.attention.bits


@pytest.mark.parametrize("log_keys", range(1, 10))
def test_every_division_and_square_of_softmax_fits_its_ring(log_keys: int) -> None:
    twice, squares, last = 2 * fp.POWER_SCALE, fp.square_scale(log_keys), fp.last_power_scale(log_keys)
    for scale in (fp.POWER_SCALE, squares):
        assert left(WORD, twice, scale) >= fp.POWER_BITS
        for to, bits in ((fp.POWER_SCALE, fp.POWER_BITS), (last, fp.LAST_POWER_BITS)):
            assert left(WORD, scale + fp.DIVISOR_SCALE, to) >= bits
    # A number of a row of mean one is at most 2^log_keys, and so is a mean of squares. Tables leave some percent.
    most = 1.05 * 2**log_keys
    assert most * 2**fp.POWER_SCALE < 2 ** (fp.POWER_BITS - 2)
    assert most * 2**last < 2 ** (fp.LAST_POWER_BITS - 2)
    assert most**2 * 2**squares < 2 ** (fp.POWER_BITS - 2)
    assert most * 2 ** fp.mean_scale(twice, log_keys) < 2 ** (WORD - 2)


def test_every_map_leaves_the_bits_that_follow_it() -> None:
    rings, widest = fp.WIDE, 52
    query, value = (rings.input_scale + scale for scale in (rings.query_weight_scale, rings.value_weight_scale))
    product = left(rings.input_bits, query, rings.query_scale)
    assert left(min(product, rings.query_bits), 2 * rings.query_scale, rings.score_scale) >= rings.score_bits
    assert left(rings.value_map_bits, value, rings.value_scale) >= rings.value_bits
    inner = rings.input_scale + rings.inner_weight_scale
    for name in ("quad", "relu", "gelu"):
        argument = activation(gelu_form(name), rings)
        assert left(rings.inner_map_bits, inner, argument.scale) >= argument.bits, name
    for bits, scale, stream, residual in (
        (rings.output_bits, rings.output_scale, rings.attention, rings.attention_residual_bits),
        (rings.outer_bits, rings.outer_scale, rings.output, rings.inner_residual_bits),
    ):
        assert left(bits, scale, MIN_STREAM_SCALE) >= stream.bits
        for own in (rings.residual_scale, rings.mean_scale):
            assert left(residual, rings.input_scale + own, MIN_STREAM_SCALE) >= stream.bits
        assert left(stream.lift, stream.normal_scale, rings.input_scale) >= rings.input_bits
    # Products of more bits are slower, see mpcformer/ring/gemm.py.
    shapes = ("attention.scores", "attention.values", "attention.residual", "attention.output", "inner", "outer")
    assert max(rings.weight_bits(f"layer.0.{name}") for name in shapes) <= widest
