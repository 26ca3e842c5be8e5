"""All losses of the table at once against autograd through each objective and guidance alone."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from fastcat.attacks.pgd import PGD
from fastcat.attacks.threat import ThreatModel, Threats
from fastcat.batch import by_share
from fastcat.errors import InputError
from fastcat.kernels import losses
from fastcat.objective import Objective, own_views, view_name
from fastcat.objectives import make_objective
from fastcat.step.blueprint import make_blueprint
from fastcat.step.table_loss import TableLoss
from fastcat.terms import Sum, ce, kl
from tests.harness.teams import team_of

B, C = 9, 6
CPU = torch.device("cpu")

OWN = Objective(
    views=("clean", "adv"),
    inner=PGD(),
    outer=lambda z, y: {
        "bent": (z["clean"] * z["adv"]).square().mean().sqrt(),
        "ce": 0.5 * losses.ce(z["adv"], y).mean() ** 2,
    },
)
# forwards clean images, say for BatchNorm's statistics, and reads none of their logits
BLIND = Objective(
    views=("clean", "adv"),
    inner=PGD(),
    outer=lambda z, y: {"margin": losses.margin(z["adv"], y).mean()},
)
TWICE = Objective(
    views=("adv",), inner=PGD(), outer=ce("adv") + 2.0 * ce("adv") + ce("adv").named("more")
)
SMOOTHED = make_objective("trades", {"smoothing": "0.1"})
DISTILLED = Objective(
    views=("clean", "adv"),
    inner=PGD(),
    outer=ce("clean") + 16.0 * kl("clean", "adv", constant="teacher", temperature=4.0),
)

TEAMS: dict[str, Sequence[str | Objective]] = {
    **{name: [name] for name in ("natural", "at", "trades", "alp", "mart", "boosted", "st")},
    "own": [OWN],
    "blind": [BLIND],
    "twice": [TWICE],
    "smoothed+distilled": [SMOOTHED, DISTILLED],
    "trades+alp": ["trades", "alp"],
    "natural+trades": ["natural", "trades"],
    "natural+natural": ["natural", "natural"],
    "mart+mart": ["mart", "mart"],
    "own+trades": [OWN, "trades"],
    "boosted+boosted": ["boosted", "boosted"],
    "own+own": [OWN, OWN],
    "at+blind": ["at", BLIND],
    "trades+alp+mart": ["trades", "alp", "mart"],
    "natural+own+trades+natural": ["natural", OWN, "trades", "natural"],
}
PARAMS = [
    pytest.param(methods, collab, id=f"{name}-{collab}")
    for name, methods in TEAMS.items()
    for collab in ("cat", "cat:own_first=true", "mat", "mat:detach=false", "none")
    if len(methods) > 2 or ":" not in collab
]


MIXABLE = [
    param for param in PARAMS if not any(method in (OWN, BLIND, "st") for method in param.values[0])
]


class Losses:
    """The losses of a team, and the same written with autograd, term by term."""

    def __init__(
        self,
        methods: Sequence[str | Objective],
        collab: str,
        dtype: torch.dtype,
        mixed: bool = False,
    ) -> None:
        self.objectives = [make_objective(m, {}) if isinstance(m, str) else m for m in methods]
        self.names = [f"{k}-peer" for k in range(len(methods))]
        self.blueprint = make_blueprint(
            self.objectives,
            [Threats((ThreatModel(),))] * len(methods),
            [True] * len(methods),
            collab=collab,
            alpha=None if collab == "none" else 0.3,
        )
        self.collaboration = self.blueprint.collaboration
        self.loss = TableLoss(self.blueprint, self.names, C, CPU, dtype, mixed)

    def measured(
        self,
        table: Tensor,
        y: Tensor,
        scale: Callable[[Tensor], Tensor] = lambda w: w,
        **mixing: Tensor,
    ) -> tuple[dict[str, Tensor], Tensor]:
        values, dz = self.loss(table, y, scale, **mixing)
        return dict(zip(self.loss.names, values, strict=True)), dz

    def expected(self, table: Tensor, y: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        leaves = [row.clone().requires_grad_() for row in table]
        z = {cell.place: leaf for cell, leaf in zip(self.blueprint.cells, leaves, strict=True)}
        values: dict[str, Tensor] = {}
        for k, (peer, objective) in enumerate(zip(self.names, self.objectives, strict=True)):
            row = {view: z[k, view_name(k, view)] for view in objective.views}
            terms = objective.outer(row, y)
            values |= {f"{peer}/{name}": term for name, term in terms.items()}
            total = self.collaboration.objective_weights[k] * sum(terms.values())
            if self.collaboration.guidance[k].terms:
                guidance = sum(self.collaboration.guidance[k](z, y).values())
                values[f"{peer}/guidance"] = guidance
                total = total + guidance
            values[f"{peer}/loss"] = total
            hits = z[k, own_views(k, objective)[0]].argmax(1) == y
            values[f"{peer}/accuracy"] = hits.to(table.dtype).mean()
        everything = sum(values[f"{peer}/loss"] for peer in self.names)
        grads = torch.autograd.grad(everything, leaves, materialize_grads=True)
        return {name: value.detach() for name, value in values.items()}, torch.stack(grads)


def table_of(team: Losses, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    table = 2 * torch.randn(
        len(team.blueprint.cells), B, C, generator=generator, dtype=torch.float64
    )
    return table.to(dtype), torch.randint(C, (B,), generator=generator)


def mixing_of() -> tuple[Tensor, Tensor]:
    """Labels mixed in and shares, among them 0 and 1."""
    generator = torch.Generator().manual_seed(4)
    share = torch.rand(B, generator=generator)
    share[:2] = torch.arange(2)
    return torch.randint(C, (B,), generator=generator), share


@pytest.mark.parametrize(("methods", "collab"), PARAMS)
def test_values_and_gradients_equal_autograd(
    methods: Sequence[str | Objective], collab: str
) -> None:
    """Catches a term in the wrong cell, a weight left out, alpha on the guidance, a missing 1/B."""
    team = Losses(methods, collab, torch.float64)
    table, y = table_of(team)
    values, dz = team.measured(table, y)
    expected, grads = team.expected(table, y)
    assert values.keys() == expected.keys()
    assert len(set(team.loss.names)) == len(team.loss.names)
    for name, value in expected.items():
        torch.testing.assert_close(values[name], value, rtol=1e-12, atol=1e-14)
        assert not values[name].requires_grad
    torch.testing.assert_close(dz, grads, rtol=1e-11, atol=1e-15)
    for cell, grad in zip(team.blueprint.cells, dz, strict=True):
        assert cell.grad or not grad.any(), f"a teacher learns: {cell}"


@pytest.mark.parametrize("factor", [64.0, 1 / 8])
@pytest.mark.parametrize(("methods", "collab"), PARAMS)
def test_the_scale_is_on_the_gradient_alone(
    methods: Sequence[str | Objective], collab: str, factor: float
) -> None:
    """A power of two, so equal to the bit. Catches a scale twice, on one part, or in the record."""
    team = Losses(methods, collab, torch.float64)
    table, y = table_of(team)
    values, dz = team.measured(table, y)
    scaled_values, scaled_dz = team.measured(table, y, lambda weight: factor * weight)
    assert all(torch.equal(scaled_values[name], value) for name, value in values.items())
    assert torch.equal(scaled_dz, factor * dz)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("methods", "collab"), PARAMS)
def test_logits_in_half_precision_are_judged_in_float32(
    methods: Sequence[str | Objective], collab: str, dtype: torch.dtype
) -> None:
    """Of the same rounded logits. Catches a loss or an average in half precision."""
    team = Losses(methods, collab, torch.float32)
    table, y = table_of(team, dtype)
    values, dz = team.measured(table, y)
    expected, grads = team.expected(table.double(), y)
    assert dz.dtype == dtype
    for name, value in expected.items():
        assert values[name].dtype == torch.float32
        torch.testing.assert_close(values[name].double(), value, rtol=1e-5, atol=1e-6)
    # half a step of the type for each sum in the gradient
    torch.testing.assert_close(
        dz.double(), grads, rtol=2 * torch.finfo(dtype).eps, atol=torch.finfo(dtype).eps / 50
    )


@pytest.mark.parametrize(("methods", "collab"), MIXABLE)
def test_mixed_images_weigh_two_labels_image_by_image(
    methods: Sequence[str | Objective], collab: str
) -> None:
    """Every image alone with either label, averaged. Catches shares of another image, labels
    exchanged, and a term without labels that is counted twice.
    """
    team = Losses(methods, collab, torch.float64, mixed=True)
    table, y = table_of(team)
    y_mixed, share = mixing_of()
    values, dz = team.measured(table, y, y_mixed=y_mixed, share=share)
    expected: dict[str, Tensor] = {}
    grads = torch.zeros_like(table)
    for i in range(B):
        own = share[i].double()
        for weight, label in ((own, y[i]), (1 - own, y_mixed[i])):
            alone, grad = team.expected(table[:, i : i + 1], label[None])
            grads[:, i] += weight * grad[:, 0] / B
            for name, value in alone.items():
                expected[name] = expected.get(name, 0) + weight * value / B
    assert values.keys() == expected.keys()
    for name, value in expected.items():
        if not name.endswith("/accuracy"):
            torch.testing.assert_close(values[name], value, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(dz, grads, rtol=1e-11, atol=1e-15)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("methods", "collab"), MIXABLE)
def test_an_image_all_its_own_is_a_plain_one(
    methods: Sequence[str | Objective], collab: str, dtype: torch.dtype
) -> None:
    """To the bit, and so are one mixed with another of its class, and one that is all the other."""
    team = Losses(methods, collab, torch.float32, mixed=True)
    table, y = table_of(team, dtype)
    y_mixed, share = mixing_of()
    plain, dz = team.measured(table, y)
    for mixing in (
        {"y_mixed": y_mixed, "share": torch.ones(B)},
        {"y_mixed": y, "share": share},
    ):
        values, mixed_dz = team.measured(table, y, **mixing)
        assert all(torch.equal(values[name], value) for name, value in plain.items())
        assert mixed_dz.dtype == dtype
        assert torch.equal(mixed_dz, dz)
    _, swapped = team.measured(table, y_mixed, y_mixed=y, share=torch.zeros(B))
    assert torch.equal(swapped, dz)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_mixing_in_half_precision_rounds_once(dtype: torch.dtype) -> None:
    """Catches shares of 8 bits, which would not add up to those of the reported loss."""
    generator = torch.Generator().manual_seed(5)
    own, other = torch.randn(2, 4, B, C, generator=generator).to(dtype)
    share = torch.rand(B, 1, generator=generator)
    exact = share.double() * own.double() + (1 - share.double()) * other.double()
    assert torch.equal(by_share(own, other, share), exact.to(dtype))


def test_a_loss_that_cannot_be_mixed_is_refused() -> None:
    with pytest.raises(InputError, match=r"1-own cannot train on mixed images.*fastcat\.terms"):
        team_of(["trades", OWN], mixed=True)


def test_accuracy_counts_the_label_with_the_larger_share() -> None:
    team = Losses(["natural"], "none", torch.float64, mixed=True)
    y, y_mixed = torch.zeros(B, dtype=torch.int64), torch.ones(B, dtype=torch.int64)
    share = torch.tensor([1.0, 0.9, 0.51, 0.49, 0.4, 0.3, 0.2, 0.1, 0.0])
    for label, hits in ((0, 3), (1, 6), (2, 0)):
        table = torch.zeros(1, B, C, dtype=torch.float64)
        table[..., label] = 5.0
        values, _ = team.measured(table, y, y_mixed=y_mixed, share=share)
        assert values["0-peer/accuracy"].item() == pytest.approx(hits / B)


def test_accuracy_is_that_on_the_view_on_which_the_peer_is_tested() -> None:
    """The adversarial one, where there is one; every cell has another accuracy here."""
    team = Losses(["alp", "natural", "trades"], "cat", torch.float64)
    _, y = table_of(team)
    table = torch.zeros(len(team.blueprint.cells), B, C, dtype=torch.float64)
    for n in range(len(team.blueprint.cells)):
        right = torch.arange(B) < n
        table[n].scatter_(1, torch.where(right, y, (y + 1) % C)[:, None], 5.0)
    values, _ = team.measured(table, y)
    places = [cell.place for cell in team.blueprint.cells]
    for k, view in enumerate(("adv0", "clean", "adv2")):
        n = places.index((k, view))
        assert values[f"{k}-peer/accuracy"].item() == pytest.approx(n / B)


def test_a_value_that_is_not_finite_spoils_no_other() -> None:
    """The run says which term of which peer failed. Catches 0 times infinity in a sum."""
    team = Losses(["at", "trades", OWN], "none", torch.float64)
    table, y = table_of(team)
    finite, _ = team.measured(table, y)
    table[[cell.place for cell in team.blueprint.cells].index((1, "clean"))] = torch.nan
    values, dz = team.measured(table, y)
    for name, value in values.items():
        if name in ("1-peer/ce", "1-peer/kl", "1-peer/loss"):
            assert value.isnan()
        else:
            assert torch.equal(value, finite[name]), name
    assert [bool(grad.isfinite().all()) for grad in dz] == [
        c.peer != 1 for c in team.blueprint.cells
    ]


def test_the_outer_of_a_method_under_no_grad() -> None:
    """Steps may run under no_grad; a method of one's own is differentiated all the same."""
    team = Losses([OWN, "trades"], "cat", torch.float64)
    table, y = table_of(team)
    _, dz = team.measured(table, y)
    with torch.no_grad():
        assert torch.equal(team.measured(table, y)[1], dz)
    assert not table.requires_grad


def test_sums_are_sums() -> None:
    """Catches a factor that is lost on the way from `2.0 * (a + b)` to the terms."""
    generator = torch.Generator().manual_seed(0)
    z = {"adv": torch.randn(B, C, generator=generator, dtype=torch.float64)}
    y = torch.randint(C, (B,), generator=generator)
    one = ce("adv")
    value = one(z, y)["ce"]
    torch.testing.assert_close(value, losses.ce(z["adv"], y).mean())
    torch.testing.assert_close((3.0 * (one + 2.0 * one))(z, y), {"ce": 9 * value})
    torch.testing.assert_close(
        (one + 0.5 * one.named("half"))(z, y), {"ce": value, "half": 0.5 * value}
    )
    assert (one + one).cells == ("adv",)
    assert Sum().cells == ()
