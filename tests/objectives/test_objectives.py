"""Methods as functions of logits: gradients, saturation, settings, refusals."""

from math import exp, log

import pytest
import torch

from fastcat.attacks.pgd import ATTACK_LOSSES, PGD
from fastcat.attacks.squeeze import Squeeze
from fastcat.collaborations import COLLABORATIONS, make_collaboration
from fastcat.errors import InputError
from fastcat.objectives import METHODS, make_objective
from fastcat.terms import ce
from tests.harness.logit_rows import B, C, labels, logits, rows
from tests.harness.teams import taught_on
from tests.reference import losses as reference

ALL_METHODS = ["natural", "at", "trades", "alp", "mart", "boosted", "st"]
ALL_METHODS += ["ard", "rslad", "iad", "act"]

# gradients


def test_trades_kl_pulls_the_clean_logits_too() -> None:
    """d/dz(x) = beta/B p (log p - log q - KL), d/dz(x_adv) = beta/B (q - p)."""
    z, y = rows("trades"), labels()
    kl = make_objective("trades", {"beta": "3"}).outer(z, y)["kl"]
    grads = torch.autograd.grad(kl, (z["clean"], z["adv"]))
    p, q = z["clean"].detach().softmax(1), z["adv"].detach().softmax(1)
    log_ratio = p.log() - q.log()
    divergence = (p * log_ratio).sum(1, keepdim=True)
    torch.testing.assert_close(grads[0], 3.0 / B * p * (log_ratio - divergence))
    torch.testing.assert_close(grads[1], 3.0 / B * (q - p))
    assert grads[0].abs().max() > 0.01


def test_mart_weight_has_gradient() -> None:
    """The KL's weight 1 - p_y is no constant: held still, the clean gradient would be another."""
    z, y = rows("mart"), labels()
    kl = make_objective("mart", {"beta": "3"}).outer(z, y)["kl"]
    (grad,) = torch.autograd.grad(kl, z["clean"])
    p, q = z["clean"].detach().softmax(1), z["adv"].detach().softmax(1)
    log_ratio = p.log() - q.log()
    divergence = (p * log_ratio).sum(1, keepdim=True)
    p_y = p.gather(1, y[:, None])
    one_hot = torch.eye(C, dtype=torch.float64)[y]
    by_weight = -divergence * p_y * (one_hot - p)
    by_kl = (1.0000001 - p_y) * p * (log_ratio - divergence)
    torch.testing.assert_close(grad, 3.0 / B * (by_weight + by_kl))
    assert by_weight.abs().max() > 0.01


def test_alp_pairs_both_ways() -> None:
    """d/dz(x_adv) = 2 weight / (B C) (z(x_adv) - z(x)), and its negative on the clean side."""
    z, y = rows("alp"), labels()
    pairing = make_objective("alp", {"weight": "0.5"}).outer(z, y)["pairing"]
    grads = torch.autograd.grad(pairing, (z["adv"], z["clean"]))
    expected = (z["adv"] - z["clean"]).detach() / (B * C)
    torch.testing.assert_close(grads[0], expected)
    torch.testing.assert_close(grads[1], -expected)


