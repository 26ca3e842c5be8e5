"""A trial forward before a run begins: one sentence for a network that does not fit the data."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fastcat.errors import InputError
from fastcat.guard import check_initialised, check_logits
from fastcat.precision import Precision


def check_network(
    model: nn.Module,
    who: str,
    shape: tuple[int, int, int],
    classes: int,
    precision: Precision,
    last_batch: int | None = None,
) -> None:
    """Raise InputError for a network that cannot be trained or evaluated on such images.

    Weights, buffers, modes and random states stay as they are.
    model: the network
    who: its name in errors, as "0-at (resnet18)"
    shape: [H, W, C] of the images
    classes: how many there are
    precision: arithmetic of the trial
    last_batch: images in the last batch of an epoch in which it is trained. None: it is only
        evaluated
    """
    tensors = [*model.parameters(), *model.buffers()]
    check_initialised(tensors, who)
    others = [p.dtype for p in model.parameters() if p.dtype != torch.float32]
    if others:
        raise InputError(
            f"{who} has weights of {str(others[0]).removeprefix('torch.')}, expected float32: "
            "return it as net.float()"
        )
    trained = [p for p in model.parameters() if p.requires_grad]
    if last_batch is not None and not trained:
        raise InputError(
            f"{who} has nothing to train, expected parameters that require gradients: "
            "return it as net.requires_grad_()"
        )
    height, width, channels = shape
    device = next((t.device for t in tensors), torch.device("cpu"))
    x = torch.linspace(0, 1, 2 * channels * height * width, device=device)
    x = x.view(2, channels, height, width).contiguous(memory_format=torch.channels_last)
    with _untouched(model, device), precision.autocast():
        _forward(model.eval(), x, who, classes)
        if last_batch is None:
            return
        z = _forward(model.train(), x, who, classes)
        if not z.isfinite().all():
            raise InputError(
                f"{who} gives NaN or infinite logits before the first step, expected "
                "finite ones: look at its initial weights"
            )
        if not z.requires_grad:
            raise InputError(
                f"{who} gives logits that depend on none of its parameters, expected some that can "
                "be trained: leave no_grad and detach out of its forward"
            )
        if last_batch == 1:
            instead = "choose a --batch-size that leaves no single image for an epoch's last batch"
            _forward(model, x[:1], who, classes, instead)


def _forward(
    model: nn.Module,
    x: Tensor,
    who: str,
    classes: int,
    instead: str = "choose an architecture for such images, or convert them with --resize",
) -> Tensor:
    """Logits [B, classes]. Raises InputError for what the network raises, and for anything else."""
    try:
        z = model(x.clone())
    except (InputError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # whatever a foreign forward comes up with
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise InputError(
            f"{who} cannot take images [{', '.join(map(str, x.shape))}], {reason}: {instead}"
        ) from error
    check_logits(z, len(x), who, classes)
    return z


@contextmanager
def _untouched(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Buffers, modes and random states are afterwards as they were."""
    modes = [(module, module.training) for module in model.modules()]
    buffers = [
        (module, name, buffer, None if buffer is None else buffer.clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
    ]
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield
    finally:
        for module, name, buffer, before in buffers:
            # a forward may also have put another tensor in its place
            module._buffers[name] = buffer
            if buffer is not None and before is not None:
                buffer.detach().copy_(before)
        for module, training in modes:
            module.training = training
