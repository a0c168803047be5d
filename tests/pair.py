"""Two owners in two threads of this process, with a dealer: what most tests of shared computation run on."""

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mpcformer.channel import Counters, MemoryChannel, memory_pair
from mpcformer.correlations import (
    CorrelationStore,
    Dealt,
    Request,
    correction_specs,
    deal,
    drawn,
    expand,
    is_shared,
    mask_keys,
    session_key,
    stays_packed,
    unpacked,
    weight_mask_key,
    with_packed,
)
from mpcformer.correlations.linear import input_mask
from mpcformer.engines.base import BatchInputs, Outcome, PublicModel, load_public_model
from mpcformer.engines.crypten import compat as compat
from mpcformer.engines.crypten import ops as ops
from mpcformer.engines.plaintext import predict
from mpcformer.engines.registry import create_engine
from mpcformer.modeling import load_student, load_tokenizer
from mpcformer.modeling.tokenizer import Limits
from mpcformer.programs import LoadedProgram, Plan, dry_run, run_program
from mpcformer.protocols.party import Party
from mpcformer.ring.packing import Operand
from mpcformer.ring.random import Stream, fresh_key
from mpcformer.tasks import EVAL, encode, get_task, load_examples, pad_batch


class InlineDealer:
    """A correlation store that deals on demand, from both seeds.

    Attributes:
        requests: what was asked for, in order.
        dealt_bytes: the bytes of all corrections for this rank.
    """

    def __init__(self, rank: int, seeds: list[bytes], session_id: bytes) -> None:
        self.rank, self.seeds, self.session_id = rank, seeds, session_id
        self.requests: list[Request] = []
        self.dealt_bytes = 0

    def take(self, request: Request) -> Dealt:
        keys = [session_key(seed, self.session_id, len(self.requests), request) for seed in self.seeds]
        self.requests.append(request)
        has_correction = self.rank == 0 or is_shared(request)
        correction = deal(request, *keys, mask_keys(self.seeds[0], self.session_id, 0)) if has_correction else []
        self.dealt_bytes += sum(tensor.numel() * tensor.element_size() for tensor in correction)
        return expand(request, keys[self.rank], self.rank, unpacked(request, correction) if correction else [])

    def take_packed(self, request: Request) -> Sequence[Operand]:
        if self.rank != 0 or not stays_packed(request):
            return self.take(request).shares
        keys = [session_key(seed, self.session_id, len(self.requests), request) for seed in self.seeds]
        self.requests.append(request)
        correction = deal(request, *keys, mask_keys(self.seeds[0], self.session_id, 0))
        self.dealt_bytes += sum(tensor.numel() * tensor.element_size() for tensor in correction)
        return with_packed(request, drawn(request, keys[0]), correction)

    def preview(self, operation: int, request: Request) -> Dealt:
        key = session_key(self.seeds[self.rank], self.session_id, operation, request)
        return expand(request, key, self.rank, [])

    def skip(self, request: Request) -> None:
        self.requests.append(request)

    def input_mask(self, request: Request) -> torch.Tensor:
        key = session_key(self.seeds[self.rank], self.session_id, len(self.requests), request)
        self.skip(request)
        return input_mask(request, key)

    def work_ahead(self) -> None:
        pass

    def weight_mask_key(self) -> bytes:
        return weight_mask_key(self.seeds[0], self.session_id)

    def batch_key(self) -> bytes:
        return mask_keys(self.seeds[0], self.session_id, 0).batch


def in_two_threads(function: Callable[[int], Any]) -> list[Any]:
    """Run function(rank) for both owners at once and return both results; the first exception is raised here."""
    results: list[Any] = [None, None]
    errors: list[BaseException] = []

    def run(rank: int) -> None:
        try:
            results[rank] = function(rank)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    if errors:
        raise errors[0]
    return results


