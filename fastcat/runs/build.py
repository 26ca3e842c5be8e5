"""The members of a team, built from a configuration: peers with fresh weights, and teachers."""

import torch

from fastcat.config.threats import choose_threats
from fastcat.config.train import TrainConfig
from fastcat.loaders.dataset import Dataset
from fastcat.models import make_model
from fastcat.models.ghost import split_norms
from fastcat.precision import make_precision
from fastcat.runs.teacher import load_teacher
from fastcat.runs.trial import check_network
from fastcat.seeds import derive_seed
from fastcat.step.apex_sgd import ApexSGD
from fastcat.step.awp import WeightPerturbation
from fastcat.step.peer import Member, Peer
from fastcat.step.sgd import FlatSGD
from fastcat.step.swa import WeightAverage


def make_members(
    config: TrainConfig,
    dataset: Dataset,
    normalize: tuple[tuple[float, ...], tuple[float, ...]] | None,
    device: torch.device,
    last_batch: int,
) -> list[Member]:
    """The members of a team, one for each entry of --peers, on the device.

    It sets torch's random state.
    config, dataset: settings and data of the run
    normalize: mean and standard deviation that go into each peer's network. None: none do
    device: where the networks lie
    last_batch: training images in the last batch of an epoch

    Raises InputError for a network that does not fit the data.
    """
    precision = make_precision(config.precision, device)
    shape, classes = dataset.image_shape, len(dataset.classes)
    channels = shape[2]
    members: list[Member] = []
    for k, spec in enumerate(config.peer_specs()):
        name = f"{k}-{spec.method}"
        if spec.weights is not None:
            arch = spec.arch if spec.named_arch else None
            teacher = load_teacher(name, spec.weights, arch, dataset)
            teacher.model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
            check_network(teacher.model, f"{name} ({teacher.arch})", shape, classes, precision)
            members.append(teacher)
            continue
        torch.manual_seed(derive_seed(config.seed, "weights", k))
        model = make_model(spec.arch, classes, channels, normalize)
        if config.bn_groups > 1:
            split_norms(model, config.batch_size // config.bn_groups)
        model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        check_network(model, f"{name} ({spec.arch})", shape, classes, precision, last_batch)
        optimizer = (ApexSGD if config.sgd == "apex" else FlatSGD)(
            model,
            lr=config.lr,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            nesterov=config.nesterov,
            norm_decay=config.norm_decay,
            ema=config.ema,
        )
        threats = choose_threats(spec.threat, config.threat_models())
        peer = Peer(name, spec.arch, model, spec.objective, optimizer, threats)
        gamma = config.awp if spec.awp is None else spec.awp
        if gamma:
            peer.awp = WeightPerturbation(model, optimizer, gamma)
        if config.swa is not None:
            peer.swa = WeightAverage(model, optimizer.flat)
        full = torch.empty(config.batch_size, channels, *shape[:2], device=device)
        peer.begin_attacks(full.contiguous(memory_format=torch.channels_last))
        members.append(peer)
    # what networks themselves draw (dropout) continues from here and is kept in checkpoints
    torch.manual_seed(derive_seed(config.seed, "networks"))
    return members
