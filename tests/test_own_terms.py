"""A loss of one's own, as a term and as what an attack climbs, is one function."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

import fastcat
from fastcat.attacks.threat import ThreatModel, Threats
from fastcat.batch import Batch
from fastcat.errors import InputError
from fastcat.kernels import losses
from fastcat.methods import PGD, Objective, ce, kl, term
from fastcat.step.algorithm import collaborative_step, start_noise
from fastcat.terms import Sum, TermTable
from tests.harness.networks import CLASSES, images, seeded, tiny_net
from tests.harness.teams import team_of

B = 6


@term
def focal(z: Tensor, y: Tensor) -> Tensor:
    """Focal loss (Lin et al. 2017)."""
    p = z.softmax(1).gather(1, y[:, None]).squeeze(1)
    return -((1 - p) ** 2) * p.log()


@term
def jensen(student: Tensor, teacher: Tensor, y: Tensor) -> Tensor:
    """Jensen-Shannon divergence of two predictions; reads no labels."""
    del y
    p, q = student.softmax(1), teacher.softmax(1)
    m = ((p + q) / 2).log()
    return ((p * (p.log() - m)).sum(1) + (q * (q.log() - m)).sum(1)) / 2


@term
def other_kl(student: Tensor, teacher: Tensor, y: Tensor) -> Tensor:
    del y
    return losses.kl(teacher, student)


def logits(seed: int) -> Tensor:
    return torch.randn(B, CLASSES, generator=seeded(seed), dtype=torch.float64)


Y = torch.arange(B) % CLASSES


def as_term() -> Objective:
    return Objective(
        views=("clean", "adv"),
        inner=PGD(loss=focal.formula),  # type: ignore[attr-defined]
        outer=ce("clean") + 2.0 * focal("adv") + 3.0 * jensen("clean", "adv", constant="teacher"),
    )


def as_function() -> Objective:
    def outer(z: dict[str, Tensor], y: Tensor) -> dict[str, Tensor]:
        divergence = jensen.formula(z["adv"], z["clean"].detach(), y)  # type: ignore[attr-defined]
        return {
            "ce": losses.ce(z["clean"], y).mean(),
            "focal": 2 * focal.formula(z["adv"], y).mean(),  # type: ignore[attr-defined]
            "jensen": 3 * divergence.mean(),
        }

    return replace(as_term(), outer=outer)


@pytest.mark.slow
@pytest.mark.parametrize("way", [None, "avg", "max"])
def test_a_term_trains_as_a_function_does(way: str | None) -> None:
    x, y = images(0, B)
    batch = Batch(x.double(), y, torch.arange(B))
    models = (ThreatModel(steps=2), ThreatModel(norm="l2", eps=0.5, steps=2))
    threats = [Threats(models if way else models[:1], way)] * 2
    outcomes = []
    for make in (as_term, as_function):
        nets = [tiny_net(k).double() for k in range(2)]
        team = team_of([make(), "trades"], nets, ["own", "trades"], threats=threats)
        values = collaborative_step(team, batch, start_noise(team, batch.x, seeded()))
        named = dict(zip(team.loss.names, values.tolist(), strict=True))
        outcomes.append((named, [p for net in nets for p in net.parameters()]))
    (ours, our_weights), (theirs, their_weights) = outcomes
    assert {"0-own/ce", "0-own/focal", "0-own/jensen", "0-own/loss"} <= ours.keys()
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert value == pytest.approx(theirs[name], rel=1e-12), name
    for mine, other in zip(our_weights, their_weights, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-12, atol=1e-14)


def test_a_term_alone_is_differentiable() -> None:
    z = {view: logits(seed).requires_grad_() for seed, view in enumerate(("clean", "adv"))}
    values = (2.0 * focal("adv") + jensen("clean", "adv", temperature=2.0))(z, Y)
    assert list(values) == ["focal", "jensen"]
    half = {view: one / 2 for view, one in z.items()}
    expected = 2 * focal.formula(z["adv"], Y).mean()  # type: ignore[attr-defined]
    expected = expected + jensen.formula(half["adv"], half["clean"], Y).mean()  # type: ignore[attr-defined]
    torch.testing.assert_close(sum(values.values()), expected)
    ours = torch.autograd.grad(sum(values.values()), list(z.values()))
    torch.testing.assert_close(ours, torch.autograd.grad(expected, list(z.values())))


@pytest.mark.parametrize("constant", [None, "teacher", "student"])
def test_beside_the_kernel_a_formula_gives_what_the_kernel_gives(constant: str | None) -> None:
    """The same loss once as a word of the kernel and once as a formula, among other terms."""
    z = torch.stack([logits(0), logits(1)])
    upstream = torch.rand(3, B, generator=seeded(2), dtype=torch.float64)
    outcomes = []
    for make in (kl, other_kl):
        one = make("clean", "adv", constant=constant, temperature=3.0)
        terms = (ce("clean") + one + ce("adv")).terms
        table = TermTable(terms, ["clean", "adv"], z.device)
        outcomes.append(table(z, Y, upstream))
    for ours, theirs in zip(*outcomes, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_logits_in_half_precision_are_read_in_float32(dtype: torch.dtype) -> None:
    """Catches a formula in half precision, where log p loses most of its digits."""
    z = {"clean": logits(1).to(dtype), "adv": logits(2).to(dtype)}
    wide = {cell: one.float() for cell, one in z.items()}
    total = focal("clean") + jensen("clean", "adv")
    for name, value in total(wide, Y).items():
        assert torch.equal(total(z, Y)[name], value)


def test_images_mixed_of_two_train_on_a_formula_as_on_the_kernel() -> None:
    """Catches a second label that a formula is not asked for."""
    x, y = images(0, B)
    share = torch.linspace(0.1, 0.9, B, dtype=torch.float64)
    batch = Batch(x.double(), y, torch.arange(B), y.roll(1), share)
    other_ce = term(lambda z, y: losses.ce(z, y))
    weights = []
    for loss in (ce("adv"), other_ce("adv")):
        net = tiny_net(0).double()
        team = team_of(
            [Objective(views=("adv",), inner=PGD(), outer=loss)], [net], ["own"], mixed=True
        )
        collaborative_step(team, batch, start_noise(team, batch.x, seeded()))
        weights.append(list(net.parameters()))
    for ours, theirs in zip(*weights, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)


def test_a_formula_that_reads_one_of_its_logits_leaves_the_other_alone() -> None:
    one_sided = term(lambda student, teacher, y: losses.ce(student, y))
    table = TermTable(one_sided("clean", "adv").terms, ["clean", "adv"], torch.device("cpu"))
    z = torch.stack([logits(0), logits(1)])
    _, dz = table(z, Y, torch.ones(1, B, dtype=torch.float64))
    assert not dz[0].any()
    assert dz[1].any()


def test_an_attack_climbs_a_formula() -> None:
    x, y = images(0, B)
    threat = ThreatModel(eps=0.1, step_size=0.03, steps=3, restarts=2)
    net = tiny_net(0).double().eval()
    named, formula = (
        fastcat.attack(net, x.double(), y, threat, loss=loss, generator=seeded())
        for loss in ("ce", lambda z, labels: losses.ce(z, labels))
    )
    assert torch.equal(named, formula)
    other = fastcat.attack(net, x.double(), y, threat, loss=losses.margin, generator=seeded())
    margin = fastcat.attack(net, x.double(), y, threat, loss="margin", generator=seeded())
    torch.testing.assert_close(other, margin)
    assert not torch.equal(other, named)


def test_a_formula_without_a_value_for_each_image_is_refused() -> None:
    mean = term(lambda z, y: losses.ce(z, y).mean())
    with pytest.raises(InputError, match=r"expected \(6,\), a value for each image: leave mean"):
        mean("clean")({"clean": logits(0)}, Y)
    x, y = images(0, B)
    with pytest.raises(InputError, match="expected one for each: leave mean"):
        fastcat.attack(tiny_net(0), x, y, ThreatModel(), loss=lambda z, y: losses.ce(z, y).mean())


def test_a_term_in_place_of_its_formula_is_refused() -> None:
    with pytest.raises(InputError, match=r"the term focal, expected its formula"):
        PGD(loss=focal)  # type: ignore[arg-type]


def test_what_a_term_of_ones_own_says_of_itself() -> None:
    assert focal.__doc__ == "Focal loss (Lin et al. 2017)."
    assert isinstance(focal("adv"), Sum)
    assert (2.0 * focal("adv")).named("mine").terms[0].name == "mine"
