"""The linear maps of BERT on shares, in order, each with the opening after it; they are part of the pass in bert.py.

The halves of an opening are the same text at both owners. The data owner runs it offline, the model owner online.
Letters in the shapes beside the code are those of bert.py.
"""

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any

import torch

from mpcformer.correlations import Request, sketch
from mpcformer.engines.dry_run import WithoutValues
from mpcformer.engines.lift.positions import Positions, positions
from mpcformer.engines.lift.scales.model import LiftScales
from mpcformer.engines.lift.scales.norms import Norm
from mpcformer.engines.lift.weights import attention_parts
from mpcformer.errors import ProtocolError
from mpcformer.protocols import lifted, matmul
from mpcformer.protocols.lifted import Mask
from mpcformer.protocols.party import MODEL_OWNER, Half, HalfShape, shapes_of, shift, shift_rounding
from mpcformer.ring.fused import Fused
from mpcformer.ring.packing import Operand

Tensors = Sequence[Sequence[Operand]]
Halves = Callable[[list[Fused], Tensors], list[Half]]


@dataclass
class Map:
    """A linear map, or several maps of one input, and the opening after it.

    Args:
        weights: the names of the weights.
        rows: the number of rows of the input.
        following: the correlations of the opening.
        halves: makes this owner's halves of the opening from the maps' results and those correlations.
    """

    weights: list[str]
    rows: int
    following: list[Request]
    halves: Halves


def dense_use(norm: Norm) -> str:
    """Return the use of the lifted mask of what a head's dense layer makes, from the LayerNorm before."""
    return "scale" if norm.divides_later else "plain"


