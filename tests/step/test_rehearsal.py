"""Whatever stops an engine before its first step is undone, and the step is taken without it."""

import pytest
import torch
from torch import Tensor, nn

from fastcat.attacks.frozen import Frozen
from fastcat.precision import make_precision
from fastcat.step.team import Team
from tests.harness.comparison import assert_same
from tests.harness.engines import Interrupted, engine_of, run, stand_in, state_of
from tests.harness.networks import tiny_net
from tests.harness.teams import team_of

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")


class Dropping(nn.Module):
    """It draws from torch's global generator in every train-mode forward."""

    def __init__(self, k: int) -> None:
        super().__init__()
        self.net = tiny_net(k)
        self.dropout = nn.Dropout(0.2)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(self.dropout(x))


def dropping_team(precision: str) -> Team:
    nets = [Dropping(k) for k in range(2)]
    arithmetic = make_precision(precision, CPU)
    team = team_of(["trades", "alp"], nets, precision=arithmetic, ema=0.9)
    if precision == "fp16":
        # low enough for a first step that is taken
        team.scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    return team


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("moment", ["never", "forward", "backward"])
def test_a_rehearsal_leaves_no_trace_also_when_it_fails(
    moment: str, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit by bit: weights, BatchNorm, momentum, average, totals, random state, loss scale.

    Catches any of them left out, and an optimizer that the scaler believes has stepped already.
    """
    torch.manual_seed(5)
    engine, said = engine_of(dropping_team(precision))
    expected = [run(engine, step) for step in range(3)]
    end, totals = state_of(engine.team), engine.totals.clone()

    monkeypatch.setattr(torch, "compile", stand_in(moment))
    monkeypatch.setattr(Frozen, "compile", lambda self: None)
    torch.manual_seed(5)
    rehearsed, said = engine_of(dropping_team(precision), "compile")
    values = [run(rehearsed, step) for step in range(3)]
    assert all(map(torch.equal, values, expected))
    assert torch.equal(rehearsed.totals, totals)
    assert_same(end, state_of(rehearsed.team))
    if moment == "never":
        assert (rehearsed.name, said) == ("compile", [])
    else:
        assert rehearsed.name == "eager"
        assert said == [f"no compile engine, going on with eager: no {moment}"]
        assert all(peer.forward is peer.model for peer in rehearsed.team.peers)


def test_an_interrupted_rehearsal_leaves_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal may come in the minute that compiling takes, and then all is saved."""
    team = dropping_team("fp32")
    before = state_of(team)
    monkeypatch.setattr(torch, "compile", stand_in("interrupted"))
    monkeypatch.setattr(Frozen, "compile", lambda self: None)
    engine, said = engine_of(team, "compile")
    with pytest.raises(Interrupted):
        run(engine, 0)
    assert_same(before, state_of(team))
    assert not engine.totals.any()
    assert not said
