"""The data owner's own copy of its answers to a coordinator's job."""

from pathlib import Path

import pyarrow.parquet as pq

from mpcformer.tasks import TASKS
from parties.roles.data_owner import write_answers
from parties.stubs import parties_pb2 as pb


def test_other_users_cannot_read_them(tmp_path: Path) -> None:
    found = pb.Predictions(
        rows=[0, 1],
        ids=[7, 8],
        labels=[0, 1],
        groups=["validation"] * 2,
        n_outputs=2,
        logits=[0.5, -0.5, 0, 0],
        refused=[False, True],
    )
    path = tmp_path / "answers-00000000.parquet"
    write_answers(path, TASKS["sst2"], found)
    assert path.stat().st_mode & 0o077 == 0, "the folder may have been there, open to all"
    assert pq.read_table(path).to_pylist() == [
        {"id": 7, "split": "validation", "answer": "negative", "logits": [0.5, -0.5], "refused": False},
        {"id": 8, "split": "validation", "answer": None, "logits": None, "refused": True},
    ]
