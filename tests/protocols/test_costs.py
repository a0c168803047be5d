"""Every protocol costs what its `cost` says, in memory and over gRPC, and what the cost line of its docstring says."""

import importlib
import pkgutil
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path

import pytest
import torch

from mpcformer import protocols
from mpcformer.channel import Channel, Counters, Spec, memory_pair
from mpcformer.protocols.cost import ProtocolCost, message, opening
from mpcformer.protocols.party import DATA_OWNER, MODEL_OWNER, Party
from mpcformer.ring.random import fresh_key
from parties.settings.config import TlsFiles
from parties.stubs import parties_pb2_grpc as rpc
from parties.wire import tls
from parties.wire.frames import open_channel, start_server
from parties.wire.peer_channel import PeerChannel
from tests.pair import InlineDealer, in_two_threads
from tests.parties.sessions import PeerService
from tests.protocols.cost_cases import CASES, Case, Run

# The header of a frame is shorter than this.
HEADER_BYTES = 200
UNITS = {
    "round": "rounds",
    "rounds": "rounds",
    "bytes to the model owner": "bytes_to_model_owner",
    "bytes to the data owner": "bytes_to_data_owner",
    "dealer bytes": "dealer_bytes",
    "passed-on bytes": "offline_bytes_to_data_owner",
    "set-up bytes": "setup_bytes",
}
FIELDS = {*UNITS.values(), "offline_bytes_to_model_owner"}


# ---- what channels and dealer count ----------------------------------------------------------------------------------


class Counted:
    """A channel that also counts the bytes of the tensors themselves, without frames."""

    def __init__(self, channel: Channel) -> None:
        self._channel, self.counters = channel, channel.counters
        self.payload = 0

    def send(self, tensors: Sequence[torch.Tensor]) -> None:
        self._channel.send(tensors)

    def receive(self, specs: Sequence[Spec]) -> list[torch.Tensor]:
        received = self._channel.receive(specs)
        self.payload += sum(spec.n_bytes for spec in specs)
        return received


@contextmanager
def grpc_pair(files: dict[str, TlsFiles]) -> Iterator[list[PeerChannel]]:
    """Join two channels by a gRPC stream with mutual TLS, as the owners do."""
    ids, session = ("model-owner", "data-owner"), fresh_key()
    ends = [PeerChannel(party_id=ids[rank], peer_id=ids[1 - rank], session_id=session) for rank in (0, 1)]
    service = PeerService(ends[0])
    server, address = start_server(
        lambda s: rpc.add_PeerServicer_to_server(service, s), "127.0.0.1:0", files["model-owner"]
    )
    link = open_channel(address, "model-owner", files["data-owner"])
    stream = rpc.PeerStub(link).Exchange(ends[1].outgoing(), wait_for_ready=True)
    ends[1].attach(stream, stream.cancel)
    yield ends
    for end in ends:
        end.close()
    link.close()
    server.stop(0)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, TlsFiles]:
    return tls.make_certificates(tmp_path_factory.mktemp("tls"), ["model-owner", "data-owner"])


@dataclass
class Phase:
    """The counts of one owner's channel in one phase."""

    counters: Counters
    payload: int


def measured(run: Run, ends: Sequence[Channel]) -> tuple[list[list[Phase]], list[int]]:
    """Run a protocol at both owners; return what each of them counted by phase, and the corrections' bytes at each."""
    seeds, session_id = [fresh_key(), fresh_key()], fresh_key()
    dealers = [InlineDealer(rank, seeds, session_id) for rank in (0, 1)]
    meet = threading.Barrier(2)

    def owner(rank: int) -> list[Phase]:
        channel, phases = Counted(ends[rank]), []
        steps = run(Party(rank, channel, dealers[rank]))
        for _ in range(3):
            channel.counters.rounds = 0
            before, payload = channel.counters.copy(), channel.payload
            meet.wait(20)
            next(steps, None)
            phases.append(Phase(channel.counters.minus(before), channel.payload - payload))
            meet.wait(20)
        return phases

    return in_two_threads(owner), [dealer.dealt_bytes for dealer in dealers]


def fields_of(cost: ProtocolCost) -> dict[str, int]:
    return {name: getattr(cost, name) for name in FIELDS}