@pytest.mark.parametrize("name", ALL_METHODS)
def test_terms_and_gradients_equal_the_oracle(name: str) -> None:
    z, y = rows(name), labels()
    ours = make_objective(name, {}).outer(z, y)
    expected = reference.OBJECTIVES[name](*z.values(), y)
    assert list(ours) == list(expected)
    for term, value in ours.items():
        torch.testing.assert_close(value, expected[term], rtol=1e-13, atol=0)
        leaves = [row for row in z.values() if row.requires_grad]
        grads = [
            torch.autograd.grad(v, leaves, materialize_grads=True, retain_graph=True)
            for v in (value, expected[term])
        ]
        for actual, wanted in zip(*grads, strict=True):
            torch.testing.assert_close(actual, wanted, rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize(
    ("name", "views", "inner"),
    [
        pytest.param("natural", ("clean",), None, id="natural"),
        pytest.param(
            "at", ("adv",), PGD(loss="ce", start="uniform", bn="eval", last=True), id="at"
        ),
        pytest.param(
            "trades", ("clean", "adv"), PGD(loss="kl", start="gaussian", bn="eval"), id="trades"
        ),
        pytest.param("alp", ("adv", "clean"), PGD(loss="ce", start="uniform", bn="eval"), id="alp"),
        pytest.param(
            "mart", ("clean", "adv"), PGD(loss="ce", start="gaussian", bn="eval"), id="mart"
        ),
        pytest.param(
            "boosted",
            ("adv",),
            PGD(loss="boosted_ce", start="gaussian", bn="eval"),
            id="boosted",
        ),
        pytest.param("st", ("clean", "adv", "col"), Squeeze(start="gaussian", bn="train"), id="st"),
        pytest.param("ard", ("adv",), PGD(loss="ce", start="uniform", bn="train"), id="ard"),
        pytest.param(
            "rslad",
            ("adv", "clean"),
            PGD(loss="kl", start="gaussian", bn="eval", target="teacher"),
            id="rslad",
        ),
        pytest.param(
            "iad", ("adv", "clean"), PGD(loss="ce", start="uniform", bn="train"), id="iad"
        ),
        pytest.param(
            "act",
            ("adv",),
            PGD(loss="kl", start="gaussian", bn="eval", target="teacher"),
            id="act",
        ),
    ],
)
def test_views_and_attack_of_each_method(
    name: str, views: tuple[str, ...], inner: PGD | Squeeze | None
) -> None:
    objective = make_objective(name, {})
    assert objective.views == views
    assert objective.inner == inner


def test_attack_of_trades_climbs_kl_away_from_the_clean_prediction() -> None:
    clean, adv = logits(0), logits(1)
    expected = reference.kl(clean, adv)
    torch.testing.assert_close(ATTACK_LOSSES["kl"](adv, clean), expected, rtol=1e-12, atol=0)
    assert not torch.allclose(ATTACK_LOSSES["kl"](clean, adv), expected, rtol=0.01)


# logits at the end of float32


@pytest.mark.parametrize("size", [200.0, 1e4])
@pytest.mark.parametrize("name", ALL_METHODS)
def test_saturated_logits_are_finite_in_float32(name: str, size: float) -> None:
    """Clean and adversarial prediction certain and opposite, certain and equal, and undecided."""
    clean = size * torch.tensor([[1.0, -1, 0], [1, -1, 0], [0, 0, 0], [1, 0, -1], [-1, 1, 1]])
    adv = size * torch.tensor([[-1.0, 1, 0], [1, -1, 0], [1, 0, 0], [0, 0, 0], [1, -1, -1]])
    col = size * torch.tensor([[1.0, 0, -1], [0, -1, 1], [0, 1, 0], [1, -1, -1], [0, 1, -1]])
    y = torch.tensor([0, 1, 2, 0, 1])
    objective = make_objective(name, {})
    by_view = {"clean": clean, "adv": adv, "col": col}
    z = {v: by_view[v].clone().requires_grad_() for v in objective.views}
    # a teacher that is as sure of the opposite
    read = dict(zip(("teacher.clean", "teacher.adv"), (adv, clean), strict=True))
    both = z | {cell: read[cell] for cell in objective.reads}
    terms = objective.outer(both, y)
    exact = reference.OBJECTIVES[name](*(row.detach().double() for row in both.values()), y)
    for term, value in terms.items():
        assert value.isfinite()
        torch.testing.assert_close(value.double(), exact[term], rtol=1e-4, atol=1e-6)
    for grad in torch.autograd.grad(sum(terms.values()), list(z.values())):
        assert grad.isfinite().all()


@pytest.mark.parametrize("size", [200.0, 1e4])
def test_saturated_peers_teach_finitely_in_float32(size: float) -> None:
    rows = [[1.0, -1, 0], [-1, 1, 0], [0, 0, 1], [0, 0, 0]]
    z = {
        (k, view): (size * torch.tensor(rows[k + v :] + rows[: k + v])).requires_grad_()
        for k in range(3)
        for v, view in enumerate(("adv0", "adv1", "clean"))
    }
    cat = make_collaboration("cat", taught_on(["adv0", "adv1", "clean"]), None)
    guidance = [taught(z, torch.zeros(4, dtype=torch.int64))["kl"] for taught in cat.guidance]
    for k, view in enumerate(("adv0", "adv1", "clean")):
        others = [z[j, view].double() for j in range(3) if j != k]
        expected = 0.95 * reference.cat_guidance(z[k, view].double(), others)
        torch.testing.assert_close(guidance[k].double(), expected, rtol=1e-5, atol=0)
        (grad,) = torch.autograd.grad(guidance[k], z[k, view])
        assert grad.isfinite().all()


def test_published_constants_of_mart_survive_float32() -> None:
    """All probability on the label before and on another class after the attack.

    bce = 1e4 - log(1.0001 - 1), kl = 5 (1.0000001 - 1) 1e4 = 0.005; one float32 step next to 1 is
    1.2e-7, hence the tolerance of a quarter.
    """
    z = {"clean": torch.tensor([[1e4, 0.0]]), "adv": torch.tensor([[0.0, 1e4]])}
    terms = make_objective("mart", {}).outer(z, torch.tensor([0]))
    assert terms["bce"].item() - 1e4 == pytest.approx(-log(1e-4), rel=1e-3)
    assert terms["kl"].item() == pytest.approx(0.005, rel=0.25)


@pytest.mark.parametrize("gap", [5.0, 27.0, 40.0, 200.0])
def test_the_published_floor_of_mart_bounds_the_kl_alone(gap: float) -> None:
    """All of p on one class and q on another: log(1 + e^gap) ~ gap, with 1e-12 at most 27.6."""
    z = {"clean": torch.tensor([[60.0, 0, 0]]), "adv": torch.tensor([[0.0, gap, 0]])}
    y = torch.tensor([1])
    plain, floored = (
        make_objective("mart", settings).outer(z, y) for settings in ({}, {"floor": "1e-12"})
    )
    assert plain["bce"] == floored["bce"]
    kl = log(2 + exp(gap))
    assert plain["kl"].item() == pytest.approx(5 * kl, rel=1e-5)
    assert floored["kl"].item() == pytest.approx(-5 * log(exp(-kl) + 1e-12), rel=1e-5)
    assert floored["kl"] <= -5 * log(1e-12) + 1e-4


def test_the_published_floor_of_mart_has_finite_gradients() -> None:
    z = {
        view: (
            400 * torch.randn(8, 5, generator=torch.Generator().manual_seed(seed))
        ).requires_grad_()
        for seed, view in enumerate(("clean", "adv"))
    }
    terms = make_objective("mart", {"floor": "1e-12"}).outer(z, torch.arange(8) % 5)
    for grad in torch.autograd.grad(sum(terms.values()), list(z.values())):
        assert grad.isfinite().all()


# names and settings


def test_names_are_those_of_the_papers() -> None:
    assert sorted(METHODS) == sorted([*ALL_METHODS, "fast", "free", "pgd-cw", "teacher"])
    assert sorted(COLLABORATIONS) == ["cat", "mat", "mat-mp", "none"]


def test_settings_come_as_text() -> None:
    z, y = rows("trades"), labels()
    six, half = (
        make_objective("trades", settings).outer(z, y)["kl"] for settings in ({}, {"beta": "3"})
    )
    torch.testing.assert_close(six, 2 * half)
    at = make_objective("at", {"smoothing": "0.1"})
    assert at.outer == ce("adv", 0.1)


@pytest.mark.parametrize(
    ("name", "settings", "texts"),
    [
        pytest.param(
            "trades",
            {"beat": "6"},
            ["trades has no setting 'beat'", "trades takes beta=6.0"],
            id="unknown-setting",
        ),
        pytest.param(
            "natural",
            {"beta": "6"},
            ["natural has no setting 'beta'", "natural takes smoothing=0.0"],
            id="setting-of-another-method",
        ),
        pytest.param(
            "mart",
            {"beta": "six"},
            ["mart:beta=six is no float", "mart takes beta=5.0"],
            id="no-number",
        ),
        pytest.param("alp", {"weight": ""}, ["alp:weight= is no float"], id="empty"),
        pytest.param(
            "trades", {"beta": "-1"}, ["trades:beta=-1", "at least 0"], id="trades-negative"
        ),
        pytest.param("mart", {"beta": "nan"}, ["mart:beta=nan", "at least 0"], id="mart-nan"),
        pytest.param("mart", {"floor": "-1"}, ["mart:floor=-1", "as 1e-12, or 0"], id="mart-floor"),
        pytest.param(
            "alp", {"weight": "-0.5"}, ["alp:weight=-0.5", "at least 0"], id="alp-negative"
        ),
        pytest.param(
            "boosted", {"inner": "bce"}, ["unknown attack loss 'bce'", "mean 'ce'"], id="boosted"
        ),
        *(
            pytest.param(
                name,
                {"smoothing": value},
                [f"{name}:smoothing={value}", "[0, 1)"],
                id=f"{name}-{value}",
            )
            for name in ("natural", "at", "trades", "alp")
            for value in ("1", "-0.1", "nan")
        ),
        pytest.param("teacher", {}, ["teacher:weights: expected a weight file"], id="teacher"),
        pytest.param("at", {"bn": "evil"}, ["attack bn 'evil'", "mean 'eval'"], id="at-bn"),
        pytest.param("st", {"beta": "-1"}, ["st:beta=-1", "at least 0"], id="st-negative"),
        pytest.param("st", {"reg": "kl"}, ["st:reg=kl", "one of symmkl, js, l2"], id="st-reg"),
        pytest.param("st", {"start": "zero"}, ["nothing to tell upper and lower"], id="st-start"),
        pytest.param("st", {"bn": "on"}, ["unknown attack bn 'on'"], id="st-bn"),
        pytest.param("ard", {"alpha": "2"}, ["ard:alpha=2", "in [0, 1]"], id="ard-alpha"),
        pytest.param("ard", {"temperature": "0"}, ["temperature is 0, expected"], id="ard-t"),
        pytest.param("rslad", {"alpha": "nan"}, ["rslad:alpha=nan"], id="rslad-alpha"),
        pytest.param("rslad", {"scale": "0"}, ["rslad:scale=0", "above 0"], id="rslad-scale"),
        pytest.param("iad", {"begin": "-1"}, ["iad:begin=-1", "at least 0"], id="iad-begin"),
        pytest.param("iad", {"begin": "1.5"}, ["iad:begin=1.5 is no int"], id="iad-begin-half"),
        pytest.param("act", {"role": "both"}, ["natural or robust"], id="act-role"),
        pytest.param("tradse", {}, ["unknown method 'tradse': did you mean 'trades'?"], id="typo"),
        pytest.param(
            "zzz", {}, ["unknown method 'zzz': known are act, alp, ard, at"], id="nothing-near"
        ),
    ],
)
def test_settings_that_mean_nothing_are_refused(
    name: str, settings: dict[str, str], texts: list[str]
) -> None:
    with pytest.raises(InputError) as caught:
        make_objective(name, settings)
    for text in texts:
        assert text in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
