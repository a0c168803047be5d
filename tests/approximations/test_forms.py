"""The forms against their formulas, masks and edges."""

import pytest
import torch
from torch.nn.functional import gelu

from mpcformer.approximations import (
    GELU_FORMS,
    SOFTMAX_FORMS,
    TWO_RELU_EPSILON,
    GeluForm,
    SoftmaxForm,
    quad,
    two_quad,
    two_quad_const,
    two_relu,
)
from mpcformer.approximations.forms import LiftSquare

SCORES = torch.tensor([[[[1.0, -2.0, 3.0]]]])  # (1, 1, 1, 3)
MASK = torch.tensor([[[[1.0, 1.0, 0.0]]]])  # the last key is padding


def test_quad_has_the_papers_coefficients_in_the_papers_order() -> None:
    assert quad(torch.tensor([0.0, 1.0, -2.0])).tolist() == [0.5, 0.875, 0.5]


def test_gelu_is_the_exact_one() -> None:
    x = torch.linspace(-5, 5, 101)
    assert torch.equal(GELU_FORMS["gelu"](x), gelu(x))


def test_two_quad() -> None:
    probabilities, row_mean = two_quad(SCORES, MASK)
    assert probabilities.flatten().tolist() == pytest.approx([36 / 45, 9 / 45, 0])
    assert row_mean.item() == pytest.approx(45 / 2)


def test_two_quad_const_divides_by_the_number_of_keys() -> None:
    probabilities, row_mean = two_quad_const(SCORES, MASK, torch.tensor(10.0))
    assert probabilities.flatten().tolist() == pytest.approx([36 / 20, 9 / 20, 0])
    assert row_mean.item() == pytest.approx(45 / 2)
    scores = torch.randn(1, 1, 200, 200, generator=torch.Generator().manual_seed(0))
    rows = SOFTMAX_FORMS["2quad-const"](scores, torch.ones(1, 1, 1, 200))[0].sum(-1)
    assert rows.mean().item() == pytest.approx(1.0, abs=0.02), "it starts where usual rows add up to one"
    assert two_quad_const(torch.full_like(SCORES, -5.0), MASK)[0].abs().max() == 0


def test_two_relu_survives_a_row_without_positive_scores() -> None:
    probabilities, row_mean = two_relu(SCORES, MASK)
    assert probabilities.flatten().tolist() == pytest.approx([1 / (1 + 2 * TWO_RELU_EPSILON), 0, 0])
    assert row_mean.item() == pytest.approx(0.5)
    assert two_relu(-SCORES.abs(), MASK)[0].abs().max() == 0


def test_softmax_equals_torch_on_the_unmasked_keys() -> None:
    probabilities, _ = SOFTMAX_FORMS["softmax"](SCORES, MASK)
    assert torch.allclose(probabilities[..., :2], SCORES[..., :2].softmax(-1))
    assert probabilities[..., 2].item() == 0


@pytest.mark.parametrize("form", SOFTMAX_FORMS)
def test_huge_scores_at_padding_change_nothing(form: str) -> None:
    wild = SCORES.clone()
    wild[..., 2] = 500.0
    assert torch.allclose(SOFTMAX_FORMS[form](wild, MASK)[0], SOFTMAX_FORMS[form](SCORES, MASK)[0])


@pytest.mark.parametrize("form", GELU_FORMS.values(), ids=GELU_FORMS)
def test_a_form_makes_numbers_no_larger_than_it_states(form: GeluForm) -> None:
    """The proof that no text overflows a ring rests on it, where the form is no square."""
    x = torch.cat([torch.linspace(-reach, reach, 20001, dtype=torch.float64) for reach in (0.01, 10.0, 1e4)])
    if form.square is None:
        assert bool((form(x).abs() <= form.growth * x.abs() * (1 + 1e-12)).all())


@pytest.mark.parametrize("form", GELU_FORMS.values(), ids=GELU_FORMS)
def test_a_shifted_square_is_the_function(form: GeluForm) -> None:
    x = torch.linspace(-9, 9, 101, dtype=torch.float64)
    if form.square is not None:
        square = form.square
        assert torch.allclose(square.factor * (x + square.shift) ** 2 + square.offset, form(x))
    for realisation in form.private.values():
        if isinstance(realisation, LiftSquare):
            assert realisation.square is form.square


@pytest.mark.parametrize("form", SOFTMAX_FORMS.values(), ids=SOFTMAX_FORMS)
@pytest.mark.parametrize("size", [0.1, 3.0, 30.0])
def test_weights_are_what_the_form_states(form: SoftmaxForm, size: float) -> None:
    """Never negative; adding up to at most one where rows are divided, and to their mean over c where they are not."""
    scores = size * torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mask = torch.ones(2, 1, 1, 8, dtype=torch.float64)
    mask[1, ..., 5:] = 0
    weights, row_mean = form(scores, mask)
    assert float(weights.min()) >= 0
    assert float(weights[1, ..., 5:].abs().max()) == 0
    total = weights.sum(-1, keepdim=True)
    if form.divisor is None:
        assert float(total.max()) <= 1 + 1e-9
    else:
        assert torch.allclose(total, row_mean / form.divisor)
        assert torch.allclose(form(scores, mask, torch.tensor(7.0))[0], weights * form.divisor / 7)
    if form.square_shift is not None:
        numerators = mask * (scores + form.square_shift) ** 2
        assert torch.allclose(weights / total, numerators / numerators.sum(-1, keepdim=True))


def test_every_form_has_its_own_name_and_says_what_it_is() -> None:
    for forms in (GELU_FORMS, SOFTMAX_FORMS):
        for name, form in forms.items():
            assert form.name == name
            assert form.title
            assert form.description
        assert len({form.title for form in forms.values()}) == len(forms)
