"""The course of a run: epoch after epoch, recorded and saved, and back when training collapses."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastcat.files import write_text
from fastcat.report.records import EpochRecord
from fastcat.report.signs import new_signs
from fastcat.runs.checkpoint import good_checkpoint, last_checkpoint, read_checkpoint
from fastcat.runs.collapse import MOST_ROLLBACKS, Collapse, collapse
from fastcat.runs.recorder import Recorder
from fastcat.runs.trainer import Trainer
from fastcat.stop import Stopped, StopRequest

# gets an epoch's line of metrics.jsonl
OnEpoch = Callable[[dict[str, Any]], object]


class Loop:
    """Leads a trainer through its run in the folder `run`."""

    def __init__(
        self,
        trainer: Trainer,
        run: Path,
        recorder: Recorder,
        request: StopRequest,
        on_epoch: OnEpoch | None = None,
    ) -> None:
        self.trainer = trainer
        self.run = run
        self.recorder = recorder
        self.request = request
        self.on_epoch = on_epoch
        self.plan_kept = False

    def follow(self) -> None:
        """Train to the last epoch. Raises Stopped after saving when a signal asks for it."""
        trainer = self.trainer
        done = f"{self.run} is finished" if trainer.done else trainer.describe(self.run)
        self.recorder.line(done)
        self._remark()
        while not trainer.done:
            collapsed: Collapse | None = None
            try:
                self._run_epoch()
            except Collapse as error:
                if trainer.config.on_collapse != "rollback":
                    raise
                collapsed = error
            if collapsed is not None:
                self._roll_back(collapsed.reason)

    def _remark(self) -> None:
        """Say what could not be had since the last time."""
        while self.trainer.remarks:
            self.recorder.line(self.trainer.remarks.pop(0))

    def _keep_plan(self) -> None:
        """Write how steps are run, and what other ways took, as soon as that was measured."""
        measured = self.trainer.engine.measured
        if measured is not None and not self.plan_kept:
            self.plan_kept = True
            write_text(self.run / "plan.json", json.dumps(measured.to_dict(), indent=2) + "\n")

    def _run_epoch(self) -> None:
        trainer, on_collapse = self.trainer, self.trainer.config.on_collapse
        try:
            self._train_epoch()
            record = trainer.validate_epoch(self.request)
        except Stopped:
            trainer.save(self.run)
            raise
        reason = collapse(record)
        if reason and on_collapse == "rollback":
            # nothing of this epoch is kept
            raise Collapse(reason, last_checkpoint(self.run))
        # from here on nothing is interrupted: what is written belongs together
        trainer.validation.keep(self.run, trainer.epoch + 1, record["peers"])
        self.recorder.epoch(record)
        former = EpochRecord.read(trainer.last_record) if trainer.epoch else None
        for line in new_signs(EpochRecord.read(record), former):
            self.recorder.line(line)
        trainer.begin_epoch(trainer.epoch + 1, record)
        trainer.save(self.run)
        self.recorder.report()
        if self.on_epoch is not None:
            self.on_epoch(record)
        if reason and on_collapse == "stop":
            raise Collapse(reason, last_checkpoint(self.run))

    def _train_epoch(self) -> None:
        trainer = self.trainer
        config = trainer.config
        begin = time.perf_counter() - trainer.seconds
        for inputs in trainer.inputs():
            lr = trainer.current_lr()
            values = trainer.train_step(inputs)
            self._remark()
            self._keep_plan()
            self.recorder.advance(trainer.steps_done, f"epoch {trainer.epoch + 1}/{config.epochs}")
            if trainer.step % config.log_every == 0:
                trainer.check_losses(self.run)
                named = dict(zip(trainer.team.loss.names, values.tolist(), strict=True))
                self.recorder.steps({"step": trainer.steps_done, "lr": lr, **named})
            trainer.seconds = time.perf_counter() - begin
            if self.request.signum is not None:
                raise Stopped(self.request.signum)
            if config.save_every and trainer.step % config.save_every == 0:
                trainer.save(self.run)
        # both wait for the device, so the clock is read after them
        trainer.check_losses(self.run)
        trainer.check_weights(self.run)
        trainer.seconds = time.perf_counter() - begin

    def _roll_back(self, reason: str) -> None:
        """Go on from the last good epoch with half the learning rate."""
        trainer = self.trainer
        self.recorder.line(reason)
        if len(trainer.rollbacks) == MOST_ROLLBACKS:
            last = last_checkpoint(self.run)
            raise Collapse(f"{reason}, after {MOST_ROLLBACKS} returns to an earlier epoch", last)
        collapsed, best, rollbacks = trainer.epoch + 1, trainer.validation.best, trainer.rollbacks
        trainer.load_state_dict(read_checkpoint(good_checkpoint(self.run)))
        # the best weights that were written are still the best
        trainer.validation.best = best
        returned = {"from": collapsed, "to": trainer.epoch, "reason": reason}
        trainer.rollbacks = [*rollbacks, returned]
        trainer.save(self.run)
        self.recorder.forget_after(trainer.epoch, trainer.steps_done)
        self.recorder.line(
            f"back to where epoch {trainer.epoch + 1} begins; from there on the learning rate is "
            f"{trainer.lr_scale:g} of what --lr and --schedule say"
        )
