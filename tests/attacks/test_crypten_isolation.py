"""A private inference never uses CrypTen's own generators and providers, or torch.distributed."""

import pickle
import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import stats

from mpcformer.channel import MemoryChannel, memory_pair
from mpcformer.engines.crypten import compat as compat
from mpcformer.engines.crypten import ops as ops
from mpcformer.engines.crypten.newton import reciprocal_plan, rsqrt_plan
from mpcformer.errors import ProtocolError
from tests.pair import run_pair, shared

X = torch.linspace(0.5, 4.0, 24).view(4, 6)


def everything(party: int) -> torch.Tensor:
    """Run every kind of operation that an inference consists of."""
    x = shared(X)
    w = shared(X.t().contiguous(), owner=0)
    y = ops.matmul(ops.relu(ops.add_public(ops.square(x), -3.0)), w)
    y = ops.multiply(y, ops.tanh(y, bound=200.0))
    row = ops.wrap(x.share.sum(-1, keepdim=True))
    inverse = ops.wrap(
        ops.reciprocal(row, reciprocal_plan(1.0, 30.0)).share + ops.rsqrt(row, rsqrt_plan(1.0, 30.0)).share
    )
    result: torch.Tensor = ops.multiply(y, inverse).get_plain_text()
    return result


def a_program(party: int) -> torch.Tensor:
    """Run what programs use besides: comparisons, division, gradients, dropout and values that nobody knows."""
    crypten = compat.crypten
    with crypten.enable_grad():
        x = crypten.cryptensor(X, src=1, requires_grad=True)
        w = crypten.cryptensor(X.t().contiguous(), src=0, requires_grad=True)
        y = (x.matmul(w) / 7).sigmoid().dropout(0.5)
        y.sum().backward()
    noise = crypten.rand(4, 6) * 0.1
    result: torch.Tensor = (x.grad + noise).softmax(dim=1).argmax(dim=1).get_plain_text()
    return result


def a_program_with_keys(party: int) -> torch.Tensor:
    """Run the same with comparisons by keys."""
    compat.current().comparisons = "keys"
    return a_program(party)


@pytest.mark.parametrize(
    ("computation", "compared_by"),
    [(everything, {"binary_triple"}), (a_program, {"binary_triple"}), (a_program_with_keys, {"sign", "equality"})],
)
def test_no_other_source_of_randomness_and_no_torch_distributed(
    monkeypatch: pytest.MonkeyPatch, computation: Callable[[int], torch.Tensor], compared_by: set[str]
) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a forbidden source was reached")

    for name in (
        "rand",
        "randn",
        "randint",
        "rand_like",
        "randn_like",
        "randint_like",
        "randperm",
        "bernoulli",
        "normal",
    ):
        monkeypatch.setattr(torch, name, refuse)
    for name in ("random_", "uniform_", "normal_", "bernoulli_"):
        monkeypatch.setattr(torch.Tensor, name, refuse)
    for name in (
        "send",
        "recv",
        "isend",
        "irecv",
        "all_reduce",
        "reduce",
        "broadcast",
        "barrier",
        "init_process_group",
    ):
        monkeypatch.setattr(torch.distributed, name, refuse)
    monkeypatch.setattr(random, "random", refuse)
    monkeypatch.setattr(np.random, "random", refuse)
    states = torch.get_rng_state()
    for name in ("load", "loads", "dump", "dumps"):
        monkeypatch.setattr(pickle, name, refuse)
    (left, right), _, requests = run_pair(computation)
    assert torch.equal(left, right)
    assert torch.equal(states, torch.get_rng_state()), "torch's global generator was used"
    kinds = {"additive_triple", "square_pair", "truncation", "bit_pair"} | compared_by
    assert {r.kind for r in requests} == kinds


def test_insecure_parts_refuse_to_start() -> None:
    crypten = compat.crypten
    for start in (crypten.init, crypten.mpc.provider.TrustedFirstParty, crypten.mpc.provider.TrustedThirdParty):
        with pytest.raises(ProtocolError, match="never used"):
            start()
    with pytest.raises(ProtocolError, match="outside `active"):
        crypten.common.rng.generate_random_ring_element((2,))
    for other in (torch.Generator(), 7):
        with pytest.raises(ProtocolError, match="randomness outside"):
            crypten.common.rng.generate_random_ring_element((2,), generator=other)
    with pytest.raises(ProtocolError, match="'mine' generator"):
        crypten.generators["mine"]
    with pytest.raises(RuntimeError, match="not initialized"):
        crypten.communicator.get()
    assert isinstance(crypten.mpc.get_default_provider(), compat.DealerProvider)


