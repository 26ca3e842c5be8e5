"""The logit table: each cell once, in the method's order, and none that nobody reads."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from fastcat.attacks.threat import ThreatModel, Threats
from fastcat.collaboration import Collaboration
from fastcat.objective import own_views, view_name
from fastcat.objectives import make_objective
from fastcat.step.algorithm import forward
from fastcat.step.blueprint import make_blueprint
from fastcat.step.cells import Cell
from tests.harness.networks import CLASSES, images
from tests.harness.teams import team_of


def cells(text: str) -> tuple[Cell, ...]:
    """ "0:clean,adv0,(adv1) 1:adv1" -> the cells; those in brackets have no gradient."""
    found = []
    for row in text.split():
        peer, _, views = row.partition(":")
        found += [
            Cell(int(peer), v.strip("()"), not v.startswith("("), not v.startswith("col"))
            for v in views.split(",")
        ]
    return tuple(found)


def plan_of(methods: Sequence[str], collab: str) -> tuple[tuple[Cell, ...], Collaboration]:
    objectives = [make_objective(name, {}) for name in methods]
    threats = [Threats((ThreatModel(),))] * len(objectives)
    learns = [True] * len(objectives)
    blueprint = make_blueprint(objectives, threats, learns, collab=collab, alpha=None)
    return blueprint.cells, blueprint.collaboration


CASES = [
    ("natural", "cat", "0:clean"),
    ("at", "cat", "0:adv0"),
    ("trades", "cat", "0:clean,adv0"),
    ("alp", "cat", "0:adv0,clean"),
    ("mart", "cat", "0:clean,adv0"),
    ("trades alp", "cat", "0:clean,adv0,(adv1) 1:adv1,clean,(adv0)"),
    ("at trades", "cat", "0:adv0,(adv1) 1:clean,adv1,(adv0)"),
    ("natural trades", "cat", "0:clean,(adv1) 1:clean,adv1"),
    ("trades trades", "cat", "0:clean,adv0,(adv1) 1:clean,adv1,(adv0)"),
    ("natural natural", "cat", "0:clean 1:clean"),
    ("natural at", "cat", "0:clean,(adv1) 1:adv1,(clean)"),
    ("at alp trades", "cat",
     "0:adv0,(adv1),(adv2) 1:adv1,clean,(adv0),(adv2) 2:clean,adv2,(adv0),(adv1)"),
    ("mart alp natural", "cat",
     "0:clean,adv0,(adv1) 1:adv1,clean,(adv0) 2:clean,(adv0),(adv1)"),
    ("natural at natural", "cat", "0:clean,(adv1) 1:adv1,(clean) 2:clean,(adv1)"),
    ("boosted", "mat", "0:adv0"),
    ("boosted boosted", "mat", "0:adv0,(clean) 1:adv1,(clean)"),
    ("natural boosted", "mat", "0:clean 1:adv1,(clean)"),
    ("boosted trades alp", "mat", "0:adv0,(clean) 1:clean,adv1 2:adv2,clean"),
    ("boosted boosted", "mat:detach=false", "0:adv0,clean 1:adv1,clean"),
    ("natural boosted at", "mat:detach=false", "0:clean 1:adv1,clean 2:adv2,clean"),
    ("at trades", "cat:own_first=true", "0:adv0,(adv1) 1:clean,adv1,(adv0)"),
    ("st", "cat", "0:clean,adv0,col0"),
    ("st alp", "cat", "0:clean,adv0,col0,(adv1) 1:adv1,clean,(adv0)"),
    ("at st", "none", "0:adv0 1:clean,adv1,col1"),
    ("trades alp", "none", "0:clean,adv0 1:adv1,clean"),
    ("natural at alp", "none", "0:clean 1:adv1 2:adv2,clean"),
]  # fmt: skip
PARAMS = [
    pytest.param(methods.split(), collab, cells(text), id=f"{methods.replace(' ', '+')}-{collab}")
    for methods, collab, text in CASES
]


@pytest.mark.parametrize(("methods", "collab", "expected"), PARAMS)
def test_cells_in_order(methods: list[str], collab: str, expected: tuple[Cell, ...]) -> None:
    plan, _ = plan_of(methods, collab)
    assert plan == expected == team_of(methods, collab=collab).blueprint.cells
    assert len({(cell.peer, cell.view) for cell in plan}) == len(plan)


@pytest.mark.parametrize(("methods", "collab", "expected"), PARAMS)
def test_every_cell_is_read_and_gets_gradient_only_where_planned(
    methods: list[str], collab: str, expected: tuple[Cell, ...]
) -> None:
    """Catches a cell that is forwarded for nobody, and a teacher that learns."""
    team = team_of(methods, collab=collab)
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(len(expected), 7, CLASSES, generator=generator)
    y = torch.arange(7) % CLASSES
    values, dz = team.loss(table, y, lambda weight: weight)
    totals = [f"{peer.name}/loss" for peer in team.peers]
    measured = dict(zip(team.loss.names, values, strict=True))
    for n, cell in enumerate(expected):
        # other logits in a cell move the totals of those who read it
        touched = table.clone()
        touched[n] += torch.randn(7, CLASSES, generator=generator)
        others = dict(zip(team.loss.names, team.loss(touched, y, lambda w: w)[0], strict=True))
        readers = {k for k, name in enumerate(totals) if others[name] != measured[name]}
        assert readers
        # what is not detached learns what its readers want of it
        assert (cell.peer in readers or collab == "mat:detach=false") == cell.grad
        assert dz[n].any() == cell.grad, cell


@pytest.mark.parametrize(("methods", "collab", "expected"), PARAMS)
def test_forward_fills_the_table_in_the_order_of_the_plan(
    methods: list[str], collab: str, expected: tuple[Cell, ...]
) -> None:
    """One train-mode forward a cell and no more: each moves BatchNorm's statistics once."""
    team = team_of(methods, collab=collab)
    views = {"clean": images(0, 6)[0]}
    views |= {f"adv{k}": images(k + 1, 6)[0] for k in range(len(methods))}
    views |= {f"col{k}": images(k + 11, 6)[0] for k in range(len(methods))}
    forwarded: list[tuple[int, str]] = []

    def watch(k: int, net: nn.Module) -> None:
        def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            (view,) = [name for name, x in views.items() if torch.equal(x, args[0])]
            assert net.training
            forwarded.append((k, view))

        net.register_forward_pre_hook(hook)

    for k, peer in enumerate(team.peers):
        watch(k, peer.model)
    z = forward(team, views)
    assert forwarded == list(z) == [(cell.peer, cell.view) for cell in expected]
    assert torch.is_grad_enabled()
    for cell in expected:
        logits = z[cell.peer, cell.view]
        assert logits.shape == (6, CLASSES)
        assert logits.requires_grad == cell.grad
    for k, peer in enumerate(team.peers):
        rows = [cell for cell in expected if cell.peer == k and cell.tracked]
        assert all(module.training for module in peer.model.modules())
        assert peer.model.get_submodule("bn1").track_running_stats
        assert peer.model.state_dict()["bn1.num_batches_tracked"] == len(rows)


def test_views_are_named_after_their_peer() -> None:
    assert [view_name(3, view) for view in ("clean", "adv", "col")] == ["clean", "adv3", "col3"]
    names = [own_views(2, make_objective(name, {})) for name in ("natural", "at", "trades", "st")]
    assert names == [("clean",), ("adv2",), ("adv2",), ("adv2",)]
