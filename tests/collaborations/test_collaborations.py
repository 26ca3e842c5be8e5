"""Collaborations as functions of logits: who teaches whom, gradients, defaults, refusals."""

import pytest
import torch

from fastcat.collaborations import make_collaboration
from fastcat.errors import InputError
from fastcat.terms import Sum
from tests.harness.logit_rows import B, C, labels, logits
from tests.harness.teams import taught_on
from tests.reference import losses as reference


@pytest.mark.parametrize("alpha", [0.0, 0.05, 0.3, 1.0])
@pytest.mark.parametrize(
    "views",
    [["adv0", "adv1"], ["clean", "adv1"], ["clean", "clean"], ["adv0", "clean", "adv2"]],
    ids="+".join,
)
def test_cat_teaches_by_formula_and_teachers_get_no_gradient(
    views: list[str], alpha: float
) -> None:
    """d/dz[k, v_k] = (1 - alpha)/B sum_j (p_k - p_j); every other cell gets nothing at all.

    Not nothing up to rounding: a teacher that learns a little is another method.
    """
    peers = range(len(views))
    cat = make_collaboration("cat", taught_on(views), alpha)
    assert cat.objective_weights == (alpha,) * len(views)
    cells = [(j, view) for j in peers for view in dict.fromkeys(views)]
    assert sorted(cat.reads) == sorted(cells)
    z = {cell: logits(seed) for seed, cell in enumerate(cells)}
    assert len(cat.guidance) == len(views)
    values = [taught(z, labels()) for taught in cat.guidance]
    assert all(list(value) == ["kl"] for value in values)
    guidance = [value["kl"] for value in values]
    for k, view in enumerate(views):
        others = [z[j, view] for j in peers if j != k]
        expected = (1 - alpha) * reference.cat_guidance(z[k, view], others)
        torch.testing.assert_close(guidance[k], expected, rtol=1e-12, atol=0)
        grads = torch.autograd.grad(guidance[k], [z[c] for c in cells], allow_unused=True)
        for cell, grad in zip(cells, grads, strict=True):
            if cell == (k, view):
                p = z[cell].detach().softmax(1)
                wanted = sum(p - other.detach().softmax(1) for other in others)
                torch.testing.assert_close(grad, (1 - alpha) / B * wanted)
            else:
                assert grad is None or not grad.any(), cell


@pytest.mark.parametrize("alpha", [0.0, 0.45, 1.0])
@pytest.mark.parametrize(
    ("views", "teachers"),
    [
        (["adv0", "adv1"], [[1], [0]]),
        (["clean", "adv1"], [[1], [0]]),
        (["adv0", "clean", "adv2"], [[1, 2], [0, 2], [0, 1]]),
        (["adv0", "adv1", "adv2"], [[], [0], [0, 1]]),
    ],
    ids=["two", "natural", "three", "chain"],
)
def test_mat_teaches_by_formula_and_teachers_get_no_gradient(
    views: list[str], teachers: list[list[int]], alpha: float
) -> None:
    """d/dz[n, v_n] = alpha/(B M) sum_m (p_n(v_n) - p_m(x)) over its M teachers, else nothing.

    Catches teachers on the adversarial images, CAT's alpha, and a weight by the number of peers.
    """
    text = ",".join(f"{m}>{n}" for n, of_n in enumerate(teachers) for m in of_n)
    mat = make_collaboration("mat", taught_on(views), alpha, text)
    assert mat.objective_weights == tuple(1 - alpha if of_n else 1.0 for of_n in teachers)
    cells = list(dict.fromkeys((k, v) for k, view in enumerate(views) for v in ("clean", view)))
    assert set(mat.reads) <= set(cells)
    z = {cell: logits(seed) for seed, cell in enumerate(cells)}
    for n, (view, of_n) in enumerate(zip(views, teachers, strict=True)):
        if not of_n:
            assert not mat.guidance[n].terms
            continue
        guidance = mat.guidance[n](z, labels())["kl"]
        clean = [z[m, "clean"] for m in of_n]
        expected = alpha * reference.mat_guidance(z[n, view], clean)
        torch.testing.assert_close(guidance, expected, rtol=1e-12, atol=0)
        grads = torch.autograd.grad(guidance, [z[c] for c in cells], allow_unused=True)
        for cell, grad in zip(cells, grads, strict=True):
            if cell == (n, view):
                p = z[cell].detach().softmax(1)
                wanted = sum(p - teacher.detach().softmax(1) for teacher in clean)
                torch.testing.assert_close(grad, alpha / (B * len(of_n)) * wanted)
            else:
                assert grad is None or not grad.any(), cell