@pytest.mark.parametrize("secret", [torch.nn.Linear(2, 2), {1, 2}, print, b"bytes"], ids=repr)
def test_no_object_is_sent_that_would_have_to_be_unpickled(secret: object) -> None:
    def run(rank: int) -> object:
        comm = compat.current().communicator
        return comm.send_obj(secret, 1) if rank == 0 else comm.recv_obj(0)

    with pytest.raises(ProtocolError, match="would have to be unpickled"):
        run_pair(run, channels=memory_pair(2))


TENSORS = [torch.tensor(1), torch.tensor([[1.5, -2.0]]), torch.zeros(2, 3)]
OBJECTS = [{"a": [1, None, "b"]}, torch.Size([2, 0, 3]), *TENSORS]


@pytest.mark.parametrize("obj", OBJECTS, ids=repr)
def test_objects_travel_as_json_and_tensors(obj: object) -> None:
    def run(rank: int) -> object:
        comm = compat.current().communicator
        return comm.broadcast_obj(obj if rank == 0 else None, 0)

    mine, theirs = run_pair(run)[0]
    if isinstance(obj, torch.Tensor):
        assert torch.equal(theirs, obj)
        assert theirs.dtype == obj.dtype
    else:
        assert mine == theirs == obj
        assert type(theirs) is type(obj)


@pytest.mark.parametrize(
    "text",
    [
        b"cos\nsystem\n(S'echo hello world'\ntR.",
        b"\x80\x04.",
        b'{"size": [1, -1]}',
        b'{"size": [1e9, 1e9]}',
        b'{"tensor": [1099511627776], "dtype": "int64", "zeros": true}',
        b'{"tensor": [1], "dtype": "object", "zeros": false}',
        b'{"tensor": 1, "dtype": "int64", "zeros": true}',
        b"[" * 100_000,
    ],
)
def test_what_is_no_object_of_ours_is_refused(text: bytes) -> None:
    def run(rank: int) -> object:
        if rank == 1:
            return compat.current().communicator.recv_obj(0)
        channel = compat.current().channel
        assert channel is not None
        channel.send([torch.tensor([len(text)])])
        channel.send([torch.frombuffer(bytearray(text), dtype=torch.uint8)])
        return None

    with pytest.raises(ProtocolError, match="no JSON of ours"):
        run_pair(run, channels=memory_pair(2))


class Recorder:
    """A channel end that records what it sends."""

    def __init__(self, end: MemoryChannel) -> None:
        self.counters, self.receive, self._end = end.counters, end.receive, end
        self.seen: list[torch.Tensor] = []

    def send(self, tensors: list[torch.Tensor]) -> None:
        self.seen.extend(tensor.clone() for tensor in tensors)
        self._end.send(tensors)


def test_what_is_opened_looks_uniform_whatever_the_input() -> None:
    """Bytes on the wire pass a chi-square test of uniformity for two very different inputs (Bonferroni over both)."""
    for value in (0.0, 1000.0):
        ends = memory_pair(20)
        recorder = Recorder(ends[1])
        run_pair(lambda party, v=value: ops.square(shared(torch.full((4000,), v))).share, channels=(ends[0], recorder))  # type: ignore[misc, arg-type]
        data = torch.cat([t.reshape(-1) for t in recorder.seen]).numpy().view("u1")
        counts = np.bincount(data, minlength=256)
        assert stats.chisquare(counts).pvalue > 1e-6 / 2


def test_shares_do_not_show_themselves() -> None:
    def run(party: int) -> bool:
        x = shared(X)
        wrapped = compat.crypten.mpc.MPCTensor.from_shares(x.share)
        return any(str(int(v)) in repr(x) + repr(wrapped) for v in x.share.flatten())

    assert run_pair(run)[0] == [False, False]
