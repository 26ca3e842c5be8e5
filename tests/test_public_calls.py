"""The public calls with unusual and with nonsensical arguments: the right result or one sentence.

Whatever comes out, networks and the caller's tensors are left as they were.
"""

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import fastcat
from fastcat import InputError, ThreatModel, attack, evaluate
from fastcat.attacks.pgd import PGD
from fastcat.guard import as_batch
from fastcat.objective import Objective
from fastcat.precision import make_precision
from fastcat.terms import Sum, ce, kl, mart_kl
from tests.harness.comparison import assert_same
from tests.harness.networks import CLASSES, images, seeded, tiny_net
from tests.harness.teams import team_of
from tests.harness.traces import everything

pytestmark = pytest.mark.usefixtures("one_thread")

X, Y = images(0, 4)
THREAT = ThreatModel(eps=8 / 255, step_size=3 / 255, steps=2)
ORIGINAL = X.clone(), Y.clone()


def attacked(model: Any = None, x: Any = X, y: Any = Y, **settings: Any) -> Tensor:
    model = tiny_net(0) if model is None else model
    return attack(model, x, y, settings.pop("threat", THREAT), generator=seeded(), **settings)


def judged(model: Any = None, x: Any = X, y: Any = Y, **settings: Any) -> fastcat.evaluation.Report:
    model = tiny_net(0) if model is None else model
    return evaluate(model, [(x, y)], "clean,pgd2", settings.pop("threat", THREAT), **settings)


@pytest.fixture(autouse=True)
def _callers_tensors_stay() -> Any:
    yield
    assert torch.equal(X, ORIGINAL[0])
    assert torch.equal(Y, ORIGINAL[1])


def refused(call: Callable[[], object], text: str) -> None:
    with pytest.raises(InputError, match=text) as caught:
        call()
    assert len(str(caught.value).splitlines()) == 1


# what means the same as Y
LABELS: dict[str, Any] = {
    **{
        str(dtype): Y.to(dtype)
        for dtype in (torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16)
    },
    "list": Y.tolist(),
    "tuple": tuple(Y.tolist()),
    "list of tensors": list(Y),
    "array": Y.numpy(),
    "big-endian array": Y.numpy().astype(">i4"),
    "small array": Y.numpy().astype(np.uint8),
    "view": torch.stack([Y, Y], 1)[:, 0],
}


@pytest.mark.parametrize("y", LABELS.values(), ids=LABELS)
def test_labels_of_any_integer_type_mean_the_same(y: Any) -> None:
    assert torch.equal(attacked(y=y), attacked())
    assert judged(y=y) == judged()
    z = {"clean": tiny_net(0)(X)}
    assert ce("clean")(z, y)["ce"] == ce("clean")(z, Y)["ce"]


NO_LABELS: dict[str, tuple[Any, str]] = {
    "fewer": (Y[:3], r"labels have shape \(3,\), expected \(4,\)"),
    "one": (Y[:1], r"labels have shape \(1,\), expected \(4,\)"),
    "more": (torch.cat([Y, Y]), r"labels have shape \(8,\), expected \(4,\)"),
    "none": ([], r"expected"),
    "a number": (3, r"labels have shape \(\)"),
    "a column": (Y[:, None], r"type y.squeeze\(1\)"),
    "one-hot": (nn.functional.one_hot(Y, CLASSES), r"type y.argmax\(1\)"),
    "soft": (torch.full((4, CLASSES), 0.2), r"type y.argmax\(1\)"),
    "float": (Y.float(), r"labels are float32, expected integers .* y.long\(\)"),
    "bool": (Y > 1, r"labels are bool"),
    "float array": (Y.numpy() / 2, "labels are of type float64"),
    "None": (None, "labels are of type object"),
    "names": (["cat"] * 4, "labels are of type <U3"),
    "ragged": ([[1], [1, 2], 1, 1], "labels are"),
    "huge": ([2**80] * 4, "labels are of type object"),
    "negative": (Y - 5, "labels run from -"),
    "padding": (torch.full((4,), -100), "labels run from -100 to -100, expected 0 to 4"),
    "too large": (Y + 5, "expected 0 to 4 for the 5 classes"),
    "meta": (Y.to("meta"), "meta"),
    "sparse": (Y.to_sparse(), "sparse"),
}


