"""An attack of your own for evaluation, beside fastcat's: the worst of many random corners.

    python examples/own_attack.py

or on the command line, from this folder:

    fastcat eval runs/first --attacks clean,pgd20,own_attack:corners:tries=50
"""

import sys
from pathlib import Path

import torch
from torch import Tensor, nn

import fastcat
from fastcat.evaluation.attack import EvaluationAttack


def corners(*, tries: int = 20) -> EvaluationAttack:
    """Random corners of the l-inf ball; of each image the one with the lowest p_y. No gradients."""

    def attack(
        network: nn.Module,
        x: Tensor,
        y: Tensor,
        threat: fastcat.ThreatModel,
        generator: torch.Generator,
    ) -> Tensor:
        worst, lowest = x, torch.full(y.shape, torch.inf, device=x.device)
        for _ in range(tries):
            signs = torch.empty_like(x).uniform_(-1, 1, generator=generator).sign()
            x_adv = (x + threat.eps * signs).clamp(0, 1)
            with torch.no_grad():
                p_y = network(x_adv).softmax(1).gather(1, y[:, None]).squeeze(1)
            better = p_y < lowest
            worst = torch.where(better[:, None, None, None], x_adv, worst)
            lowest = torch.where(better, p_y, lowest)
        return worst

    return attack


def main() -> dict[str, float]:
    """Accuracies of a small network that is trained here for a moment, by attack."""
    sys.path.insert(0, str(Path(__file__).parent))  # where `own_attack` is found
    torch.manual_seed(0)
    x = torch.rand(200, 1, 8, 8)
    y = (x[:, 0, :4].mean((1, 2)) > x[:, 0, 4:].mean((1, 2))).long()
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    for _ in range(200):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    threat = fastcat.ThreatModel(eps=0.03, step_size=0.01, steps=10)
    report = fastcat.evaluate(model, [(x, y)], "clean,pgd20,own_attack:corners:tries=50", threat)
    accuracies = {name: report.accuracy(name) for name in report.correct}
    print({name: f"{value:.1%}" for name, value in accuracies.items()})
    return accuracies


if __name__ == "__main__":
    main()