def run_protocol(function: Callable[[Party], Any]) -> tuple[list[Any], list[Counters], list[Request]]:
    """Run function(party) at both owners.

    Returns:
        Both results, what each owner's channel counted, and the correlations that were asked for.
    """
    ends: tuple[MemoryChannel, MemoryChannel] = memory_pair(timeout_s=20)
    seeds, session_id = [fresh_key(), fresh_key()], fresh_key()
    dealers = [InlineDealer(rank, seeds, session_id) for rank in (0, 1)]
    results = in_two_threads(lambda rank: function(Party(rank, ends[rank], dealers[rank])))
    return results, [end.counters for end in ends], dealers[0].requests


def share(x: torch.Tensor, bits: int = 64) -> list[torch.Tensor]:
    """Split x into two shares over Z_2^bits, with meaningless bits above."""
    mask = Stream(fresh_key()).int64(tuple(x.shape))
    noise = Stream(fresh_key()).int64(tuple(x.shape)) << bits if bits < 64 else 0
    return [x - mask + noise, mask]


def dealer_bytes(requests: list[Request]) -> int:
    """Return the bytes of the corrections for these requests."""
    return sum(spec.n_bytes for request in requests for spec in correction_specs(request))


def integers(*shape: int, bits: int, signed: bool = True) -> torch.Tensor:
    """Draw uniform integers of so many bits; the first few are the edges of the range."""
    x = Stream(fresh_key()).bits(shape, bits)
    x = x - (1 << (bits - 1)) if signed else x
    edges = torch.tensor([-(1 << (bits - 1)), (1 << (bits - 1)) - 1, 0, -1] if signed else [0, (1 << bits) - 1])
    x.view(-1)[: edges.numel()] = edges[: x.numel()]
    return x


def run_pair(
    function: Callable[[int], Any], channels: tuple[MemoryChannel, MemoryChannel] | None = None
) -> tuple[list[Any], Counters, list[Request]]:
    """Run function(rank) at both owners inside CrypTen.

    Returns:
        Both results, what rank 0's channel counted, and the correlations that were asked for.
    """
    ends = channels or memory_pair(timeout_s=20)
    seeds, session_id, zero_key = [fresh_key(), fresh_key()], fresh_key(), fresh_key()
    dealers = [InlineDealer(rank, seeds, session_id) for rank in (0, 1)]

    def run(rank: int) -> Any:
        state = compat.PartyState(rank=rank, channel=ends[rank], store=dealers[rank], zero_key=zero_key)
        with compat.active(state):
            return function(rank)

    return in_two_threads(run), ends[0].counters, dealers[0].requests


def shared(values: torch.Tensor, owner: int = 1) -> Any:
    """Share `values`, which the owner with the rank `owner` knows; inside `run_pair`."""
    mine = compat.current().rank == owner
    return ops.Shared(tensor=values if mine else None, size=values.shape, src=owner)


def play(
    loaded: LoadedProgram, inputs: dict[str, torch.Tensor], plan: Plan | None = None
) -> tuple[list[dict[str, torch.Tensor]], Plan, list[Any]]:
    """Deal a program's plan ahead and run it; return both owners' results, the plan, and their states."""
    plan = plan or dry_run(loaded)
    seeds, session, zero_key = [fresh_key(), fresh_key()], fresh_key(), fresh_key()
    ends, states = memory_pair(30), []
    for rank in (0, 1):
        store = CorrelationStore(rank=rank, seed=seeds[rank], session_id=session)
        states.append(compat.PartyState(rank=rank, channel=ends[rank], store=store, zero_key=zero_key))
    for operation, request in enumerate(plan.requests):
        keys = [session_key(seed, session, operation, request) for seed in seeds]
        correction = deal(request, *keys, mask_keys(seeds[0], session, 0))
        for state in states[: 1 + is_shared(request)]:
            state.store.put(operation, request, correction)

    def run(rank: int) -> dict[str, torch.Tensor]:
        mine = {name: inputs[name] for name, found in loaded.program.inputs.items() if found.rank == rank}
        return run_program(loaded, states[rank], mine)

    return in_two_threads(run), plan, states