@pytest.mark.parametrize(("y", "text"), NO_LABELS.values(), ids=NO_LABELS)
def test_labels_that_are_not_one_class_for_each_image(y: Any, text: str) -> None:
    """Catches images that are attacked, judged or learnt from without a label of their own."""
    z = {view: tiny_net(0)(X) for view in ("clean", "adv")}
    refused(lambda: attacked(y=y), text)
    refused(lambda: judged(y=y), text)
    refused(lambda: ce("clean")(z, y), text)
    refused(lambda: mart_kl("clean", "adv")(z, y), text)


# images, and those of the usual kind that they mean
SAME: dict[str, tuple[Tensor, Tensor]] = {
    "channels last": (X.contiguous(memory_format=torch.channels_last), X),
    "turned": (X.transpose(2, 3), X.transpose(2, 3).contiguous()),
    "every other pixel": (torch.stack([X, X], 4).flatten(3)[..., ::2], X),
    "expanded": (X[:1].expand(4, -1, -1, -1), X[:1].repeat(4, 1, 1, 1)),
    "with gradient": (X.clone().requires_grad_(), X),
    "of a graph": (X.clone().requires_grad_() * 1.0, X),
    "parameter": (nn.Parameter(X.clone()), X),
}


@pytest.mark.parametrize(("x", "same"), SAME.values(), ids=SAME)
def test_images_of_any_layout(x: Tensor, same: Tensor) -> None:
    before, wants = x.detach().clone(), x.requires_grad
    threat = ThreatModel(eps=8 / 255, step_size=3 / 255, steps=2)
    found = attack(tiny_net(0), x, Y, threat, start="zero")
    torch.testing.assert_close(found, attack(tiny_net(0), same, Y, threat, start="zero"))
    # kernels count pixels along one axis: a view, where there is one
    assert as_batch(x, Y)[0].view(4, 3, 64).shape[2] == 64
    assert not found.requires_grad
    assert judged(x=x).n == 4
    assert torch.equal(x.detach(), before)
    assert x.requires_grad == wants
    assert not x.is_leaf or x.grad is None


NO_IMAGES: dict[str, tuple[Any, str]] = {
    "uint8": ((255 * X).byte(), r"images are uint8, expected float32 or float64: type x / 255"),
    "int64": ((255 * X).long(), "images are int64"),
    "bool": (X > 0.5, "images are bool"),
    "half": (X.half(), r"images are float16, .* type x.float\(\)"),
    "bfloat16": (X.bfloat16(), "images are bfloat16"),
    "complex": (X.to(torch.complex64), "images are complex64"),
    "array": (X.numpy(), "images are of type ndarray"),
    "None": (None, "images are of type NoneType"),
    "a single one": (X[0], r"shape \(3, 8, 8\), expected \[B, C, H, W\]: .* x\[None\]"),
    "five axes": (X[None], r"expected \[B, C, H, W\]"),
    "flat": (X.flatten(1), r"expected \[B, C, H, W\]"),
    "none": (X[:0], "there are no images"),
    "meta": (X.to("meta"), "meta"),
    "sparse": (X.to_sparse(), "sparse"),
    "nan": (torch.full_like(X, math.nan), "images range from nan"),
    "normalised": (4 * X - 2, "remove Normalize"),
}


@pytest.mark.parametrize(("x", "text"), NO_IMAGES.values(), ids=NO_IMAGES)
def test_what_are_no_images(x: Any, text: str) -> None:
    refused(lambda: attacked(x=x), text)
    refused(lambda: judged(x=x), text)


class Around(nn.Module):
    """A function of a network and of images."""

    def __init__(self, function: Callable[[nn.Module, Tensor], Any]) -> None:
        super().__init__()
        self.function, self.net = function, tiny_net(0)

    def forward(self, x: Tensor) -> Any:
        return self.function(self.net, x)


def raising(net: nn.Module, x: Tensor) -> Tensor:
    raise ValueError("boom\nand more")


class BrokenBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        return z.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        raise RuntimeError("no way back")


