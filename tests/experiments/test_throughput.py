"""The model of a fleet, and the record that docs/performance.md shows."""

import json
import math
from pathlib import Path

import pytest

from experiments.measuring import throughput
from experiments.measuring.fleet import BatchCost, best_fleet, fleet, one_machine
from experiments.measuring.throughput import SESSIONS, simulated
from experiments.render.throughput import draw_throughput, throughput_tables
from mpcformer.errors import UserInputError
from parties.runs.network import PROFILES, NetworkProfile

RECORD = Path(throughput.__file__).with_name("throughput.json")
FAST = NetworkProfile("fast", 0.0, 1e15)
COST = BatchCost(
    sentences=10,
    tokens=32,
    offline_cpu_s={"dealer": 2.0, "model-owner": 1.0, "data-owner": 0.5},
    online_cpu_s={"dealer": 0.0, "model-owner": 1.0, "data-owner": 0.5},
    dealer_bytes=1000,
    offline_bytes=100,
    online_bytes=200,
    rounds=100,
)


def machines(dealers: int, model_owners: int, data_owners: int) -> dict[str, int]:
    return {"dealer": dealers, "model-owner": model_owners, "data-owner": data_owners}


def test_one_machine_is_bound_by_its_sessions_and_then_by_its_processors() -> None:
    # A session deals in 2 s, beside an answer in 1.5 s. All parties together take 5 s of processors for a batch.
    assert one_machine(COST, 8, 1).sentences_s == pytest.approx(10 / 2)
    assert one_machine(COST, 8, 2).sentences_s == pytest.approx(2 * 10 / 2)
    assert one_machine(COST, 8, 64).sentences_s == pytest.approx(8 / 5 * 10)
    assert [one_machine(COST, 8, n).why for n in (1, 64)] == ["sessions", "processors"]


def test_a_fleet_is_bound_by_its_slowest_part() -> None:
    assert fleet(COST, machines(1, 1, 1), 1, 64, FAST) == fleet(COST, machines(1, 8, 8), 1, 64, FAST)
    assert fleet(COST, machines(1, 8, 8), 1, 64, FAST).why == "processors, dealer"
    assert fleet(COST, machines(1, 8, 8), 1, 64, FAST).sentences_s == pytest.approx(10 / 2)
    assert fleet(COST, machines(8, 1, 8), 2, 64, FAST).sentences_s == pytest.approx(2 * 10 / 2)
    slow = NetworkProfile("slow", 0.0, 575.0)
    # The model owner receives 1,000 bytes of a batch from the dealer and 150 from the data owner.
    found = fleet(COST, machines(64, 1, 64), 64, 64, slow)
    assert (found.why, found.sentences_s) == ("link, model-owner", pytest.approx(0.5 * 10))
    far = NetworkProfile("far", 2.0, 1e15)
    # Rounds take 100 s, and one session answers one batch at a time.
    found = fleet(COST, machines(4, 1, 1), 4, 3, far)
    assert (found.why, found.sentences_s) == ("sessions", pytest.approx(3 * 10 / 101.5))


def test_the_best_split_is_no_worse_than_any_other_and_grows_with_the_fleet() -> None:
    rates = []
    for n in (2, 3, 4, 8, 64):
        dealers, best = best_fleet(COST, n, 2, 4, PROFILES["lan"])
        assert 1 <= dealers < n
        for other in range(1, n):
            given = fleet(COST, machines(other, n - other, n - other), 2, 4, PROFILES["lan"])
            assert given.sentences_s <= best.sentences_s
        rates.append(best.sentences_s)
    assert rates == sorted(rates)
    assert rates[-1] == pytest.approx(32 * rates[0], rel=0.05)


def test_the_record_is_what_its_parts_give() -> None:
    record = json.loads(RECORD.read_text())
    again = json.loads(json.dumps(simulated(BatchCost(**record["batch"]), record["cores"])))
    assert {name: record[name] for name in again} == again
    assert [row["sessions"] for row in record["sessions"]] == list(SESSIONS)
    for row, model in zip(record["sessions"], record["modelled"], strict=True):
        assert row["refused"] == 0
        assert math.isclose(row["sentences_per_second"], row["sentences"] / row["seconds"])
        assert row["sentences_per_second"] < 1.1 * model["sentences_per_second"], "the model is an upper bound"
    tables = throughput_tables(record)
    assert [len(tables[name].lines) for name in ("parts", "sessions", "machines")] == [2, 3, 12]
    assert draw_throughput(record).svg == draw_throughput(record).svg


@pytest.mark.parametrize(
    ("batches", "parts", "shape", "match"),
    [
        (0, 1, (1, 16), "--batches: 0"),
        (1, 0, (1, 16), "--parts: 0"),
        (1, 1, (0, 16), "--batch-size"),
        (1, 1, (1, 2), "--seq"),
    ],
)
def test_wrong_numbers(batches: int, parts: int, shape: tuple[int, int], match: str) -> None:
    with pytest.raises(UserInputError, match=match):
        throughput.record("minilm", shape, batches, parts)


@pytest.mark.slow
def test_it_measures_a_tiny_student(student: Path) -> None:
    record = throughput.record(str(student), (2, 16), 2, 1)
    assert [row["sentences"] for row in record["sessions"]] == [4, 4, 4]
    assert record["batch"]["rounds"] > 0
    assert all(value >= 0 for phase in ("offline_cpu_s", "online_cpu_s") for value in record["batch"][phase].values())
    assert len(record["machines"]) == 12
