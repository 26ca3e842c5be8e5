"""The average of weights over epochs: what it is, and that training does not notice it."""

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import fastcat.runs.trainer
import fastcat.runs.validate
from fastcat.cli import main
from fastcat.config.train import TrainConfig
from fastcat.evaluation import evaluate
from fastcat.runs.checkpoint import read_checkpoint, save_checkpoint
from fastcat.runs.trainer import Trainer
from fastcat.step.sgd import FlatSGD
from fastcat.step.swa import WeightAverage, recompute_statistics
from fastcat.stop import Stopped
from fastcat.weights.file import load_weights
from tests.harness import tiny
from tests.harness.comparison import SWA_TOLERANCE, assert_close
from tests.harness.runs import SMALL, assert_same_end, flat_tensors
from tests.reference.swa import statistics

RUN = [*SMALL, "--peers", "at,natural", "--epochs", "4", "--select-on", "last", "--val-size", "30"]


@pytest.fixture(autouse=True)
def _workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.register()
    monkeypatch.chdir(tmp_path)


def double_net() -> tiny.Tiny:
    torch.manual_seed(0)
    net = tiny.Tiny(10, 3).double()
    for name, tensor in net.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand_like(tensor) + ("running" in name))
    return net


@pytest.mark.measured("float64", "swa")
def test_statistics_are_the_mean_over_images_of_what_the_layers_see() -> None:
    """In float64, with a ragged batch. Catches statistics that decay, or that are the old ones,
    and a batch of a few images that weighs as much as a full one.
    """
    net = double_net().train()
    net.bn1.momentum = 0.01
    batches = [torch.rand(n, 3, 6, 6, dtype=torch.float64) for n in (5, 5, 2)]
    random_state = torch.get_rng_state()
    recompute_statistics(net, batches)
    for name, expected in statistics(net, batches).items():
        assert_close(net.get_buffer(name), expected, SWA_TOLERANCE, name)
    assert net.bn1.momentum == 0.01
    assert all(module.training for module in net.modules())
    assert torch.equal(torch.get_rng_state(), random_state)


@pytest.mark.slow
@pytest.mark.measured("float64", "swa")
def test_the_average_weighs_every_epoch_alike_and_leaves_the_weights_alone() -> None:
    net = double_net()
    optimizer = FlatSGD(net, lr=0.1, momentum=0.9, weight_decay=0.0, nesterov=False)
    swa = WeightAverage(net, optimizer.flat)
    batches = [torch.rand(4, 3, 6, 6, dtype=torch.float64) for _ in range(2)]
    seen = []
    for _ in range(5):
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.normal_()
        before = copy.deepcopy(net.state_dict())
        swa.add(batches)
        assert all(torch.equal(t, before[name]) for name, t in net.state_dict().items())
        seen.append({name: p.detach().clone() for name, p in net.named_parameters()})
    with swa.in_place():
        for name, parameter in net.named_parameters():
            expected = torch.stack([weights[name] for weights in seen]).mean(0)
            assert_close(parameter.detach(), expected, SWA_TOLERANCE, name)
        for name, expected in statistics(net, batches).items():
            assert_close(net.get_buffer(name), expected, SWA_TOLERANCE, name)
    assert all(torch.equal(t, before[name]) for name, t in net.state_dict().items())


@pytest.mark.slow
def test_a_run_judges_and_keeps_the_average_and_trains_as_without(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ends: list[torch.Tensor] = []

    def watched(run: Path, state: dict[str, Any], good: bool = False) -> None:
        save_checkpoint(run, state, good)
        if state["epoch"] >= 2:
            ends.append(state["peers"][0]["model"]["conv2.weight"].clone())

    assert main(["train", *RUN, "--swa", "2", "--out", "run"]) == 0
    monkeypatch.setattr(fastcat.runs.trainer, "save_checkpoint", watched)
    assert main(["train", *RUN, "--out", "plain"]) == 0
    state, plain = (
        read_checkpoint(Path(run, "checkpoints", "last.pt")) for run in ("run", "plain")
    )
    tensors = flat_tensors(state)
    assert all(torch.equal(tensors[path], t) for path, t in flat_tensors(plain).items())
    kept, _ = load_weights(Path("run/peers/0-at.last.safetensors"))
    assert len(ends) == 3
    torch.testing.assert_close(kept.conv2.weight.detach(), torch.stack(ends).mean(0))

    trainer = Trainer(TrainConfig.from_dict(state["config"]))
    batches = [batch.x for batch in trainer.loader.epoch(3)]
    for name, expected in statistics(kept, batches).items():
        torch.testing.assert_close(kept.get_buffer(name), expected, rtol=1e-4, atol=1e-5)
    assert trainer.validation.monitor is not None
    threat = replace(trainer.config.threat_models()[0], restarts=1)
    report = evaluate(kept, trainer.validation.monitor, "clean,fgsm,pgd2", threat)
    record = json.loads(Path("run/metrics.jsonl").read_text().splitlines()[-1])
    entry = record["peers"]["0-at"]
    assert entry["accuracy"] == {a: report.accuracy(a) for a in ("clean", "fgsm", "pgd2")}
    with torch.no_grad():
        answers = [int(n) for b in trainer.validation.monitor for n in kept(b.x).argmax(1)]
    name, share = entry["commonest"]["class"], entry["commonest"]["share"]
    assert share == max(answers.count(n) for n in range(10)) / 30
    assert share == answers.count(trainer.dataset.classes.index(name)) / 30


@pytest.mark.slow
def test_a_stop_while_the_average_is_judged_counts_no_epoch_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = [*RUN, "--swa", "2", "--out"]
    assert main(["train", *run, "whole"]) == 0
    measure, calls = fastcat.runs.validate.Validation.measure, []

    def stopped(
        validation: fastcat.runs.validate.Validation, k: int, request: Any
    ) -> dict[str, Any]:
        calls.append(k)
        if len(calls) == 6:
            raise Stopped(15)
        return measure(validation, k, request)

    with monkeypatch.context() as patched:
        patched.setattr(fastcat.runs.validate.Validation, "measure", stopped)
        assert main(["train", *run, "run"]) == 128 + 15
    state = read_checkpoint(Path("run/checkpoints/last.pt"))
    assert (state["epoch"], state["peers"][0]["swa"]["count"]) == (2, 2)
    assert main(["resume", "run"]) == 0
    assert_same_end(Path("run"), Path("whole"))