def without_gradient(net: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return net(x)


NO_NETWORKS: dict[str, tuple[Any, str]] = {
    "class": (nn.Linear, "the network is the class Linear"),
    "name": ("resnet18", "the network is 'resnet18'"),
    "weights": (tiny_net(0).state_dict(), "the network is OrderedDict"),
    "raising": (Around(raising), r"fails on images float32 \(4, 3, 8, 8\) on cpu.*: boom$"),
    "other channels": (nn.Conv2d(1, 5, 8), "fails on images .* expected input.* 1 channels"),
    "lazy": (nn.Sequential(nn.Flatten(), nn.LazyLinear(CLASSES)), "weights without values"),
    "meta": (tiny_net(0).to("meta"), "weights without values"),
    "one logit": (lambda x: x.mean((1, 2, 3)), r"one logit an image, shape \(4,\)"),
    "a column": (lambda x: x.mean((2, 3))[:, :1], r"one logit an image, shape \(4, 1\)"),
    "classes": (Around(lambda net, x: net(x).argmax(1)), r"int64 of shape \(4,\)"),
    "a map": (Around(lambda net, x: net(x)[..., None, None]), r"shape \(4, 5, 1, 1\)"),
    "no classes": (Around(lambda net, x: net(x)[:, :0]), "labels run from"),
    "fewer rows": (Around(lambda net, x: net(x)[:3]), r"shape \(3, 5\), expected .*\(4, classes\)"),
    "a mean": (Around(lambda net, x: net(x).mean(0)), r"shape \(5,\)"),
    "whole logits": (Around(lambda net, x: net(x).long()), "gives int64"),
    "complex logits": (Around(lambda net, x: net(x).to(torch.complex64)), "gives complex64"),
    "sparse logits": (Around(lambda net, x: net(x).to_sparse()), "expected float logits"),
    "a tuple": (Around(lambda net, x: (net(x), x)), "gives a tuple, expected a tensor"),
    "a dict": (Around(lambda net, x: {"logits": net(x)}), "gives a dict"),
    "an array": (Around(lambda net, x: net(x).detach().numpy()), "gives a ndarray"),
    "nothing": (Around(lambda net, x: None), "gives a NoneType"),
    "a constant": (lambda x: torch.zeros(len(x), CLASSES), "no gradient in the images"),
    "no_grad": (Around(without_gradient), "no gradient in the images"),
    "detach": (Around(lambda net, x: net(x.detach())), "no gradient in the images"),
    "backward": (Around(lambda net, x: BrokenBackward.apply(net(x))), "fails on .*no way back$"),
}


@pytest.mark.parametrize(("model", "text"), NO_NETWORKS.values(), ids=NO_NETWORKS)
def test_what_is_no_network(model: Any, text: str) -> None:
    """Catches one logit as 100 % for label 0, and an attack that silently goes nowhere."""
    trained = isinstance(model, nn.Module) and "without values" not in text
    before = everything(model) if trained else {}
    refused(lambda: attacked(model), text)
    refused(lambda: judged(model), text)
    if "backward" not in text and "way back" not in text:
        refused(lambda: attacked(model, loss="kl"), text)
    assert_same(before, everything(model) if trained else {})


def test_no_network_at_all() -> None:
    refused(lambda: attack(None, X, Y, THREAT), "the network is None")  # type: ignore[arg-type]
    refused(lambda: evaluate(None, [(X, Y)], "clean", THREAT), "the network is None")  # type: ignore[arg-type]


def test_a_network_without_gradient_has_a_clean_accuracy() -> None:
    model = Around(without_gradient)
    assert evaluate(model, [(X, Y)], "clean", THREAT) == evaluate(
        tiny_net(0), [(X, Y)], "clean", THREAT
    )


NETWORKS: dict[str, Callable[[], Any]] = {
    "double": lambda: tiny_net(0).double(),
    "data parallel": lambda: nn.DataParallel(tiny_net(0)),
    "frozen": lambda: tiny_net(0).requires_grad_(False),
    "compiled": lambda: torch.compile(tiny_net(0), backend="eager"),
    "method": lambda: tiny_net(0).eval().forward,
    "masked": lambda: Around(lambda net, x: torch.cat([net(x), x.new_full((4, 1), -math.inf)], 1)),
}


@pytest.mark.slow
@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)
def test_networks_of_many_kinds_are_attacked_alike(make: Callable[[], Any]) -> None:
    torch._dynamo.reset()
    model = make()
    before = everything(model) if isinstance(model, nn.Module) else {}
    found = attacked(model)
    assert found.dtype == torch.float32
    # a sign may fall otherwise in float64
    assert (found != attacked()).double().mean() < 0.01
    assert judged(model) == judged()
    assert_same(before, everything(model) if isinstance(model, nn.Module) else {})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_network_in_half_precision_reads_float32_images(dtype: torch.dtype) -> None:
    """The views stay float32, where no step is lost."""
    model = tiny_net(0).to(dtype)
    found = attacked(model)
    assert found.dtype == torch.float32
    assert (found - X).abs().max() <= THREAT.eps + 2**-23
    assert (found == attacked()).double().mean() > 0.8
    assert judged(model).n == 4
    assert {p.dtype for p in model.parameters()} == {dtype}


