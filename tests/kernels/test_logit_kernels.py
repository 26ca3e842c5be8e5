"""attack_logit_grad and multi_peer_loss: the specification against the formulas, and autograd."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fastcat.kernels import _gradients, losses
from fastcat.kernels import attack_logit_grad as attack_file
from fastcat.kernels import multi_peer_loss as loss_file
from fastcat.kernels.attack_logit_grad import attack_logit_grad
from fastcat.kernels.multi_peer_loss import KINDS, multi_peer_loss
from tests.harness.logit_cases import PAIRS, Case, every_term, labels, logits
from tests.reference import losses as reference


def oracle(kind: str, z: Tensor, teacher: Tensor, y: Tensor) -> Tensor:
    """The loss [B] from its formula, independent of kernels/losses.py."""
    own = torch.zeros_like(z, dtype=torch.bool).scatter(1, y[:, None], True)
    z_y = z[own]
    wrong = z.masked_fill(own, -torch.inf).sort(descending=True).values[:, 0]
    ordered = z.sort(descending=True).values
    log_p = reference.log_softmax(z)
    if kind == "margin":
        return wrong - z_y
    if kind == "dlr":
        return (wrong - z_y) / (ordered[:, 0] - ordered[:, 2] + 1e-12)
    if kind == "boosted_ce":
        p_wrong = (wrong - z_y + log_p[own]).exp()
        return -log_p[own] - (reference.BCE_MARGIN - p_wrong + reference.BCE_FLOOR).log()
    if kind == "square":
        return ((z - teacher) ** 2).sum(1) / z.shape[1]
    if kind == "uniform_ce":
        return -log_p.sum(1) / z.shape[1]
    kl = reference.kl(teacher, z)
    if kind == "mart_kl":
        return (reference.WEIGHT_MARGIN - reference.log_softmax(teacher)[own].exp()) * kl
    return {"ce": -log_p[own], "kl": kl}[kind]


def case_of(shape: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    """Logits in float64 and labels."""
    y = labels(Case(shape, "random", torch.float64))
    return logits(shape, "random", y), y


def test_attack_gradient_is_that_of_the_formula() -> None:
    """Catches a kind under another's code, a target of the wrong peer and a lost scale."""
    names = ["kl", "ce", "dlr", "margin", "boosted_ce", "kl"]
    z, y = case_of((6, 33, 7))
    clean = z.flip(0, 1)
    z.requires_grad_()
    climbed = [oracle(name, z[k], clean[k], y) for k, name in enumerate(names)]
    (expected,) = torch.autograd.grad(0.75 * torch.stack(climbed).sum(), z)
    kinds = [KINDS[name] for name in names]
    dz = attack_logit_grad(z.detach(), y, clean, kinds, 0.75)
    torch.testing.assert_close(dz, expected, rtol=1e-9, atol=1e-12)