def run_private(folder: Path, inputs: BatchInputs, **options: Any) -> list[Any]:
    """Run a batch as `run_outcomes` does, of which no sentence is refused; return logits instead of outcomes."""
    *outcomes, plan, counted = run_outcomes(folder, inputs, **options)
    assert not outcomes[1].refused.any(), "a sentence was refused"
    return [*(outcome.logits for outcome in outcomes), plan, counted]


def run_outcomes(
    folder: Path,
    inputs: BatchInputs,
    *,
    engine: str = "crypten",
    public: PublicModel | None = None,
    n_batches: int = 1,
    ends: tuple[MemoryChannel, MemoryChannel] | None = None,
) -> tuple[Outcome, Outcome, list[list[Request]], Counters]:
    """Run the same private batch once or several times, with all correlations dealt before.

    Args:
        folder: the student.
        inputs: the batch, as the data owner knows it.
        engine: the name of the engine.
        public: what both owners know of the model, if not what the folder says.
        n_batches: how often the batch runs in the one session.
        ends: the owners' channels, if a test looks at them.

    Returns:
        The model owner's and the data owner's outcome of the last batch, the plan by segments, and what the data
        owner's channel counted in the online part of the last batch.
    """
    public = public or load_public_model(folder)
    weights, ends = load_student(folder).state_dict(), ends or memory_pair(20)
    seeds, session_id = [fresh_key(), fresh_key()], fresh_key()
    engines = [
        create_engine(
            engine,
            rank=rank,
            public=public,
            channel=ends[rank],
            weights=None if rank else weights,
            session_id=session_id,
        )
        for rank in (0, 1)
    ]
    stores = [CorrelationStore(rank=rank, seed=seeds[rank], session_id=session_id) for rank in (0, 1)]
    plan = engines[1].plan(inputs.shape)
    requests = [request for segment in plan for request in segment]
    parts = [[store.reserve(len(requests), requests) for store in stores] for _ in range(n_batches)]
    for operation, request in enumerate(requests * n_batches):
        keys = [session_key(seed, session_id, operation, request) for seed in seeds]
        number = operation // len(requests)
        correction = deal(request, *keys, mask_keys(seeds[0], session_id, number * len(requests)))
        for part in parts[number][: 1 + is_shared(request)]:
            part.put(operation, request, correction)
    online = [Counters(), Counters()]

    def owner(rank: int) -> Outcome:
        engines[rank].setup(stores[rank])
        mine = inputs if rank == 1 else BatchInputs(inputs.attention_mask, n_told=inputs.n_told)
        for part in parts:
            batch = engines[rank].batch(inputs.shape, part[rank], ends[rank])
            for segment in range(len(plan)):
                batch.offline(segment)
            before = ends[rank].counters.copy()
            batch.start(mine, ends[rank])
            results = [batch.online(segment) for segment in range(len(plan))]
            online[rank] = ends[rank].counters.minus(before)
        outcome = results.pop()
        assert outcome is not None
        assert not any(results), "the last segment alone has an outcome"
        return outcome

    told, learnt = in_two_threads(owner)
    assert told.refused is None, "the model owner never learns who was refused"
    assert told.logits is None
    refused, logits = learnt.known()
    withheld = refused | ~inputs.asked
    unknown = logits.flatten(1).isnan().all(1)
    assert torch.equal(unknown, withheld), "only refused rows and fillers have no logits"
    assert stores[0].next_operation == stores[1].next_operation == len(requests) * n_batches
    return told, learnt, plan, online[1]


def batch_of(folder: Path, data: Path, task: str = "sst2") -> tuple[BatchInputs, np.ndarray]:
    """Return the evaluation split as one batch, and the plaintext student's logits."""
    tokenizer = load_tokenizer(folder)
    encoded = encode(tokenizer, load_examples(get_task(task), EVAL, data_dir=data), limits=Limits(32))
    padded = pad_batch(encoded, tokenizer.pad_token_id)
    logits, _ = predict(load_student(folder), encoded, pad_id=tokenizer.pad_token_id, batch_size=len(encoded))
    return BatchInputs(padded["attention_mask"], padded["input_ids"], padded["token_type_ids"]), logits