def test_under_autocast_an_attack_climbs_in_half_precision_and_judging_does_not() -> None:
    expected = judged()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert attacked().dtype == torch.float32
        assert judged() == expected


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_without_gradients_around_it_a_call_does_the_same(context: Callable[[], Any]) -> None:
    model, expected = tiny_net(0), (attacked(), judged())
    with context():
        found = attacked(model), judged(model)
        assert not torch.is_grad_enabled()
        # made here, a tensor of inference mode can be kept by no graph
        x, y = X.clone(), Y.clone()
        again = attacked(model, x, y), judged(model, x, y)
        assert torch.is_inference_mode_enabled() == (context is torch.inference_mode)
    later = attacked(model, x, y), judged(model, x, y)
    for each in (found, again, later):
        assert torch.equal(each[0], expected[0])
        assert each[1] == expected[1]
    # of use outside
    model(found[0]).sum().backward()


def test_weights_made_in_inference_mode_are_refused() -> None:
    with torch.inference_mode():
        model = tiny_net(0)
    refused(lambda: attacked(model), "Inference tensors")


THREATS: dict[str, tuple[dict[str, Any], str]] = {
    "text": ({"eps": "8/255"}, "eps is '8/255', expected a number: type 8/255, without quotes"),
    "grey levels": ({"eps": 8}, "type 8/255"),
    "eps 0": ({"eps": 0}, "eps is 0"),
    "eps negative": ({"eps": -0.1}, "eps is -0.1"),
    "eps nan": ({"eps": math.nan}, "eps is nan"),
    "eps infinite": ({"norm": "l2", "eps": math.inf}, "eps is inf"),
    "eps True": ({"eps": True}, "eps is True"),
    "eps None": ({"eps": None}, "eps is None"),
    "eps tensor": ({"eps": torch.tensor(0.1)}, "eps is tensor"),
    "eps list": ({"eps": [0.1]}, "eps is"),
    "step text": ({"step_size": "2/255"}, "step size is '2/255'"),
    "step 0": ({"step_size": 0}, "step size is 0"),
    "steps 0": ({"steps": 0}, "steps is 0"),
    "steps negative": ({"steps": -1}, "steps is -1"),
    "steps a half": ({"steps": 1.5}, "steps is 1.5, expected a whole number"),
    "steps True": ({"steps": True}, "steps is True"),
    "steps text": ({"steps": "10"}, "steps is '10'"),
    "steps None": ({"steps": None}, "steps is None"),
    "restarts 0": ({"restarts": 0}, "restarts is 0"),
    "restarts float": ({"restarts": 2.0}, "restarts is 2.0, expected a whole number"),
    "Linf": ({"norm": "Linf"}, "did you mean 'linf'"),
    "inf": ({"norm": math.inf}, "unknown norm inf"),
    "2": ({"norm": 2}, "unknown norm 2"),
    "list": ({"norm": ["l2"]}, "unknown norm"),
}


@pytest.mark.parametrize(("settings", "text"), THREATS.values(), ids=THREATS)
def test_threat_models_that_mean_nothing(settings: dict[str, Any], text: str) -> None:
    refused(lambda: ThreatModel(**settings), text)


def test_numbers_of_numpy_are_numbers() -> None:
    threat = ThreatModel(eps=np.float32(8 / 255), step_size=np.float64(3 / 255), steps=np.int64(2))  # type: ignore[arg-type]
    assert attacked(threat=threat).shape == X.shape


@pytest.mark.parametrize("threat", [None, {"eps": 0.1}, 8 / 255, "linf", ThreatModel, []])
def test_what_is_no_threat_model(threat: Any) -> None:
    refused(lambda: attacked(threat=threat), "expected a ThreatModel: fastcat.ThreatModel")
    refused(lambda: judged(threat=threat), "expected a ThreatModel: fastcat.ThreatModel")


