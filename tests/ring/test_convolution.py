"""Convolutions of ring elements against torch's, on all of the ring."""

import pytest
import torch

from mpcformer.errors import ProtocolError
from mpcformer.ring.convolution import CONVOLUTIONS, Convolution
from tests.pair import integers

# name, input, kernel, keywords
CASES = [
    ("conv1d", (2, 3, 9), (4, 3, 3), {}),
    ("conv1d", (3, 9), (4, 3, 3), {"stride": 2, "padding": 1}),
    ("conv1d", (2, 4, 11), (6, 2, 3), {"groups": 2, "dilation": 2, "padding": 3}),
    ("conv2d", (2, 3, 7, 8), (5, 3, 3, 2), {"stride": (2, 3), "padding": (1, 0)}),
    ("conv2d", (1, 4, 9, 9), (4, 1, 2, 3), {"groups": 4, "dilation": (2, 1)}),
    ("conv_transpose1d", (2, 3, 5), (3, 4, 3), {"stride": 3, "padding": 2, "output_padding": 1}),
    ("conv_transpose1d", (3, 5), (3, 4, 1), {"padding": 1}),
    ("conv_transpose2d", (2, 4, 4, 5), (4, 3, 3, 2), {"stride": (1, 2), "dilation": (2, 1), "groups": 2}),
]


@pytest.mark.parametrize(("name", "left", "right", "options"), CASES)
def test_equals_torch(name: str, left: tuple[int, ...], right: tuple[int, ...], options: dict[str, int]) -> None:
    x, kernel = integers(*left, bits=63) * 2 + 1, integers(*right, bits=63)
    convolution = Convolution.of(name, **options)
    expected = getattr(torch, name)(x, kernel, **options)
    assert torch.equal(convolution(x, kernel), expected)
    assert convolution.shape(left, right) == tuple(expected.shape)
    assert Convolution.of_params(name, convolution.params()) == convolution
    assert convolution(x.to("meta"), kernel.to("meta")).shape == expected.shape


@pytest.mark.parametrize(
    ("left", "right", "options"),
    [
        ((2, 3, 9), (4, 2, 3), {}),
        ((2, 3, 9), (4, 3, 10), {}),
        ((2, 3, 9), (4, 3, 3), {"stride": 0}),
        ((2, 3, 9), (4, 3, 3), {"padding": "same"}),
        ((2, 3, 9), (4, 3, 3), {"output_padding": 1}),
        ((9,), (4, 3, 3), {}),
        ((2, 4, 9), (3, 2, 3), {"groups": 2}),
    ],
)
def test_what_torch_does_not_define_is_refused(
    left: tuple[int, ...], right: tuple[int, ...], options: dict[str, int]
) -> None:
    with pytest.raises(ProtocolError, match="conv1d"):
        Convolution.of("conv1d", **options).shape(left, right)


@pytest.mark.parametrize(
    "params", [(), (1.5, 0, 1, 0, 1), (1, -1, 1, 0, 1), (1, 0, 1, 0, float("nan")), (1e9, 0, 1, 0, 1)]
)
def test_a_strangers_numbers_are_refused(params: tuple[float, ...]) -> None:
    with pytest.raises(ProtocolError, match="conv1d"):
        Convolution.of_params("conv1d", params)
    assert set(CONVOLUTIONS) == {case[0] for case in CASES}
