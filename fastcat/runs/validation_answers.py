"""What peers answer under attack in validation, by the engine's graphs where it has them."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from fastcat.attacks.pgd import Network
from fastcat.attacks.threat import ThreatModel
from fastcat.evaluation import NoiseAttack
from fastcat.evaluation.evaluate import answers_after
from fastcat.step.engine import Engine


class ValidationAnswers:
    """What peers answer under attack, by the engine's graphs where it has them."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.captures: dict[Any, Callable[..., Tensor]] = {}

    def of(self, k: int) -> tuple[Network, Callable[..., Tensor]]:
        """Peer k as attacks see it, with its weights of now, and what stands in for
        `fastcat.evaluation.evaluate.answers_after`.
        """
        network = self.engine.team.attacked(k)

        def replayed(
            _: Network,
            x: Tensor,
            y: Tensor,
            attack: NoiseAttack,
            threat: ThreatModel,
            noise: Tensor,
        ) -> Tensor:
            def eager(x: Tensor, y: Tensor, noise: Tensor) -> Tensor:
                with self.engine.team.weights_cached(False):
                    return answers_after(network, x, y, attack, threat, noise)

            if "graph" not in self.engine.name:
                return eager(x, y, noise)
            key = (k, attack, threat, x.shape)
            if key not in self.captures:
                self.captures[key] = self.engine.captured("validation", eager, [x, y, noise])
            return self.captures[key](x, y, noise)

        return network, replayed