def test_losses_and_their_gradient_are_those_of_the_formulas() -> None:
    """Catches teacher and student exchanged, a constant with gradient and a weight left out."""
    z, y = case_of((3, 33, 7))
    z.requires_grad_()
    terms = every_term(3)
    upstream = torch.linspace(-1, 2, len(terms) * 33, dtype=torch.float64).reshape(-1, 33)
    names = {code: name for name, code in KINDS.items()}
    expected = []
    for *codes, temperature in terms.tolist():
        kind, student, teacher, constant = map(int, codes)
        cells = [z[cell].detach() if cell == constant else z[cell] for cell in (student, teacher)]
        expected.append(oracle(names[kind], *(cell / temperature for cell in cells), y))
    expected = torch.stack(expected)
    (expected_dz,) = torch.autograd.grad((upstream * expected).sum(), z)
    values, dz = multi_peer_loss(z.detach(), y, terms, upstream)
    torch.testing.assert_close(values, expected.detach(), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(dz, expected_dz, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("content", ["random", "sure", "extreme"])
@pytest.mark.parametrize("name", KINDS)
def test_gradients_by_hand_are_autograds(name: str, content: str) -> None:
    shape = (2, 33, 7)
    y = labels(Case(shape, content, torch.float64))
    z = logits(shape, content, y).requires_grad_()
    takes_teacher, takes_labels = name in PAIRS, name not in ("kl", "square", "uniform_ce")
    cells = [*z] if takes_teacher else [z[0]]
    arguments = cells + [y] * takes_labels
    expected = torch.autograd.grad(getattr(losses, name)(*arguments).sum(), cells)
    for actual, wanted in zip(getattr(_gradients, name)(*arguments), expected, strict=True):
        torch.testing.assert_close(actual.detach(), wanted, rtol=1e-9, atol=1e-12)


def test_losses_are_differentiable() -> None:
    z, y = case_of((2, 3, 4))
    terms = every_term(2)
    terms = terms[terms[:, 3] < 0]  # a difference quotient knows no constants
    upstream = torch.zeros(len(terms), 1, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda z: multi_peer_loss(z, y, terms, upstream)[0], z.requires_grad_()
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_ops_keep_torchs_rules(dtype: torch.dtype) -> None:
    """Catches a fake of another shape, dtype or layout than the result's, and a changed input."""
    z, y = case_of((2, 3, 4))
    z = z.to(dtype).transpose(0, 1).contiguous().transpose(0, 1)
    terms = every_term(2)
    upstream = torch.ones(len(terms), 1).expand(-1, 3)
    torch.library.opcheck(loss_file.OP.torch_op, (z, y, terms, upstream))
    torch.library.opcheck(attack_file.OP.torch_op, (z, y, z.float(), [KINDS["kl"]] * 2, 1.0))


@pytest.mark.slow
@pytest.mark.compile
def test_compiles_whole() -> None:
    z, y = case_of((2, 3, 4))
    z.requires_grad_()
    terms = every_term(2)
    upstream = torch.ones(len(terms), 1, dtype=torch.float64)

    def weighted(z: Tensor) -> tuple[Tensor, Tensor]:
        return multi_peer_loss(z, y, terms, upstream)[0].sum(), multi_peer_loss(
            z.detach(), y, terms, upstream
        )[1]

    expected = torch.autograd.grad(weighted(z)[0], z)[0]
    loss, dz = torch.compile(weighted, fullgraph=True, backend="aot_eager")(z)
    assert torch.equal(torch.autograd.grad(loss, z)[0], expected)
    torch.testing.assert_close(dz, expected, rtol=1e-12, atol=1e-13)


def test_dz_has_no_gradient() -> None:
    """Silence would be a wrong gradient."""
    z, y = case_of((2, 3, 4))
    terms = every_term(2)
    upstream = torch.ones(len(terms), 3, dtype=torch.float64)
    values, dz = multi_peer_loss(z.requires_grad_(), y, terms, upstream)
    with pytest.raises(RuntimeError, match="dz is a gradient"):
        (values.sum() + dz.sum()).backward()
    values, _ = multi_peer_loss(z, y, terms, upstream)
    (first,) = torch.autograd.grad(values.sum(), z, create_graph=True)
    with pytest.raises(RuntimeError, match="dz is a gradient"):
        first.sum().backward()


def test_half_precision_is_computed_in_float32() -> None:
    """Catches MART's 1.0001 - p in bfloat16, where it is 1 - p."""
    z, y = (x[:, :3] if x.ndim > 1 else x[:3] for x in case_of((2, 3, 4)))
    terms = every_term(2)
    upstream = torch.ones(len(terms), 3)
    half = z.bfloat16()
    for actual, expected in zip(
        multi_peer_loss(half, y, terms, upstream),
        multi_peer_loss(half.float(), y, terms, upstream),
        strict=True,
    ):
        assert torch.equal(actual, expected.to(actual.dtype))
    kinds = [KINDS["boosted_ce"], KINDS["kl"]]
    dz = attack_logit_grad(half, y, half.flip(0), kinds, 1.0)
    wide = attack_logit_grad(half.float(), y, half.flip(0).float(), kinds, 1.0)
    assert torch.equal(dz, wide.bfloat16())


@pytest.mark.parametrize("run", [attack_file.OP.fused, attack_logit_grad], ids=["fused", "public"])
@pytest.mark.parametrize(
    ("classes", "names", "message"),
    [
        pytest.param(2, ["ce", "dlr"], "expected 3 classes, got 2", id="dlr-of-two"),
        pytest.param(3, ["ce"], "for each of 2 peers", id="one-kind-too-few"),
        pytest.param(3, ["ce", "square"], "kinds are", id="no-attack"),
    ],
)
def test_attack_refuses(
    run: Callable[..., Any], classes: int, names: list[str], message: str
) -> None:
    z = torch.zeros(2, 3, classes)
    y = torch.zeros(3, dtype=torch.long)
    with pytest.raises(ValueError, match=message):
        run(z, y, z, [KINDS[name] for name in names], 1.0)
