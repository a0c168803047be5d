"""Experiments of kind `counts`: count rounds and bytes of a private batch. Nothing is trained or run."""

from experiments.kinds.experiment import Measured, Workplace
from experiments.measuring.model import bench_model
from experiments.spec.quantities import Row
from experiments.spec.scales import CountedSpec, CountsScale
from experiments.spec.shapes import SHAPES
from experiments.spec.spec import CountsExperiment
from mpcformer.console import console
from mpcformer.engines.base import BatchShape, load_public_model
from mpcformer.engines.registry import estimate_batch
from mpcformer.errors import UserInputError
from mpcformer.modeling import MPCFormerConfig


class Counts:
    """An experiment of kind `counts` at one scale.

    Args:
        spec: the experiment.
        scale: the section of that scale.
        workplace: the folders to work in.

    Raises:
        UserInputError: a model does not have the named LayerNorms, or a data folder is given, which this kind does not
            read.
    """

    def __init__(self, spec: CountsExperiment, scale: CountsScale, workplace: Workplace) -> None:
        self.scale = scale
        self.models = [model for model in spec.models if scale.models is None or model.name in scale.models]
        if workplace.data_dir:
            raise UserInputError(
                f"--data-dir: {workplace.data_dir} is not for this experiment, which reads none", "leave --data-dir out"
            )
        for model in self.models:
            layers = model.layers or SHAPES[model.model]["num_hidden_layers"]
            MPCFormerConfig(constant_norms=model.constant_norms, num_hidden_layers=layers)  # raises on unknown names

    def run(self) -> Measured:
        """Return a row for each model and engine."""
        measured = Measured()
        for number, model in enumerate(self.models, 1):
            with console.status(f"{number}/{len(self.models)} {model.name}"):
                measured.rows += self._rows(model)
            measured.n_run += 1
        return measured

    def _rows(self, model: CountedSpec) -> list[Row]:
        scale, rows = self.scale, []
        with bench_model(
            model.model, model.layers, scale.seq_len, model.gelu, model.softmax, model.constant_norms
        ) as folder:
            public = load_public_model(folder)
            for engine in scale.engines:
                cost = estimate_batch(engine, public, BatchShape(scale.batch_size, scale.seq_len))
                values: dict[str, float] = {
                    "rounds": cost.rounds,
                    "batch_online_bytes": cost.online_bytes,
                    "batch_dealer_bytes": cost.dealer_bytes,
                    "setup_bytes": cost.setup_bytes,
                }
                rows.append(Row({"model": model.name, "engine": engine}, values))
        return rows