def test_threat_models_under_one_name_are_refused() -> None:
    """Catches the survivors of both counted as of one, twice as many as there are images."""
    twice = [THREAT, ThreatModel(eps=4 / 255)]
    refused(lambda: judged(threat=twice), "pgd2-linf, pgd2-linf: a name stands there twice")
    assert judged(threat=[THREAT, ThreatModel(norm="l2", eps=0.5)]).n == 4
    refused(lambda: attacked(threat=[THREAT]), "expected a ThreatModel")


SETTINGS: dict[str, tuple[dict[str, Any], str]] = {
    "loss CE": ({"loss": "CE"}, "did you mean 'ce'"),
    "loss function": ({"loss": nn.functional.cross_entropy}, "expected one for each: leave mean"),
    "loss None": ({"loss": None}, "unknown attack loss None"),
    "loss list": ({"loss": ["ce"]}, "unknown attack loss"),
    "start": ({"start": "random"}, "unknown attack start"),
    "start True": ({"start": True}, "unknown attack start"),
    "bn False": ({"bn": False}, "unknown attack bn"),
    "kl from zero": ({"loss": "kl", "start": "zero"}, "has no gradient at the image itself"),
}


@pytest.mark.parametrize(("settings", "text"), SETTINGS.values(), ids=SETTINGS)
def test_settings_of_an_attack(settings: dict[str, Any], text: str) -> None:
    refused(lambda: attacked(**settings), text)


@pytest.mark.parametrize("generator", [3, "0", np.random.default_rng(0)])
def test_what_is_no_generator(generator: Any) -> None:
    call = lambda: attack(tiny_net(0), X, Y, THREAT, generator=generator)  # noqa: E731
    refused(call, "expected a torch.Generator: type torch.Generator")


def test_dlr_needs_three_classes() -> None:
    two = Around(lambda net, x: net(x)[:, :2])
    refused(lambda: attacked(two, y=Y % 2, loss="dlr"), "there are 2 classes: expected margin")
    three = Around(lambda net, x: net(x)[:, :3])
    assert attacked(three, y=Y % 3, loss="dlr").shape == X.shape
    method = Objective(views=("adv",), inner=PGD(loss="dlr"), outer=ce("adv"))
    refused(lambda: team_of([method], classes=2), "there are 2 classes: expected margin")


def test_starts_and_distances_of_a_threat_model() -> None:
    """Catches a slip that starts at the image itself, and distances of images that are not."""
    refused(lambda: THREAT.draw_noise("unifrom", X, None), "did you mean 'uniform'")  # type: ignore[arg-type]
    refused(lambda: THREAT.start(X, "unifrom", X), "did you mean 'uniform'")  # type: ignore[arg-type]
    refused(lambda: THREAT.distance(X, X[:1]), r"shapes \(4, 3, 8, 8\) and \(1, 3, 8, 8\)")
    refused(lambda: THREAT.distance(X[0], X[0]), r"expected \[B, C, H, W\]")


ATTACKS: dict[str, tuple[Any, str]] = {
    "nothing": ("", "unknown attack ''"),
    "no names": ([], "unknown attack ''"),
    "unknown": ("no", "unknown attack 'no'"),
    "no steps": ("pgd0", "unknown attack 'pgd0'"),
    "negative steps": ("pgd-1", "unknown attack"),
    "a space": ("pgd 20", "unknown attack"),
    "twice": ("clean,clean", "stands there twice"),
    "twice in a list": (["fgsm", "fgsm"], "stands there twice"),
    "None": (None, "attacks are None"),
    "a number": (20, "attacks are 20"),
    "a set": ({"clean"}, "attacks are"),
    "bytes": (b"clean", "attacks are"),
    "mixed": (["clean", 3], "attacks are"),
}


@pytest.mark.parametrize(("attacks", "text"), ATTACKS.values(), ids=ATTACKS)
def test_what_are_no_attacks(attacks: Any, text: str) -> None:
    refused(lambda: evaluate(tiny_net(0), [(X, Y)], attacks, THREAT), text)


def test_attacks_in_a_list() -> None:
    assert evaluate(tiny_net(0), [(X, Y)], ["clean", "pgd2"], THREAT) == judged()


