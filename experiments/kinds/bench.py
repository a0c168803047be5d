"""Experiments of kind `bench`: engines and networks on one model, with the time by operation."""

from pathlib import Path

from distill.recipe import DistillRecipe
from experiments import bench_command
from experiments.kinds import madeup
from experiments.kinds.experiment import Found, Place
from experiments.kinds.models import Training, examples_digest, model_digest
from experiments.spec.quantities import Row
from experiments.spec.scales import MADE_UP, BenchScale
from experiments.spec.spec import BenchExperiment, digest
from mpcformer.console import console
from mpcformer.errors import UserInputError
from mpcformer.files import read_json
from mpcformer.ring import gemm
from mpcformer.tasks import get_task, load_examples
from parties.runs.network import network_profile

VALUES = {
    "batch_online_seconds": "online_seconds",
    "batch_offline_seconds": "offline_seconds",
    "setup_seconds": "setup_seconds",
    "batch_online_bytes": "online_bytes",
    "batch_dealer_bytes": "dealer_bytes",
    "setup_bytes": "setup_bytes",
    "rounds": "rounds",
}


class Benches:
    """One experiment at one scale.

    Args:
        spec: the experiment.
        scale: its section.
        place: where to work.

    Raises:
        UserInputError: an unknown model, or data that nothing asks for.
    """

    def __init__(self, spec: BenchExperiment, scale: BenchScale, place: Place) -> None:
        self.spec, self.scale, self.place = spec, scale, place
        if place.data_dir:
            raise UserInputError(
                f"--data-dir: {place.data_dir} is not for this experiment, which draws its sentences",
                "leave --data-dir out",
            )
        gemm.check_device(scale.device)
        if scale.model not in (MADE_UP, *bench_command.SHAPES) and not Path(scale.model).is_dir():
            raise UserInputError(
                f"model {scale.model!r} is unknown",
                f"choose one of: {', '.join((MADE_UP, *bench_command.SHAPES))}, or a folder",
            )

    def run(self) -> Found:
        """Measure what is not measured yet, a network at a time, its engines in turn.

        Raises:
            MPCFormerError: a party failed.
        """
        found = Found()
        model = self._made_up(found) if self.scale.model == MADE_UP else self.scale.model
        self.place.runs.mkdir(parents=True, exist_ok=True)
        for network in self.scale.networks:
            asked = self.scale.model_dump() | {"networks": network}
            path = self.place.runs / f"bench-{network.replace(',', '-')}-{digest(asked)[:12]}.json"
            if not path.is_file():
                console.rule(f"network {network}", align="left")
                bench_command.run(self._options(model, network, path))
                found.n_run += 1
            for engine, measured in read_json(path)["engines"].items():
                key: dict[str, str | int | float] = {"engine": engine, "network": network}
                found.rows.append(Row(key, {name: measured[theirs] for name, theirs in VALUES.items()}))
                found.rows += [
                    Row(key | {"operation": name}, {"operation_seconds": seconds})
                    for name, seconds in measured["breakdown"].items()
                ]
        return found

    def _options(self, model: str, network: str, path: Path) -> bench_command.BenchOptions:
        scale = self.scale
        return bench_command.BenchOptions(
            model=model,
            seq_len=scale.seq_len,
            batch_size=scale.batch_size,
            engines=scale.engines,
            network=network_profile(network),
            gelu=scale.gelu,
            softmax=scale.softmax,
            repeat=scale.repeat,
            device=scale.device,
            json=path,
        )

    def _made_up(self, found: Found) -> str:
        """A student of the made-up model, ranges recorded, nothing trained: what is measured asks for no more."""
        folder, task = self.place.out / MADE_UP, get_task(bench_command.TASK)
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
        found.n_trained += self.place.models.provide([training])
        return str(self.place.models.path(training))
