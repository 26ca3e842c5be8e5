"""What `fastcat tune` measures: the steps of a run, by every way of executing them."""

from fastcat.config.train import TrainConfig
from fastcat.errors import InputError
from fastcat.progress import make_console
from fastcat.runs.api import with_absolute_paths
from fastcat.runs.trainer import Trainer
from fastcat.runtime import restored_settings
from fastcat.step.plan import Measured


@restored_settings()
def tune(config: TrainConfig) -> Measured:
    """Measure how this GPU runs the steps of such a run fastest, and keep that for --engine auto.

    Nothing is trained, and no folder is made. A minute or more, as networks are compiled too.

    Raises InputError where there is no GPU, and as `fastcat.train` does.
    """
    trainer = Trainer(with_absolute_paths(config), None, make_console(quiet=True))
    if trainer.device.type != "cuda":
        raise InputError(
            f"tune measures GPUs, and this would run on {trainer.device}: leave it out, on a CPU "
            "there is nothing to choose"
        )
    inputs = next(iter(trainer.inputs()))
    return trainer.engine.tune(inputs, trainer.loader.template(inputs))
