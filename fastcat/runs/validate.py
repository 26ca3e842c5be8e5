"""Validation after each epoch: what peers answer, and which of their weights are kept."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastcat.attacks.modes import attack_mode
from fastcat.config.threats import format_threats
from fastcat.config.train import TrainConfig
from fastcat.evaluation import evaluate
from fastcat.guard import NO_ANSWER, answers
from fastcat.loaders.choose import unchanged_loader
from fastcat.loaders.dataset import Dataset, as_tensor
from fastcat.loaders.loader import Loader, Sampling
from fastcat.precision import Precision
from fastcat.runs.validation_answers import ValidationAnswers
from fastcat.step.engine import Engine
from fastcat.step.peer import Peer
from fastcat.stop import Stopped, StopRequest
from fastcat.weights.file import WeightsInfo, save_weights


class Validation:
    """Measures peers on the monitored images, and keeps the last and the best weights of each.

    monitored_on, monitor: name and loader of the images of validation. None: there are none
    chance: share of their most frequent class
    selected_by: name of the accuracy that selects the best epoch: PGD's, or under several threat
        models that under the worst of all attacks
    best: by peer the epoch where that accuracy was largest, and what was measured then
    """

    def __init__(
        self,
        config: TrainConfig,
        dataset: Dataset,
        val_index: Tensor,
        engine: Engine,
        precision: Precision,
        normalize: tuple[tuple[float, ...], tuple[float, ...]] | None,
    ) -> None:
        self.config = config
        self.dataset = dataset
        self.engine = engine
        self.answers = ValidationAnswers(engine)
        self.precision = precision
        self.normalize = normalize
        self.attacks = ("clean", "fgsm", f"pgd{config.val_steps}")
        self.threats = config.val_threats()
        self.selected_by = self.attacks[-1] if len(self.threats) == 1 else "worst"
        self.monitored_on, self.monitor, self.chance = self._make_monitor(val_index)
        self.best: dict[str, dict[str, Any]] = {}

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """Names of FGSM's and of PGD's accuracy, under each threat model."""
        _, fgsm, pgd = self.attacks
        if len(self.threats) == 1:
            return [(fgsm, pgd)]
        return [(f"{fgsm}-{model.norm}", f"{pgd}-{model.norm}") for model in self.threats]

    def _make_monitor(self, val_index: Tensor) -> tuple[str | None, Loader | None, float]:
        if self.config.select_on == "test":
            name, part, index = "test", "test", torch.arange(len(self.dataset.test))
        else:
            name, part, index = "val", "train", val_index
        if not len(index):
            return None, None, 0.0
        sampling = Sampling(index=index, batch_size=max(self.config.batch_size, 256))
        monitor = unchanged_loader(
            self.dataset, part, sampling, self.engine.device, self.config.workers
        )
        labels = as_tensor(getattr(self.dataset, part).labels)[index]
        return name, monitor, int(labels.bincount().max()) / len(index)

    def measure(self, k: int, request: StopRequest) -> dict[str, Any]:
        """Of member k on the monitored images, if there are any: "accuracy" by attack, by attack
        how many are "unanswered", and the "commonest" of its answers to clean images.
        """
        if self.monitor is None:
            return {"accuracy": {}}

        def stop_if_asked(_: int) -> None:
            if request.signum is not None:
                raise Stopped(request.signum)

        peer = self.engine.team.learners[k]
        with peer.averaged():
            network, replayed = self.answers.of(k)
            report = evaluate(
                network,
                self.monitor,
                ",".join(self.attacks),
                self.threats,
                seed=self.config.seed,
                precision=self.precision,
                after_batch=stop_if_asked,
                answers_after=replayed,
            )
            commonest = self._commonest(peer)
        accuracy = {attack: report.accuracy(attack) for attack in report.correct}
        if len(self.threats) == 1:
            # what survives PGD survives the rest, but for images that an attack corrects
            del accuracy["worst"]
        unanswered = {attack: report.unanswered[attack] for attack in accuracy}
        return {"accuracy": accuracy, "unanswered": unanswered, "commonest": commonest}

    @torch.no_grad()
    def _commonest(self, peer: Peer) -> dict[str, Any]:
        """The class that the peer answers most often to clean images, and how often."""
        assert self.monitor is not None
        counts = torch.zeros(len(self.dataset.classes), device=self.engine.device)
        with attack_mode(peer.model, "eval"), self.precision.autocast():
            for batch in self.monitor:
                # one place more, the first, for what is no answer
                given = answers(peer.model(batch.x)) - NO_ANSWER
                counts += given.bincount(minlength=len(counts) + 1)[1:]
        answer = int(counts.argmax())
        return {
            "class": self.dataset.classes[answer],
            "share": float(counts[answer]) / self.monitor.size,
        }

    def is_best(self, peer: Peer, accuracy: dict[str, float]) -> bool:
        """Whether the peer is more robust than it was after any earlier epoch."""
        if self.config.select_on == "last":
            return False
        best = self.best.get(peer.name)
        return best is None or accuracy[self.selected_by] > best["accuracy"][self.selected_by]

    def keep(self, run: Path, epoch: int, peers: dict[str, dict[str, Any]]) -> None:
        """Write the weights of all peers.

        run: folder of the run
        epoch: finished epochs
        peers: the peers' entries in the epoch's record
        """
        for peer in self.engine.team.peers:
            self._save_weights(run, peer, epoch, "last", "last")
            if peers[peer.name]["best"]:
                self._save_weights(run, peer, epoch, "best", f"best on {self.monitored_on}")
                self.best[peer.name] = {
                    "epoch": epoch,
                    "judged_on": self.monitored_on,
                    "accuracy": peers[peer.name]["accuracy"],
                }

    def _save_weights(self, run: Path, peer: Peer, epoch: int, which: str, selected: str) -> None:
        mean, std = self.normalize or (None, None)
        info = WeightsInfo(
            peer=peer.name,
            arch=peer.arch,
            data=self.dataset.name,
            data_digest=self.dataset.digest,
            classes=self.dataset.classes,
            channels=self.dataset.image_shape[2],
            mean=mean,
            std=std,
            threats=format_threats(self.config.threat_models()),
            epoch=epoch,
            selected=selected,
        )
        path = run / "peers" / f"{peer.name}.{which}.safetensors"
        with peer.averaged():
            save_weights(path, peer.model.state_dict(), info)