@pytest.mark.parametrize("views", [["adv0", "adv1"], ["adv0", "clean", "adv2"]], ids="+".join)
def test_cat_as_printed_takes_gradient_in_the_first_argument(views: list[str]) -> None:
    """d/dz[k, v_k] = (1 - alpha)/B sum_j p_k (log p_k - log p_j - KL(p_k || p_j)), else nothing.

    Catches the code's order, the teacher's gradient, and both.
    """
    peers = range(len(views))
    cat = make_collaboration("cat:own_first=true", taught_on(views), 0.3)
    assert cat.learning == {(k, view) for k, view in enumerate(views)}
    cells = [(j, view) for j in peers for view in views]
    z = {cell: logits(seed) for seed, cell in enumerate(cells)}
    log_p = {cell: row.detach().log_softmax(1) for cell, row in z.items()}
    for k, view in enumerate(views):
        guidance = cat.guidance[k](z, labels())["kl"]
        others = [z[j, view] for j in peers if j != k]
        expected = 0.7 * reference.cat_guidance(z[k, view], others, own_first=True)
        torch.testing.assert_close(guidance, expected, rtol=1e-12, atol=0)
        grads = torch.autograd.grad(guidance, [z[c] for c in cells], allow_unused=True)
        for cell, grad in zip(cells, grads, strict=True):
            if cell == (k, view):
                wanted = torch.zeros(B, C, dtype=torch.float64)
                for j in set(peers) - {k}:
                    ratio = log_p[cell] - log_p[j, view]
                    mean = (log_p[cell].exp() * ratio).sum(1, keepdim=True)
                    wanted += log_p[cell].exp() * (ratio - mean)
                torch.testing.assert_close(grad, 0.7 / B * wanted)
            else:
                assert grad is None or not grad.any(), cell


def test_mat_that_does_not_detach_moves_its_teachers_too() -> None:
    """d/dz[m, x] = alpha/(B M) p_m (log p_m - log p_n(x_n) - KL), of every n that m teaches."""
    students = taught_on(["adv0", "adv1", "adv2"])
    mat = make_collaboration("mat:detach=false", students, 0.6, "0>1,0>2,1>2")
    assert mat.learning == {(0, "clean"), (1, "clean"), (1, "adv1"), (2, "adv2")}
    cells = sorted(mat.learning)
    z = {cell: logits(seed) for seed, cell in enumerate(cells)}
    total = sum(mat.guidance[n](z, labels())["kl"] for n in (1, 2))
    grads = dict(zip(cells, torch.autograd.grad(total, [z[c] for c in cells]), strict=True))
    log_p = {cell: row.detach().log_softmax(1) for cell, row in z.items()}
    for m, taught in ((0, {1: 1, 2: 2}), (1, {2: 2})):
        own, wanted = log_p[m, "clean"], torch.zeros(B, C, dtype=torch.float64)
        for n, teachers in taught.items():
            ratio = own - log_p[n, f"adv{n}"]
            mean = (own.exp() * ratio).sum(1, keepdim=True)
            wanted += 0.6 / teachers / B * own.exp() * (ratio - mean)
        torch.testing.assert_close(grads[m, "clean"], wanted)
    pull = log_p[1, "adv1"].exp() - log_p[0, "clean"].exp()
    torch.testing.assert_close(grads[1, "adv1"], 0.6 / B * pull)


def test_alpha_of_the_paper_is_the_default() -> None:
    assert make_collaboration("cat", taught_on(["adv0", "adv1"]), None).objective_weights == (
        1 / 20,
        1 / 20,
    )
    assert make_collaboration("mat", taught_on(["adv0", "adv1"]), None).objective_weights == (
        0.4,
        0.4,
    )


@pytest.mark.parametrize("teachers", ["all", "ring"])
@pytest.mark.parametrize("alpha", [None, 0.05, 0.5])
@pytest.mark.parametrize("name", ["cat", "mat"])
def test_one_peer_alone_descends_its_plain_loss(
    name: str, alpha: float | None, teachers: str
) -> None:
    alone = make_collaboration(name, taught_on(["adv0"]), alpha, teachers)
    assert (alone.objective_weights, alone.reads, alone.guidance) == ((1.0,), (), (Sum(),))


def test_none_owes_nothing() -> None:
    side_by_side = make_collaboration("none", taught_on(["adv0", "clean"]), None)
    assert (side_by_side.objective_weights, side_by_side.reads) == ((1.0, 1.0), ())
    assert side_by_side.guidance == (Sum(), Sum())


@pytest.mark.parametrize(
    ("name", "alpha", "text"),
    [
        pytest.param("cart", None, "unknown collaboration 'cart': did you mean 'cat'?", id="typo"),
        pytest.param("cat", -0.1, "alpha is -0.1, expected a weight in [0, 1]", id="negative"),
        pytest.param("cat", 20.0, "alpha is 20, expected a weight in [0, 1]", id="above-1"),
        pytest.param("cat", float("nan"), "alpha is nan, expected a weight in [0, 1]", id="nan"),
        pytest.param("mat", 1.5, "alpha is 1.5, expected a weight in [0, 1]", id="mat-above-1"),
        pytest.param("none", 0.05, "'none' has no guidance", id="none-with-alpha"),
        pytest.param("none:detach=true", None, "none takes no settings", id="none-with-setting"),
        pytest.param(
            "cat:own=true",
            None,
            "cat has no setting 'own': cat takes own_first=False",
            id="no-such",
        ),
        pytest.param("cat:alpha=0.1", None, "cat has no setting 'alpha'", id="alpha-as-setting"),
        pytest.param("mat:students=a", None, "mat has no setting 'students'", id="no-setting"),
        pytest.param("mat:detach=1", None, "mat:detach=1 is no bool: mat takes", id="no-bool"),
        pytest.param("mat:detach", None, "settings like cat:own_first=true", id="without-value"),
    ],
)
def test_collaborations_that_mean_nothing_are_refused(
    name: str, alpha: float | None, text: str
) -> None:
    with pytest.raises(InputError) as caught:
        make_collaboration(name, taught_on(["adv0", "adv1"]), alpha)
    assert text in str(caught.value)
