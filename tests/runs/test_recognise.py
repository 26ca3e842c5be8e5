"""Functions of the same names, told apart by clean images, and normalisation that is missing."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from fastcat.batch import Batch
from fastcat.models import ARCHS, normalized
from fastcat.runs.recognise import recognise
from fastcat.weights.file import WeightsInfo
from tests.harness.networks import images

CLASSES = 5
STATISTICS = ((0.5, 0.5, 0.5), (0.3, 0.3, 0.3))


class Usual(nn.Module):
    """One layer of the images, or of what they lack."""

    def __init__(self, classes: int, channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(channels * 64, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.flatten(1))


class Other(Usual):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(1 - x) - self.linear.bias


class Nan(Usual):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * torch.nan


@pytest.fixture(autouse=True)
def _alike(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, make in {"usual": Usual, "other": Other}.items():
        monkeypatch.setitem(ARCHS, name, make)


def labelled_by(network: nn.Module, size: int = 200) -> "Images":
    """Images whose labels are what the network says of them."""
    x, _ = images(0, size, 8)
    with torch.no_grad():
        return Images(x, network(x).argmax(1))


class Images:
    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y

    def __iter__(self) -> Iterator[Batch]:
        for x, y in zip(self.x.split(30), self.y.split(30), strict=True):
            yield Batch(x, y, y)


def weights() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {"linear.weight": torch.randn(CLASSES, 192), "linear.bias": torch.zeros(CLASSES)}


def built(arch: str) -> nn.Module:
    network = ARCHS[arch](CLASSES, 3)
    network.load_state_dict(weights())
    return network.eval()


def told(
    arch: str, loader: Images, normalize: tuple[tuple[float, ...], ...] | None = None
) -> tuple[str, list[str], nn.Module]:
    """What `recognise` makes of a network that was typed as `arch`, and its lines."""
    info = WeightsInfo(
        peer="it", arch=arch, data="d", classes=tuple("abcde"), channels=3,
        mean=None if normalize is None else normalize[0],
        std=None if normalize is None else normalize[1],
        threats="linf:eps=0.1", epoch=0, selected="of others",
    )  # fmt: skip
    network = built(arch) if normalize is None else normalized(built(arch), *normalize)
    lines: list[str] = []
    device = torch.device("cpu")
    model, found = recognise(network, info, loader, device, STATISTICS, lines.append)  # type: ignore[arg-type]
    return found.arch, lines, model


@pytest.mark.slow
def test_the_usual_name_stands_for_the_function_that_is_right() -> None:
    loader = labelled_by(built("other"))
    arch, lines, model = told("usual", loader)
    assert arch == "other"
    assert "names and shapes fit usual and other, right on" in lines[0]
    assert "and 200 of 200 clean images: taken as other" in lines[0]
    assert torch.equal(model(loader.x).argmax(1), loader.y)
    arch, lines, _ = told("usual", labelled_by(built("usual")))
    assert arch == "usual"
    assert "right on 200 and" in lines[0]
    assert "taken as usual" in lines[0]


def test_a_full_name_is_taken_at_its_word() -> None:
    arch, lines, _ = told("other", labelled_by(built("usual")))
    assert arch == "other"
    assert "taken as other" in lines[0]


def test_few_images_do_not_overrule_what_was_typed() -> None:
    """Catches a choice by one or two images."""
    assert told("usual", labelled_by(built("other"), 3))[0] == "usual"


@pytest.mark.slow
def test_a_normalisation_that_is_missing_is_told() -> None:
    weighted = normalized(built("usual"), (0.5,) * 3, (0.3,) * 3)
    loader = labelled_by(weighted)
    _, lines, _ = told("usual", loader)
    assert lines[-1].endswith("type --mean 0.5,0.5,0.5 --std 0.3,0.3,0.3")
    assert "and on 200 that are normalised first" in lines[-1]
    _, lines, _ = told("usual", loader, ((0.5,) * 3, (0.3,) * 3))
    assert len(lines) == 1


@pytest.mark.slow
def test_near_chance_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    loader = labelled_by(built("usual"))
    loader.y = torch.randint(CLASSES, (200,), generator=torch.Generator().manual_seed(0))
    _, lines, _ = told("usual", loader)
    assert "of 200 clean images, near chance" in lines[-1]
    monkeypatch.setitem(ARCHS, "usual", Nan)
    monkeypatch.delitem(ARCHS, "other")
    _, lines, _ = told("usual", loader)
    assert lines[0].startswith("right on 0 of 200 clean images, near chance")