LOADERS: dict[str, tuple[Any, str]] = {
    "None": (None, "the loader None has no batches"),
    "a number": (3, "the loader 3 has no batches"),
    "a text": ("digits", "the loader gives a str: expected batches"),
    "empty": ([], "the loader gave no images"),
    "one batch": ((X, Y), r"the loader gives a Tensor: .* \[\(x, y\)\] for a single one"),
    "images": (X, "the loader gives a Tensor"),
    "without labels": ([(X,)], "the loader gives a tuple"),
    "dicts": ([{"x": X, "y": Y}], "the loader gives a dict"),
    "swapped": ([(Y, X)], "images are int64"),
    "items": (TensorDataset(X, Y), r"shape \(3, 8, 8\)"),
    "an empty batch": ([(X, Y), (X[:0], Y[:0])], "there are no images"),
    "a bad second": ([(X, Y), (X, Y[:3])], r"labels have shape \(3,\)"),
}


@pytest.mark.parametrize(("loader", "text"), LOADERS.values(), ids=LOADERS)
def test_what_is_no_loader(loader: Any, text: str) -> None:
    refused(lambda: evaluate(tiny_net(0), loader, "clean", THREAT), text)


def test_loaders_of_many_kinds() -> None:
    expected = evaluate(tiny_net(0), [(X, Y)], "clean,fgsm", THREAT)
    for loader in (
        iter([(X, Y)]),
        [[X, Y, "more"]],
        [(X[:3], Y[:3].tolist()), (X[3:], Y[3:].numpy())],
        DataLoader(TensorDataset(X, Y), batch_size=3),
    ):
        assert evaluate(tiny_net(0), loader, "clean,fgsm", THREAT) == expected


EVALUATION: dict[str, tuple[dict[str, Any], str]] = {
    "seed None": ({"seed": None}, "seed is None"),
    "seed text": ({"seed": "0"}, "seed is '0'"),
    "precision text": ({"precision": "bf16"}, "make_precision"),
    "precision dtype": ({"precision": torch.bfloat16}, "make_precision"),
    "after_batch": ({"after_batch": 3}, "after_batch is 3"),
}


@pytest.mark.parametrize(("settings", "text"), EVALUATION.values(), ids=EVALUATION)
def test_settings_of_an_evaluation(settings: dict[str, Any], text: str) -> None:
    refused(lambda: judged(**settings), text)


def test_an_evaluation_may_be_in_another_precision() -> None:
    assert judged(precision=make_precision("bf16", torch.device("cpu"))).n == 4


@pytest.mark.parametrize("name", ["pgd20", None, ["clean"]])
def test_a_report_knows_what_was_judged(name: Any) -> None:
    report = judged()
    refused(lambda: report.accuracy(name), "nothing was judged by")
    refused(lambda: report.interval(name), "nothing was judged by")


TRADES = ce("clean") + 6.0 * kl("clean", "adv")
TERMS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "a cell without logits": (lambda z: TRADES({"clean": z["clean"]}, Y), "no logits of 'adv'"),
    "a tuple of logits": (lambda z: TRADES(tuple(z.values()), Y), "no logits of 'clean'"),  # type: ignore[arg-type]
    "other shapes": (lambda z: TRADES({**z, "adv": z["adv"][:, :4]}, Y), r"shape \(4, 4\)"),
    "fewer rows": (lambda z: TRADES({**z, "adv": z["adv"][:3]}, Y), r"shape \(3, 5\)"),
    "one logit": (lambda z: ce("a")({"a": z["adv"][:, :1]}, 0 * Y), "cell 'a' gives one logit"),
    "a map": (lambda z: ce("a")({"a": z["adv"][..., None]}, Y), r"shape \(4, 5, 1\)"),
    "an array": (lambda z: ce("a")({"a": z["adv"].detach().numpy()}, Y), "gives a ndarray"),
    "whole numbers": (lambda z: ce("a")({"a": z["adv"].long()}, Y), "gives int64"),
    "no images": (lambda z: ce("a")({"a": z["adv"][:0]}, Y[:0]), "there are no images"),
    "no terms": (lambda z: Sum()(z, Y), "the sum has no terms"),
    "temperature 0": (lambda z: kl("a", "b", temperature=0), "temperature is 0"),
    "temperature text": (lambda z: kl("a", "b", temperature="4"), "temperature is '4'"),  # type: ignore[arg-type]
    "constant": (lambda z: kl("a", "b", constant="both"), "constant is 'both'"),  # type: ignore[arg-type]
    "smoothing 1": (lambda z: ce("a", 1), "smoothing is 1"),
    "smoothing text": (lambda z: ce("a", "0.1"), "smoothing is '0.1'"),  # type: ignore[arg-type]
    "weight text": (lambda z: "2" * ce("a"), "a weight is '2'"),  # type: ignore[operator]
    "weight nan": (lambda z: math.nan * ce("a"), "a weight is nan"),
}