@pytest.mark.parametrize("transport", ["memory", "grpc"])
@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_a_protocol_costs_what_it_states(case: Case, transport: str, files: dict[str, TlsFiles]) -> None:
    if transport == "memory":
        phases, dealt = measured(case.run, memory_pair(20))
    else:
        with grpc_pair(files) as ends:
            phases, dealt = measured(case.run, ends)
    (setup_0, offline_0, online_0), (setup_1, offline_1, online_1) = phases
    assert {
        "rounds": max(online_0.counters.rounds, online_1.counters.rounds),
        "bytes_to_model_owner": online_0.payload,
        "bytes_to_data_owner": online_1.payload,
        "dealer_bytes": dealt[0],
        "offline_bytes_to_data_owner": dealt[1],
        "offline_bytes_to_model_owner": offline_0.payload,
        "setup_bytes": setup_1.payload,
    } == fields_of(case.cost)
    assert setup_0.payload == offline_1.payload == 0
    for phase, step in ((online_0, "to_model_owner"), (online_1, "to_data_owner")):
        n_messages = sum(asdict(each)[step] is not None for each in case.cost.steps)
        assert phase.counters.messages_received == n_messages
        most = phase.payload + (HEADER_BYTES * n_messages if transport == "grpc" else 0)
        assert phase.payload <= phase.counters.bytes_received <= most


# ---- what docstrings say ---------------------------------------------------------------------------------------------


def evaluated(expression: str, sizes: dict[str, int]) -> Fraction:
    """Evaluate an expression in which a product may be written without a sign, such as "8 n (m + 1)"."""
    tokens = re.findall(r"\w+|[-+*/()]", expression)
    text = ""
    for before, token in zip(["(", *tokens], tokens, strict=False):
        is_factor = re.fullmatch(r"\w+|\(", token) and re.fullmatch(r"\w+|\)", before)
        number = f"Fraction({token})" if token.isdigit() else f"Fraction(sizes[{token!r}])"
        text += ("*" if is_factor else "") + (number if re.fullmatch(r"\w+", token) else token)
    return Fraction(eval(text, {"Fraction": Fraction, "sizes": sizes}))


def stated(doc: str | None, label: str, sizes: dict[str, int]) -> dict[str, Fraction]:
    """Read the cost line of a docstring."""
    lines = re.findall(rf"Cost{f' of {label}' if label else '[^:]*'}: (.*?)\.(?:\s|$)", doc or "", re.DOTALL)
    assert len(lines) == 1, f"one cost line {label!r} is wanted in {doc!r}"
    found: dict[str, Fraction] = {}
    for clause in re.split(r";\s+", " ".join(lines[0].split())):
        match = re.fullmatch(rf"(.*) ({'|'.join(UNITS)}|bytes each way)(, where .*)?", clause)
        assert match, f"{clause!r} names no unit"
        value, unit = evaluated(match[1], sizes), match[2]
        names = ["bytes_to_model_owner", "bytes_to_data_owner"] if unit == "bytes each way" else [UNITS[unit]]
        found |= dict.fromkeys(names, value)
    return found


@pytest.mark.parametrize("case", [case for case in CASES if case.docs], ids=[c.name for c in CASES if c.docs])
def test_a_docstring_states_the_same_cost(case: Case) -> None:
    total = dict.fromkeys(FIELDS, Fraction(0))
    for doc, label in case.docs or []:
        for name, value in stated(doc, label, case.sizes).items():
            total[name] += value
    assert total == fields_of(case.cost)


def test_every_protocol_is_in_the_table() -> None:
    names = {module.name for module in pkgutil.iter_modules(protocols.__path__)} - {"cost", "party", "comparison"}
    for name in names:
        module = importlib.import_module(f"mpcformer.protocols.{name}")
        assert callable(module.cost), f"{name} has no cost"
        texts = [str(value.__doc__) for value in vars(module).values() if callable(value)]
        assert any(doc in texts for case in CASES for doc, _ in case.docs or []), f"{name} has no case here"
        partner = Path(protocols.__path__[0]).parent / "correlations" / f"{name}.py"
        assert partner.is_file() or name in ("guard", "sealed"), f"{name} has no correlation of its name"


def test_a_message_costs_a_round_only_if_it_is_waited_for() -> None:
    half = (1,), 8
    both, up, down = opening(half), message(MODEL_OWNER, half), message(DATA_OWNER, half)
    assert [cost.rounds for cost in (up, both, both + both, both | both, up + down)] == [1, 1, 2, 1, 2]
    assert (up + both + up).rounds == 3
    assert (up + down + both).rounds == 3
    # The model owner waits for the opening's other half as long as for the message that follows it.
    assert (up + down + both + up).rounds == 3
