"""Your own training loop with fastcat's attack and losses: TRADES in a few lines.

python examples/own_loop.py
"""

import torch
from torch import nn

import fastcat
from fastcat.evaluation.evaluate import Report
from fastcat.terms import ce, kl


def main(steps: int = 60) -> Report:
    """Train a small network on images made here; its accuracies, clean and under PGD-20."""
    torch.manual_seed(0)
    x = torch.rand(256, 1, 8, 8)
    y = (x[:, 0, :4].mean((1, 2)) > x[:, 0, 4:].mean((1, 2))).long()
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    threat = fastcat.ThreatModel(eps=0.02, step_size=0.005, steps=5)
    trades = ce("clean") + 6.0 * kl("clean", "adv")
    for _ in range(steps):
        x_adv = fastcat.attack(model, x, y, threat, loss="kl", start="gaussian")
        loss = sum(trades({"clean": model(x), "adv": model(x_adv)}, y).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    report = fastcat.evaluate(model, [(x, y)], "clean,pgd20", threat)
    print({name: f"{report.accuracy(name):.1%}" for name in report.correct})
    return report


if __name__ == "__main__":
    main()
