"""The results of a finished job, and the checks of what the owners report."""

from dataclasses import dataclass

from parties.settings.config import Role
from parties.stubs import parties_pb2 as pb

DIGEST_BYTES = 32
LEFT_RANGE = "an activation left its range, and the job says to end with an error then"


@dataclass(frozen=True)
class Results:
    """The results of a finished job.

    Args:
        batches: the reports of both owners about each batch, by role, in order.
        n_resumed: the number of batches that an earlier run had finished.
        predictions: the predictions of all batches, in the order of the split.
        reports: the final report of each party by role.
        session_id: the id of the last session.
        scores: what a data owner told that withholds its answers; the predictions are empty then.
        seconds: how long the batches of the last session took, dealing included, from the end of the set-up.
    """

    batches: dict[Role, list[pb.BatchReport]]
    n_resumed: int
    predictions: pb.Predictions
    reports: dict[Role, pb.Report]
    session_id: bytes
    seconds: float = 0.0
    scores: pb.Scores | None = None


def merged(batches: list[pb.Predictions]) -> pb.Predictions:
    """Return the predictions of all batches in the order of their rows."""
    flat = [
        (
            row,
            b.ids[i],
            b.labels[i],
            b.groups[i],
            list(b.logits[i * b.n_outputs : (i + 1) * b.n_outputs]),
            b.refused[i],
        )
        for b in batches
        for i, row in enumerate(b.rows)
    ]
    flat.sort(key=lambda item: item[0])
    return pb.Predictions(
        rows=[item[0] for item in flat],
        ids=[item[1] for item in flat],
        labels=[item[2] for item in flat],
        groups=[item[3] for item in flat],
        n_outputs=batches[0].n_outputs or 1 if batches else 1,
        logits=[value for item in flat for value in item[4]],
        refused=[item[5] for item in flat],
    )


def is_whole(batch: pb.Batch) -> bool:
    """Return whether a batch has one prediction for each sentence, and all of them the same number of outputs."""
    told, n = batch.predictions, batch.report.batch_size
    same = all(len(column) == n for column in (told.rows, told.ids, told.labels, told.groups, told.refused))
    return n > 0 and same and told.n_outputs > 0 and len(told.logits) == n * told.n_outputs