@pytest.mark.parametrize(("call", "text"), TERMS.values(), ids=TERMS)
def test_terms_that_mean_nothing(call: Callable[[dict[str, Any]], object], text: str) -> None:
    net = tiny_net(0)
    refused(lambda: call({"clean": net(X), "adv": net(X.flip(0))}), text)


def test_terms_are_weighted_from_both_sides_and_add_up_with_terms_alone() -> None:
    assert ce("a") * 2.0 == 2.0 * ce("a")
    with pytest.raises(TypeError, match="unsupported operand"):
        ce("a") + 1.0  # type: ignore[operator]


CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "eps text": ({"eps": "8/255"}, "eps is '8/255', expected a number"),
    "epochs text": ({"epochs": "5"}, "epochs is '5', expected a whole number, for example 200"),
    "epochs a half": ({"epochs": 1.5}, "epochs is 1.5"),
    "val steps True": ({"val_steps": True}, "val-steps is True"),
    "peers list": ({"peers": ["trades", "alp"]}, "expected text, for example 'trades,alp'"),
    "milestones list": ({"milestones": [50, 75]}, "milestones is"),
    "seeds list": ({"seeds": [0, 1]}, "expected text or None"),
    "seed None": ({"seed": None}, "seed is None"),
    "out number": ({"out": 3}, "out is 3, expected a path or None"),
    "device": ({"device": torch.device("cpu")}, "device is"),
    "precision": ({"precision": torch.bfloat16}, "expected auto, fp32, tf32, bf16, fp16"),
    "engine": ({"engine": "cuda"}, "expected auto, eager"),
    "norm": ({"norm": "Linf"}, "expected linf, l2, l1"),
    "loader": ({"loader": "x"}, "loader is 'x'"),
    "flip": ({"flip": "yes"}, "expected True or False or None"),
    "normalize": ({"normalize": "no"}, "normalize is 'no', expected True or False"),
    "ema": ({"ema": False}, "ema is False, expected a number or None"),
    "awp": ({"awp": "off"}, "awp is 'off', expected a number"),
    "weight decay": ({"weight_decay": None}, "weight-decay is None"),
}


@pytest.mark.parametrize(("settings", "text"), CONFIGS.values(), ids=CONFIGS)
def test_settings_of_another_kind(settings: dict[str, Any], text: str) -> None:
    """Catches what the command line would refuse and Python let through, into a run's files."""
    refused(lambda: fastcat.TrainConfig(**settings), text)


def test_settings_become_what_a_file_can_hold() -> None:
    config = fastcat.TrainConfig(
        data=Path("images"),  # type: ignore[arg-type]
        out="runs/x",  # type: ignore[arg-type]
        eps=np.float64(0.1),
        epochs=np.int64(2),  # type: ignore[arg-type]
        lr=1,
    )
    assert config == fastcat.TrainConfig(
        data="images", out=Path("runs/x"), eps=0.1, epochs=2, lr=1.0
    )
    assert [type(getattr(config, name)) for name in ("eps", "epochs")] == [float, int]


def test_train_and_resume_say_what_they_take(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    config = fastcat.TrainConfig(data="digits")
    for wrong in (None, {"peers": "trades"}, "trades"):
        refused(lambda wrong=wrong: fastcat.train(wrong), "expected a TrainConfig")  # type: ignore[misc]
    for wrong in ([1, 2], "digits", TensorDataset(X, Y)):
        refused(lambda wrong=wrong: fastcat.train(config, wrong), "type fastcat.from_items")  # type: ignore[misc]
    refused(lambda: fastcat.resume("nowhere"), "there is no such folder")
    for wrong in (None, 3):
        refused(lambda wrong=wrong: fastcat.resume(wrong), "expected its folder")  # type: ignore[misc]
    assert not list(tmp_path.iterdir())


def test_what_an_attack_copies_is_not_shared() -> None:
    """The result is the caller's: no write into it reaches the images or a later call."""
    for threat in (THREAT, ThreatModel(eps=1e-3, steps=1, restarts=2)):
        attacked(threat=threat).fill_(7)
    model = copy.deepcopy(tiny_net(0))
    assert torch.equal(attacked(model), attacked())
