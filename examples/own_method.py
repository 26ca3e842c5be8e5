"""A method of your own, with a loss term of your own, trained beside TRADES.

    python examples/own_method.py

or on the command line, from this folder:

    fastcat train --peers own_method:focal_trades:beta=3,trades --data digits --eps 0.1
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

from torch import Tensor

import fastcat
from fastcat.methods import PGD, Objective, kl, term


@term
def focal(z: Tensor, y: Tensor) -> Tensor:
    """Focal loss (Lin et al. 2017): -(1 - p_y)^2 log p_y, a value for each image."""
    log_p = z.log_softmax(1).gather(1, y[:, None]).squeeze(1)
    return -((1 - log_p.exp()) ** 2) * log_p


def focal_trades(*, beta: float = 6.0) -> Objective:
    """L = focal(z(x), y) + beta * mean KL(p(x) || p(x_adv)), the attack climbs the KL."""
    return Objective(
        views=("clean", "adv"),
        inner=PGD(loss="kl", start="gaussian"),
        outer=focal("clean") + beta * kl("clean", "adv"),
    )


def main(**settings: Any) -> fastcat.RunResult:
    """Train both peers on digits and print what they are worth; settings: of `TrainConfig`."""
    sys.path.insert(0, str(Path(__file__).parent))  # where `own_method` is found
    out = Path(tempfile.mkdtemp()) / "run"
    config = {"peers": "own_method:focal_trades:beta=3,trades", "data": "digits", "eps": 0.1}
    config |= {"epochs": 3, "batch_size": 64, "lr": 0.04, "schedule": "onecycle", "out": out}
    run = fastcat.train(fastcat.TrainConfig(**{**config, **settings}), quiet=True)
    for name, best in run.best.items():
        print(name, {attack: f"{value:.1%}" for attack, value in best["accuracy"].items()})
    return run


if __name__ == "__main__":
    main()
