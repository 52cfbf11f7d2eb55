"""The training loop on Lightning Fabric, for any `Objective`: epochs, clock, validation, files, resume."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sized
from dataclasses import asdict
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn

from slicebook.config import LoopConfig
from slicebook.devices import PRECISIONS, Launched, fastest_precision
from slicebook.distributed import Exchange, Part, Watch, computing
from slicebook.errors import ConfigError, StoppedBySignalError
from slicebook.io.atomic import check_writable
from slicebook.io.tensors import State
from slicebook.memory import batch_advice, explained
from slicebook.models.checkpoint import MODEL_NAME
from slicebook.signals import StopRequest, deferred_signals
from slicebook.training.progress import Display
from slicebook.training.resume import EpochProgress, Progress, restore, state_tensors, write_state
from slicebook.training.run import write_metrics

B = TypeVar("B", bound="DeviceBatch")


@runtime_checkable
class DeviceBatch(Sized, Protocol):
    """A batch of slices that can be moved to a device."""

    @property
    def part(self) -> Part:
        """Which slices of a batch of several processes these are."""

    def to(self: B, device: torch.device) -> B:
        """Move the tensors to a device."""

    def first(self: B, count: int) -> B:
        """Return the first slices as a batch of their own."""


P = TypeVar("P", bound=DeviceBatch)
Out = TypeVar("Out", bound=DeviceBatch, covariant=True)
In = TypeVar("In", bound=DeviceBatch, contravariant=True)


@runtime_checkable
class BatchLoader(Protocol[Out]):
    """Batches in an order that depends on the epoch only."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Out]: ...

    def set_epoch(self, epoch: int, done: int = 0) -> None:
        """Set the epoch, and how many of its batches the next iteration leaves out."""


@runtime_checkable
class Objective(Protocol[In]):
    """What the trainer optimises: a module, its training loss and its validation scores.

    Scores of a batch that several processes share: the mean of each over the slices of a process, such that
    the mean over all slices is that of the batch.
    """

    module: nn.Module
    settings: str
    """Its group of settings in a recipe."""
    monitor: str | None
    """The validation score by which the best model is kept, higher is better; None keeps the latest model."""

    def param_groups(self) -> list[dict[str, Any]]:
        """Return parameter groups for the optimiser; `lr_scale` multiplies the learning rate."""

    def setup(self, batches: Any) -> None:
        """Initialise an untrained module, which is on its device, from the loader of training batches."""

    def training_step(self, batch: In, step: int, fraction: float) -> dict[str, Tensor]:
        """Return the scores of a training batch; `loss` among them carries the gradient."""

    def validation_step(self, batch: In) -> dict[str, Tensor]:
        """Return the scores of a validation batch."""

    def usage(self) -> dict[str, float]:
        """Return statistics of the training steps since the last `epoch_metrics`."""

    def epoch_metrics(self) -> dict[str, float]:
        """Return the same, reset them, and warn of problems."""

    def save(self, path: Path, progress: Progress, scores: Mapping[str, float]) -> None:
        """Write the model file."""


CHECK_EVERY = 20  # steps between checks of the loss; each waits for the device