class Maps:
    """The linear maps of one batch, by name; they remember the residual of the block at work.

    Args:
        rank: this owner's rank.
        config, constants: the public configuration and scales.
        size: B and L.
        shapes: the shape of every weight, see `weight_shapes`.
        one_hot: whether the first map is that of the embeddings, of one-hot rows.
        half_shapes: by map, shape and bits of each half that is known already.

    Attributes:
        half_shapes: by map, shape and bits of each half of its opening; maps that were not asked for may be missing.
    """

    def __init__(
        self,
        rank: int,
        config: Any,
        constants: LiftScales,
        size: tuple[int, int],
        shapes: dict[str, tuple[int, ...]],
        one_hot: bool,
        half_shapes: Mapping[str, list[HalfShape]] | None = None,
    ) -> None:
        self._rank, self._config, self._constants, self._rings = rank, config, constants, constants.rings
        self._shapes, self._one_hot = shapes, one_hot
        self.half_shapes = dict(half_shapes or {})
        self._n_batch, self._n_positions = size
        # What the residual of the block at work adds, before it is shifted: this owner's share, and that of its mean,
        # which a residual that is centred itself does not have.
        self._residual: tuple[torch.Tensor, torch.Tensor | None] | None = None

    def anew(self) -> "Maps":
        """Return the same maps with a residual of their own, for another thread."""
        made = copy(self)
        made._residual = None
        return made

    @property
    def n_segments(self) -> int:
        """The number of segments: one a layer, the first with the embeddings, the last with the head."""
        return int(self._config.num_hidden_layers)

    def of_segment(self, segment: int) -> list[str]:
        """Return the names of the maps in a segment whose opening has a half that the data owner knows ahead."""
        layer = f"layer.{segment}"
        names = [f"{layer}.attention", f"{layer}.attention.output", f"{layer}.inner", f"{layer}.outer"]
        head = ["pooler"] if segment == self.n_segments - 1 and self._config.has_dense else []
        one_hot = ["embeddings"] if segment == 0 and self._one_hot else []
        return [*one_hot, *names, *head]

    def positions(self, index: int) -> Positions:
        """Return which positions a layer gets and keeps."""
        return positions(self._config, index, self._n_positions)

    def __getitem__(self, name: str) -> Map:
        hidden = self._config.hidden_size
        if name == "embeddings":
            n_rows = self._n_batch * self._n_positions
            before = self._constants.embedding_norm
            width = self._config.embedding_size
            lift = lifted.request(before.op, (n_rows, width), before.stream.bits, before.stream.lift)
            return Map([name], n_rows, [lift], lambda z, t: [self._lifted_half(z[0], before.scale, before, t[0])])
        if name == "pooler":
            dense, last = self._constants.head.dense, self._constants.layers[-1].output_norm
            if dense is None:
                raise ProtocolError("a head without a dense layer has no pooler")
            use = dense_use(last)

            def pooled(z: list[Fused], t: Tensors) -> list[Half]:
                share = shift(z[0], dense.product_scale - dense.scale, self._rank)
                return [Mask(t[0], dense.bits, use).half(share, self._rank)]

            return Map([name], self._n_batch, [lifted.request(use, (self._n_batch, hidden), dense.bits)], pooled)
        index = int(name.split(".")[1])
        constants, at = self._constants.layers[index], self.positions(index)
        rows = self._n_batch * at.n_kept
        if name.endswith(".attention"):
            return Map(
                [f"layer.{index}.{part}" for part in attention_parts(self._config, index)],
                self._n_batch * at.n,
                self._attention_requests(at),
                lambda z, t: self._attention_halves(z, t, at),
            )
        if name.endswith(".inner"):
            activation, shape = self._constants.activation, (rows, self._config.intermediate_size)
            if activation.function is None:
                following = lifted.request("square", shape, activation.bits, activation.lift)
            else:
                following = activation.function.request(shape)
            weights = [name, f"layer.{index}.residual", f"layer.{index}.mean"]
            return Map(weights, rows, [following], self._inner_halves)
        output = name.endswith(".attention.output")
        norm = constants.attention_norm if output else constants.output_norm
        product = self._rings.output_scale if output else self._rings.outer_scale
        lift = lifted.request(norm.op, (rows, hidden), norm.stream.bits, norm.stream.lift)
        return Map([name], rows, [lift], lambda z, t: [self._stream_half(z[0], product, norm, t[0])])

    def shapes_of_halves(self, name: str) -> list[HalfShape]:
        """Return shape and bits of each half that the map's `halves` will make, before any value is known."""
        if name not in self.half_shapes:
            self.half_shapes[name] = self._sketched(self[name])
        return self.half_shapes[name]

    def _sketched(self, item: Map) -> list[HalfShape]:
        before = self._residual
        n_rows = item.rows if before is None else before[0].size(0)
        with WithoutValues():
            dealt = [sketch(request, MODEL_OWNER).shares for request in item.following]
            z = [Fused(torch.empty(item.rows, self._shapes[weight][-1]).long()) for weight in item.weights]
            empty = torch.empty(n_rows, self._config.hidden_size).long()
            self._residual = empty, empty[:, :1]
            halves = item.halves(z, dealt)
        self._residual = before
        return shapes_of(halves)

    # ---- online -----------------------------------------------------------------------------------------------------

    def _lifted_half(self, z: Fused, scale: int, norm: Norm, tensors: Sequence[Operand]) -> Half:
        stream = shift(z, scale - norm.scale, self._rank)
        return Mask(tensors, norm.stream.bits, norm.op, norm.stream.lift).half(stream, self._rank)

    def _stream_half(self, z: Fused, scale: int, norm: Norm, tensors: Sequence[Operand]) -> Half:
        """Return the half of the residual stream: map plus residual, centred, at the next LayerNorm's scale."""
        if self._residual is None:
            raise ProtocolError("a residual is used before it is known")
        (residual, mean), self._residual = self._residual, None
        rank, rings = self._rank, self._rings
        down = rings.input_scale + rings.residual_scale - scale
        total = z.plus(residual, down) + shift_rounding(down, rank)
        if mean is not None:
            down = rings.input_scale + rings.mean_scale - scale
            total = total.minus(mean, down) + -shift_rounding(down, rank)
        return self._lifted_half(total, scale, norm, tensors)

    def _attention_requests(self, at: Positions) -> list[Request]:
        rings = self._rings
        heads, size = (self._n_batch, self._config.num_attention_heads), self._config.head_size
        query, key, value = (*heads, at.n_kept, size), (*heads, at.n, size), (*heads, size, at.n)
        scores = *heads, at.n_kept, at.n
        return [
            matmul.request(query, key, rings.query_bits),
            lifted.request("plain", value, rings.value_bits, rings.value_lift),
            matmul.request(scores, value, rings.numerator_bits),
        ]

    def _attention_halves(self, z: list[Fused], tensors: Tensors, at: Positions) -> list[Half]:
        rank, rings, n_heads = self._rank, self._rings, self._config.num_attention_heads
        both, values, residual, *mean = [share.computed() for share in z]
        down = rings.input_scale + rings.query_weight_scale - rings.query_scale
        value_down = rings.input_scale + rings.value_weight_scale - rings.value_scale

        def heads(part: torch.Tensor) -> torch.Tensor:  # (B, A, L, D)
            return part.view(self._n_batch, at.n, n_heads, -1).transpose(1, 2)

        self._keep_residual(residual, mean[0] if mean else None, at.stride)
        (a, b, _), value_mask, _ = tensors
        queries, keys = both.chunk(2, dim=1)
        query = shift(Fused(heads(queries)[:, :, :: at.stride]), down, rank)
        key = shift(Fused(heads(keys)), down, rank)
        value = shift(Fused(heads(values).transpose(2, 3)), value_down, rank)
        return [
            matmul.half(query, a, rings.query_bits),
            matmul.half(key, b, rings.query_bits),
            Mask(value_mask, rings.value_bits, "plain", rings.value_lift).half(value, rank),
        ]

    def _keep_residual(self, residual: torch.Tensor, mean: torch.Tensor | None, stride: int) -> None:
        def rows(x: torch.Tensor) -> torch.Tensor:
            return x.view(self._n_batch, -1, x.size(-1))[:, ::stride].reshape(-1, x.size(-1))

        self._residual = rows(residual), None if mean is None else rows(mean)

    def _inner_halves(self, z: list[Fused], tensors: Tensors) -> list[Half]:
        rank, product = self._rank, self._rings.input_scale + self._rings.inner_weight_scale
        self._residual = z[1].computed(), z[2].computed()
        activation = self._constants.activation
        inner = shift(z[0], product - activation.scale, rank)
        if activation.function is None:
            return [Mask(tensors[0], activation.bits, "square", activation.lift).half(inner, rank)]
        return [activation.function.evaluation(tensors[0], rank).half(inner)]
