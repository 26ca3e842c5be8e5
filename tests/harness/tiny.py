"""The command line with a network of a few hundred parameters: whole runs take seconds.

`python tests/harness/tiny.py train ...` is `fastcat train ...` with `--arch tiny`.
"""

import sys
from pathlib import Path

from torch import Tensor, nn


class Tiny(nn.Module):
    """BatchNorm, dropout and a residual: everything whose state a resumed run must keep."""

    def __init__(self, classes: int, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 8, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(8)
        self.dropout = nn.Dropout(0.1)
        self.linear = nn.Linear(8, classes)

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn1(self.conv1(x)).relu()
        out = (self.bn2(self.conv2(out)) + out).relu()
        return self.linear(self.dropout(out.mean((2, 3))))


def register() -> None:
    from fastcat.models import ARCHS

    ARCHS["tiny"] = Tiny


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))
    from fastcat.cli import main

    register()
    sys.exit(main())
