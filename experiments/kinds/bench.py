"""Experiments of kind `bench`: measure engines and networks on one model, with the time by operation."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from distill.recipe import DistillRecipe
from experiments.kinds import madeup
from experiments.kinds.experiment import Measured, Workplace
from experiments.kinds.models import Training, examples_digest, model_digest
from experiments.measuring.engines import BenchOptions, measure
from experiments.measuring.model import TASK
from experiments.spec.quantities import Row
from experiments.spec.scales import MADE_UP, BenchScale
from experiments.spec.shapes import SHAPES
from experiments.spec.spec import BenchExperiment, digest
from mpcformer.console import console
from mpcformer.errors import UserInputError
from mpcformer.files import read_json
from mpcformer.modeling.precision import WIDE
from mpcformer.ring import gemm
from mpcformer.tasks import get_task, load_examples
from parties.runs.network import network_profile

# The quantity of a row, and the key of the figure that `measure` returns for it.
VALUES = {
    "batch_online_seconds": "online_seconds",
    "batch_offline_seconds": "offline_seconds",
    "setup_seconds": "setup_seconds",
    "batch_online_bytes": "online_bytes",
    "batch_dealer_bytes": "dealer_bytes",
    "setup_bytes": "setup_bytes",
    "rounds": "rounds",
}


class Bench:
    """An experiment of kind `bench` at one scale.

    Args:
        spec: the experiment.
        scale: the section of that scale.
        workplace: the folders to work in.
        show: called with the figures of each network when they have been measured.

    Raises:
        UserInputError: the model is unknown, or a data folder is given, which this kind does not read.
    """

    def __init__(
        self, spec: BenchExperiment, scale: BenchScale, workplace: Workplace, show: Callable[[dict[str, Any]], None]
    ) -> None:
        self.spec, self.scale, self.workplace, self.show = spec, scale, workplace, show
        if workplace.data_dir:
            raise UserInputError(
                f"--data-dir: {workplace.data_dir} is not for this experiment, which draws its sentences",
                "leave --data-dir out",
            )
        gemm.check_device(scale.device)
        if scale.model not in (MADE_UP, *SHAPES) and not Path(scale.model).is_dir():
            raise UserInputError(
                f"model {scale.model!r} is unknown",
                f"choose one of: {', '.join((MADE_UP, *SHAPES))}, or a folder",
            )

    def run(self) -> Measured:
        """Measure the networks that have not been measured yet, one after the other, with the engines in turn.

        Raises:
            MPCFormerError: a party failed.
        """
        measured = Measured()
        model = self._made_up(measured) if self.scale.model == MADE_UP else self.scale.model
        self.workplace.runs.mkdir(parents=True, exist_ok=True)
        for network in self.scale.networks:
            asked = self.scale.model_dump() | {"networks": network}
            path = self.workplace.runs / f"bench-{network.replace(',', '-')}-{digest(asked)[:12]}.json"
            if not path.is_file():
                console.rule(f"network {network}", align="left")
                self.show(measure(self._options(model, network, path)))
                measured.n_run += 1
            for engine, figures in read_json(path)["engines"].items():
                key: dict[str, str | int | float] = {"engine": engine, "network": network}
                measured.rows.append(Row(key, {name: figures[key_of_figure] for name, key_of_figure in VALUES.items()}))
                measured.rows += [
                    Row(key | {"operation": name}, {"operation_seconds": seconds})
                    for name, seconds in figures["breakdown"].items()
                ]
        return measured

    def _options(self, model: str, network: str, path: Path) -> BenchOptions:
        scale = self.scale
        return BenchOptions(
            model=model,
            seq_len=scale.seq_len,
            batch_size=scale.batch_size,
            engines=scale.engines,
            network=network_profile(network),
            gelu=scale.gelu,
            softmax=scale.softmax,
            precision=WIDE,  # that of the recorded figures
            repeat=scale.repeat,
            device=scale.device,
            json=path,
        )

    def _made_up(self, measured: Measured) -> str:
        """Return the folder of a student of the made-up model that is untrained but has calibrated ranges."""
        folder, task = self.workplace.out / MADE_UP, get_task(TASK)
        base = madeup.write_model(folder / "model")
        data = madeup.write_data(folder, task)
        recipe = DistillRecipe(
            teacher=base,
            task=task.name,
            data_dir=data,
            gelu=self.scale.gelu,
            softmax=self.scale.softmax,
            start="teacher",
            epochs1=0,
            epochs2=0,
            max_length=madeup.POSITIONS,
            precision="fp32",
        )
        train = examples_digest(load_examples(task, task.train_split, data_dir=data))
        training = Training("made-up student, untrained", recipe, train, model_digest(base), torch_threads=1)
        measured.n_trained += self.workplace.models.provide([training])
        return str(self.workplace.models.path(training))
