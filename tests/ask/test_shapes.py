"""Tests of how texts are put into batches of few shapes."""

from hypothesis import given
from hypothesis import strategies as st

from mpcformer.engines.base import BatchShape
from mpcformer.tasks import Encoded
from parties.ask.options import LENGTHS, sizes_up_to
from parties.ask.shapes import batch_sizes, batches, filled, padded_length


def test_lengths_round_up_to_a_bucket_and_end_at_the_positions() -> None:
    assert [padded_length(n, LENGTHS, 512) for n in (1, 16, 17, 32, 33, 400, 512)] == [16, 16, 32, 32, 64, 512, 512]
    assert padded_length(30, LENGTHS, 40) == 32
    assert padded_length(35, LENGTHS, 40) == 40
    assert padded_length(5, (), 40) == 40


def test_sizes_of_batches() -> None:
    found = {n: batch_sizes(n, (1, 4, 16)) for n in (1, 2, 3, 4, 5, 7, 8, 9, 16, 17, 35)}
    assert found == {
        1: [1],
        2: [1, 1],
        3: [4],
        4: [4],
        5: [4, 1],
        7: [4, 4],
        8: [4, 4],
        9: [16],
        16: [16],
        17: [16, 1],
        35: [16, 16, 4],
    }
    assert batch_sizes(9, (1, 4)) == [4, 4, 1]
    assert batch_sizes(2, (1,)) == [1, 1]
    assert batch_sizes(5, (3,)) == [3, 3]
    assert [sizes_up_to(n) for n in (1, 4, 10, 16, 64)] == [(1,), (1, 4), (1, 4, 10), (1, 4, 16), (1, 4, 16, 64)]


@given(st.lists(st.integers(1, 40), max_size=60), st.integers(1, 16))
def test_every_text_is_in_one_batch_that_has_room_for_it(n_tokens: list[int], largest: int) -> None:
    plan = batches(n_tokens, LENGTHS, 40, sizes_up_to(largest))
    assert sorted(i for _, members in plan for i in members) == list(range(len(n_tokens)))
    for shape, members in plan:
        assert 1 <= len(members) <= shape.batch_size <= largest
        assert shape.batch_size in sizes_up_to(largest)
        assert all(n_tokens[i] <= shape.seq_len <= 40 for i in members)


def test_a_batch_is_filled_up_with_its_last_text_about_which_nobody_asks() -> None:
    texts = [Encoded([2, 7, 3], [0, 0, 0]), Encoded([2, 3], [0, 1])]
    inputs = filled(texts, BatchShape(4, 5), pad_id=9)
    assert inputs.input_ids is not None
    assert inputs.token_type_ids is not None
    assert inputs.input_ids.tolist() == [[2, 7, 3, 9, 9], [2, 3, 9, 9, 9], [2, 3, 9, 9, 9], [2, 3, 9, 9, 9]]
    assert inputs.attention_mask.sum(1).tolist() == [3, 2, 2, 2]
    assert inputs.token_type_ids[1].tolist() == [0, 1, 0, 0, 0]
    assert inputs.asked.tolist() == [True, True, False, False]