class Trainer(Generic[P]):
    """The training loop: epochs, validation, and the files of a run.

    Args:
        objective: Module, loss and scores.
        config: Duration, learning rate, validation.
        run: Folder for the model, the last two states, `metrics.csv` and `curves.png`.
        identity: Settings and data, saved in the state: a resumed training must have the same.
        fabric: Device and process group.
    """

    def __init__(
        self,
        objective: Objective[P],
        config: LoopConfig,
        run: Path,
        identity: dict[str, Any],
        fabric: Launched,
    ) -> None:
        self.objective = objective
        self.config = config
        self.run = run
        self.identity = identity
        self.fabric = fabric
        self.progress = Progress()
        self.epoch = EpochProgress()
        self.stop_request = StopRequest()
        self.batch: P | None = None  # the last one, as it was loaded

    def __call__(
        self, training: BatchLoader[P], validation: BatchLoader[P], state: State | None, display: Display
    ) -> Progress:
        """Train from the start, or from a state, until `epochs` or `max_minutes` are reached.

        Raises:
            StoppedBySignalError: SIGTERM or SIGUSR1 asked to stop; the state is kept.
            ProcessLostError: Another process that trains with this one has ended; the last state is kept.
            OutOfMemoryError: A batch needs more memory than there is; the last state is kept.
        """
        with Watch(str(self.run)), explained(str(self.run), self._smaller_batch):
            self._set_up(training, state, display)
            with deferred_signals() as self.stop_request:
                self._train(training, validation, display)
        return self.progress

    def _set_up(self, training: BatchLoader[P], state: State | None, display: Display) -> None:
        """Initialise the module or restore the state, choose the precision, start the clock."""
        processes, batch_size = self.fabric.world_size, self.config.batch_size
        if batch_size < processes:
            raise ConfigError(
                f"{self.run}: batches of {batch_size} slices for {processes} processes, wanted at least one "
                "slice for each; set a larger batch_size, or start fewer processes"
            )
        module = self.objective.module.to(self.fabric.device)
        module = module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it
        self.unwrapped = module
        self.optimizer: Any = _optimizer(self.config, self.objective.param_groups())
        if state is None:
            self.objective.setup(training)
        else:
            self.progress = Progress(**state.progress["progress"])
            self.epoch = restore(state, module, self.optimizer)
            if state.progress.get("batch_size", batch_size) != batch_size:
                # The places of the old batches mean nothing in the new order.
                self.epoch, self.progress.step = EpochProgress(), self.progress.epoch * len(training)
                display.say(f"{self.run}: batches of {batch_size} slices from the start of this epoch")
        if self.fabric.undecided and not self.progress.finished:
            self.fabric = self.fabric.decided(self._precision(training, state, display))
        self.scaling = self.fabric.strategy.precision
        if state is not None:
            self.scaling.load_state_dict(state.progress.get("scaling", {}))
        wrapped, self.optimizer = self.fabric.setup(module, self.optimizer)
        self.objective.module = wrapped
        self.exchange = Exchange(self.fabric.global_rank, self.progress.seconds)
        self.saved = time.perf_counter()
        self.started = self.saved - self.progress.seconds
        self.steps = self.config.epochs * len(training)
        display.say(f"{self.run}: device {self.fabric.device}, CPU threads: {torch.get_num_threads()}")
        display.begin(self._fraction(), resumed=state is not None)
        if not self.progress.finished and self.fabric.is_global_zero:
            check_writable(self.run)

    def _train(self, training: BatchLoader[P], validation: BatchLoader[P], display: Display) -> None:
        """Train and validate, epoch by epoch."""
        while not self.progress.finished:
            row = self._epoch(training, display)
            epoch = self.progress.epoch + 1
            finished = epoch == self.config.epochs or self._fraction() >= 1
            validated = finished or epoch % self.config.validate_every == 0
            if validated:
                row |= self._validation(validation) | self.objective.epoch_metrics()
            self.progress.epoch, self.progress.finished = epoch, finished
            self.epoch = EpochProgress()
            if validated:
                self._record(row)
                best = bool(self.objective.monitor) and self.progress.best_epoch == self.progress.epoch
                display.validated(self.progress.step, self.progress.history[-1], best=best)

    def _precision(self, training: BatchLoader[P], state: State | None, display: Display) -> str:
        """Return the precision of the interrupted run, or measure in which one steps are faster."""
        if state is not None and state.progress.get("precision") in PRECISIONS[self.fabric.device.type]:
            return str(state.progress["precision"])
        training.set_epoch(0)
        self.batch = next(iter(training))
        batch = self.batch.to(self.fabric.device)
        self.unwrapped.train()
        tensors = [*self.unwrapped.parameters(), *self.unwrapped.buffers()]
        before = [tensor.detach().clone() for tensor in tensors]

        def step() -> None:
            with computing(batch.part):
                torch.autograd.backward(self.objective.training_step(batch, 0, 0.0)["loss"])

        name, seconds = fastest_precision(step, self.fabric.device, broadcast=self.fabric.broadcast)
        with torch.no_grad():
            for tensor, value in zip(tensors, before, strict=True):
                tensor.copy_(value)  # the steps have updated codebooks and batch norms
        self.unwrapped.zero_grad()
        times = ", ".join(f"{1000 * value:.0f} ms in {key}" for key, value in seconds.items())
        display.say(f"precision {name}: a training step takes {times}")
        return name

    def _epoch(self, training: BatchLoader[P], display: Display) -> dict[str, float]:
        """Train the rest of an epoch, or until `max_minutes`; return mean scores and images per second."""
        self.unwrapped.train()
        epoch = self.epoch
        training.set_epoch(self.progress.epoch, epoch.steps)
        started = time.perf_counter() - epoch.seconds
        for batch in training:
            self.batch, fraction = batch, self._fraction()
            if fraction >= 1 and epoch.steps:
                break
            epoch.learning_rate = _learning_rate(self.config, fraction)
            for group in self.optimizer.param_groups:
                group["lr"] = epoch.learning_rate * group["lr_scale"]
            batch = batch.to(self.fabric.device)
            with computing(batch.part):
                scores = self.objective.training_step(batch, self.progress.step, fraction)
            self.optimizer.zero_grad()
            self.fabric.backward(scores["loss"] * batch.part.weight)
            if self.config.grad_clip_norm:
                self._clip()
            self.optimizer.step()
            self.progress.step += 1
            epoch.add(self._exchange(scores, batch.part), batch.part.total)
            epoch.seconds = time.perf_counter() - started
            if epoch.steps == 1 or epoch.steps % CHECK_EVERY == 0:
                speed = {"images_per_second": epoch.images / epoch.seconds}
                display.trained(self.progress.epoch, fraction, self._means() | self.objective.usage() | speed)
            if time.perf_counter() - self.saved >= 60 * self.config.save_minutes:
                self._save_state()
            self._stop_if_asked()
        return {f"train_{name}": value for name, value in self._means().items()} | {
            "images_per_second": epoch.images / epoch.seconds,
            "learning_rate": epoch.learning_rate,
        }

    def _clip(self) -> None:
        """Clip the gradients of each parameter group separately: decoder and discriminator."""
        # 16-mixed scales the loss, and so the gradients, by a large factor.
        self.scaling.unscale_gradients(self.optimizer.optimizer)
        for group in self.optimizer.param_groups:
            nn.utils.clip_grad_norm_(group["params"], self.config.grad_clip_norm)

    def _smaller_batch(self) -> str:
        """Return advice on memory: the largest part of the last batch that fits, as is tried."""
        if self.batch is None:
            return "not even the model fits; make it smaller, or use another --device"

        def attempt(count: int) -> None:
            assert self.batch is not None
            batch = self.batch.first(count).to(self.fabric.device)
            with computing(batch.part):
                loss = self.objective.training_step(batch, self.progress.step, 0.0)["loss"]
            self.optimizer.zero_grad()
            self.fabric.backward(loss)
            self.optimizer.step()

        self.optimizer.zero_grad()
        key, total = f"{self.objective.settings}.batch_size", self.batch.part.total
        advice = batch_advice(key, total, attempt, self.fabric.world_size)
        return f"in step {self.progress.step + 1}, {advice}"

    def _means(self) -> dict[str, float]:
        means = self.epoch.means()
        self._check(means)
        return means

    def _check(self, means: Mapping[str, float]) -> None:
        """Stop at a loss that is NaN or infinite, before anything is saved."""
        if not all(math.isfinite(value) for value in means.values()):
            kept = self.run / MODEL_NAME
            which = "best" if self.objective.monitor else "latest"
            good = f"{kept} is the {which} until then" if kept.exists() else "no model was saved yet"
            raise ConfigError(
                f"{self.run}: the loss is NaN or infinite after step {self.progress.step}; {good}; train "
                f"to another --out with a lower learning_rate (found {self.config.learning_rate:g})"
            )

    @torch.no_grad()
    def _validation(self, validation: BatchLoader[P]) -> dict[str, float]:
        self.unwrapped.eval()
        sums: dict[str, float] = defaultdict(float)
        count = 0
        for batch in validation:
            self.batch, batch = batch, batch.to(self.fabric.device)
            with computing(batch.part):
                scores = self.objective.validation_step(batch)
            for name, value in self._exchange(scores, batch.part).items():
                sums[name] += float(value) * batch.part.total
            count += batch.part.total
            self._stop_if_asked()
        means = {name: value / count for name, value in sums.items()}
        self._check(means)
        return {f"validation_{name}": value for name, value in means.items()}

    def _record(self, row: dict[str, float]) -> None:
        """Write history, curves, the best model, and the state for resuming."""
        progress = self.progress
        progress.seconds = time.perf_counter() - self.started
        progress.history.append(
            {"epoch": progress.epoch, "step": progress.step, "seconds": progress.seconds} | row
        )
        monitor = self.objective.monitor
        score = row[f"validation_{monitor}"] if monitor else float(progress.epoch)
        better = score > progress.best_score
        if better:
            progress.best_score, progress.best_epoch = score, progress.epoch
        validations_without_improvement = (progress.epoch - progress.best_epoch) // self.config.validate_every
        progress.finished |= 0 < self.config.patience <= validations_without_improvement
        if self.fabric.is_global_zero:
            if better:
                self.objective.save(self.run / MODEL_NAME, progress, row)
            write_metrics(self.run, progress.history)
        # The state is written last, so that all files it refers to exist.
        self._save_state()

    def _exchange(self, scores: Mapping[str, Tensor], part: Part) -> dict[str, Tensor]:
        """Return the scores of the whole batch; hear of the clock, and of requests to stop."""
        asked, elapsed = self.stop_request.signal is not None, time.perf_counter() - self.started
        return self.exchange(scores, part, asked=asked, elapsed=elapsed)

    def _stop_if_asked(self) -> None:
        """Keep the state and raise the error, if a signal asked this or another process to stop."""
        alone = self.fabric.world_size == 1
        if not (self.stop_request.signal is not None if alone else self.exchange.asked):
            return
        self._save_state()
        self.fabric.barrier()  # none ends, and with it all, before rank 0 has saved
        raise StoppedBySignalError(
            f"{self.run}: stopped by {self.stop_request.signal or 'a signal to another process'} after step "
            f"{self.progress.step}; the state is saved; repeat the command to continue"
        )

    def _save_state(self) -> None:
        """Keep the state for resuming, unless a loss or a weight is NaN or infinite."""
        self.exchange = Exchange(self.fabric.global_rank, self.progress.seconds)
        self.saved = time.perf_counter()
        self.progress.seconds = self.saved - self.started
        if not self.fabric.is_global_zero:
            return
        weights = self.unwrapped.state_dict().values()
        finite = torch.stack([tensor.isfinite().all() for tensor in weights]).all()
        self._check(self.epoch.means() | {"weights": 0.0 if finite else math.nan})
        record = {
            "progress": asdict(self.progress),
            "epoch": self.epoch.counters(),
            "batch_size": self.config.batch_size,
            "precision": self.scaling.precision,
            "scaling": self.scaling.state_dict(),
            **self.identity,
        }
        write_state(self.run, State(state_tensors(self.unwrapped, self.optimizer, self.epoch), record))

    def _fraction(self) -> float:
        """Completed fraction of the training, by steps or by time; the same on every process."""
        fraction = self.progress.step / self.steps
        if self.config.max_minutes:
            alone = self.fabric.world_size == 1
            elapsed = time.perf_counter() - self.started if alone else self.exchange.elapsed
            fraction = max(fraction, elapsed / (60 * self.config.max_minutes))
        return min(1.0, fraction)


def _optimizer(config: LoopConfig, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    kind = torch.optim.Adam if config.optimizer == "adam" else torch.optim.AdamW
    return kind(groups, lr=config.learning_rate, betas=config.betas, weight_decay=config.weight_decay)


def _learning_rate(config: LoopConfig, fraction: float) -> float:
    """Linear warm-up, then half a cosine to 0 (Loshchilov & Hutter 2017), or constant."""
    rate = config.learning_rate
    if fraction < config.warmup:
        return rate * max(fraction / config.warmup, 1e-3)
    if config.schedule == "constant":
        return rate
    return rate * 0.5 * (1 + math.cos(math.pi * (fraction - config.warmup) / (1 - config.warmup)))
