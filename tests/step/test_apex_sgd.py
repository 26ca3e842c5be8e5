"""`--sgd apex`, with a stub that has apex's names and signatures and computes by torch."""

import importlib
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fastcat.attacks.frozen import Frozen
from fastcat.cli import main
from fastcat.errors import InputError
from fastcat.precision import make_precision
from fastcat.step.apex_sgd import ApexSGD, why_no_apex
from fastcat.step.plan import choices_for
from fastcat.step.sgd import FlatSGD
from tests.harness.networks import images, tiny_net
from tests.harness.teams import team_of

STUB = {
    "amp_C.py": "",
    "apex/__init__.py": "",
    "apex/multi_tensor_apply/__init__.py": "",
    "apex/contrib/__init__.py": "",
    # called with float16 alone, and one number each for padding and stride
    "apex/contrib/conv_bias_relu.py": """
import torch

calls = []

def ConvBiasReLU(x, weight, bias, padding, stride):
    assert x.dtype == torch.float16 and bias.shape == (1, len(weight), 1, 1)
    calls.append((padding, stride))
    return (torch.conv2d(x, weight, None, stride, padding) + bias).relu()
""",
    # as in NVIDIA's: rates are floats, and a momentum buffer that is there is used
    "apex/optimizers/__init__.py": """
import torch

class FusedSGD(torch.optim.Optimizer):
    def __init__(self, params, lr, momentum=0, dampening=0, weight_decay=0, nesterov=False,
                 wd_after_momentum=False):
        defaults = dict(lr=lr, momentum=momentum, dampening=dampening,
                        weight_decay=weight_decay, nesterov=nesterov)
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            assert isinstance(group["lr"], float) and isinstance(group["momentum"], float)
            for p in group["params"]:
                g = p.grad + group["weight_decay"] * p
                buffer = self.state[p]["momentum_buffer"]
                buffer.mul_(group["momentum"]).add_(g)
                g = g + group["momentum"] * buffer if group["nesterov"] else buffer
                p.sub_(group["lr"] * g)
""",
}


def forget_apex() -> None:
    for name in [name for name in sys.modules if name.split(".")[0] in ("apex", "amp_C")]:
        del sys.modules[name]
    importlib.invalidate_caches()


@pytest.fixture
def stub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, text in STUB.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    forget_apex()
    yield tmp_path
    forget_apex()


def trained(kind: type[FlatSGD], nesterov: bool, norm_decay: bool) -> list[Tensor]:
    """Weights, momentum and average after steps whose rate and momentum change."""
    net = tiny_net(0).double()
    optimizer = kind(
        net, lr=0.1, momentum=0.9, weight_decay=0.01, nesterov=nesterov, norm_decay=norm_decay,
        ema=0.9,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    for lr, momentum in ((0.1, 0.9), (0.02, 0.9), (0.3, 0.5)):
        optimizer.set_lr(lr)
        optimizer.set_momentum(momentum)
        for parameter in net.parameters():
            parameter.grad = torch.randn(parameter.shape, dtype=torch.float64, generator=generator)
        optimizer.gather()
        optimizer.step()
    return [*(p.detach() for p in net.parameters()), *optimizer.tensors().values()]


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("norm_decay", [False, True])
def test_it_updates_as_our_kernel_does(stub: Path, nesterov: bool, norm_decay: bool) -> None:
    """Catches a rate that stays, momentum of apex's own, decay of what is spared, no average."""
    ours, theirs = (trained(kind, nesterov, norm_decay) for kind in (FlatSGD, ApexSGD))
    for expected, found in zip(ours, theirs, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


def test_its_convolution_joins_the_candidates_in_float16(stub: Path) -> None:
    for name, has_apex in (("fp16", True), ("bf16", False)):
        team = team_of(["trades"], precision=make_precision(name, torch.device("cpu")))
        assert ("apex" in choices_for(team)["epilogue"]) == has_apex
    x = images(0, 4)[0]
    twin = Frozen(tiny_net(0).eval(), torch.float16, x)
    assert twin.use("apex")
    expected = twin(x.half())
    calls = importlib.import_module("apex.contrib.conv_bias_relu").calls
    assert set(calls) == {(1, 1), (1, 2)}
    assert twin.use("torch")
    torch.testing.assert_close(twin(x.half()), expected, rtol=1e-2, atol=1e-2)


def test_without_apex_its_convolution_is_refused() -> None:
    twin = Frozen(tiny_net(0).eval(), torch.float16, images(0, 4)[0])
    assert not twin.use("apex")
    assert twin.epilogue == "torch"


def test_why_it_cannot_be_used(stub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert why_no_apex() is None
    (stub / "amp_C.py").unlink()
    forget_apex()
    assert "without its CUDA extensions" in str(why_no_apex())
    # PyPI's package of that name
    (stub / "apex" / "multi_tensor_apply" / "__init__.py").unlink()
    (stub / "apex" / "multi_tensor_apply").rmdir()
    forget_apex()
    assert "not NVIDIA's" in str(why_no_apex())
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path != str(stub)])
    forget_apex()
    assert "not installed" in str(why_no_apex())
    with pytest.raises(InputError, match="--sgd apex: apex is not installed: pip install"):
        trained(ApexSGD, False, True)


def test_on_a_cpu_it_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--data", "digits", "--eps", "0.1", "--sgd", "apex"]) == 2
    assert "--sgd apex is for GPUs, and this is cpu: leave it out" in capsys.readouterr().err


def test_doctor_says_whether_it_is_there(capsys: pytest.CaptureFixture[str], stub: Path) -> None:
    main(["doctor"])
    assert "--sgd apex: NVIDIA's apex is there" in capsys.readouterr().out
