"""The training loop: rounds of epochs of steps, resumable at every one of them.

::

    round r:  begin_round (relabel) -> checkpoint -> steps ... -> checkpoint
    step:     batch -> prepare -> encoders -> objective.loss -> backward -> optimizer

What a step computes is a function of the state at its beginning and of its number: samples,
windows, augmentations and dropout are drawn from the seed and the position. A checkpoint is
therefore the parameters, the optimizer's state, what callbacks and trackers remember, and a few
integers.

Several ranks (`mmssl.training.distributed`) go through the same steps, each with its part of every
batch, and hold the same parameters. The main one writes; where all must do the same, as when one
is asked to stop, they decide together at the end of a step.
"""

import math
import time
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mmssl.contracts import (
    Batch,
    Callback,
    Dataset,
    Losses,
    Modality,
    Objective,
    Split,
    Tracker,
)
from mmssl.data import timing
from mmssl.data.draws import derive_seed
from mmssl.data.loading import (
    ClipReader,
    Loaded,
    LoaderSettings,
    Part,
    ordered_batches,
    training_batches,
)
from mmssl.data.sampling import Sampler
from mmssl.data.skipped import Lacking, Skipped
from mmssl.errors import UserError
from mmssl.training import checkpoints, distributed
from mmssl.training.batch_norm import synchronise
from mmssl.training.callbacks import Callbacks, Lent
from mmssl.training.encoders import Encoders, save_weights
from mmssl.training.features import FeatureStream, autocast
from mmssl.training.interruption import Interrupted, stop_requests
from mmssl.training.log import Log
from mmssl.training.network import Network
from mmssl.training.progress import Advance, Progress
from mmssl.training.rounds import TrainingRound
from mmssl.training.settings import RoundPlan, Settings, State, grouped, saturated


def _digest(where: str, data: Dataset) -> str:
    """Of a dataset, whose first samples are asked for here: a mistake says whose they are."""
    try:
        return data.digest()
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


class Pretraining:
    """Trains encoders and objective in a run folder, from its newest checkpoint on.

    Args:
        folder: the run's.
        encoders: as initialised.
        objective: built for the encoders' dimensions.
        modalities: the recipe's.
        train: the dataset.
        validation: clips for the pseudo-label loss after each epoch, or None.
        plan: how each round trains, by its number.
        settings: the rest of the recipe's training block.
        loader: how batches are loaded.
        device: where to train.
        trackers: where the log goes besides ``log.jsonl``, by names for their states.
        progress: who watches.
        callbacks: what else happens, by names for their states.
    """

    def __init__(
        self,
        *,
        folder: Path,
        encoders: Encoders,
        objective: Objective,
        modalities: Mapping[str, Modality],
        train: Dataset,
        validation: Dataset | None,
        plan: Callable[[int], RoundPlan],
        settings: Settings,
        loader: LoaderSettings,
        device: torch.device,
        trackers: Mapping[str, Tracker],
        progress: Progress,
        callbacks: Mapping[str, Callback] = MappingProxyType({}),
    ) -> None:
        self.folder = folder
        self.encoders = encoders.to(device)
        if settings.freeze_encoders:
            self.encoders.requires_grad_(False)
        self.objective = objective.to(device)
        self.modalities = modalities
        self.datasets: dict[Split, Dataset] = {"train": train}
        if validation is not None:
            self.datasets["validation"] = validation
        #: What messages call them: where a recipe names them.
        self._where: dict[Split, str] = {split: f"data.{split}" for split in self.datasets}
        self.digests = {
            str(split): _digest(self._where[split], data) for split, data in self.datasets.items()
        }
        self.plan = plan
        self.settings = settings
        self.loader = loader
        self.device = device
        self.trackers = trackers
        self.progress = progress
        self._components = callbacks
        self.state = State()
        self._frozen: list[nn.Parameter] = []
        self.optimizer = self._new_optimizer()
        self.scaler = torch.amp.GradScaler(device.type, enabled=settings.precision == "fp16")
        for part in (*self.encoders.modules(), *self.objective.modules()):  # also nested ones
            if isinstance(part, Encoders):
                part.together = settings.sync_batch_norm
        self._network = Network(self.encoders, self.objective, modalities, settings.channels_last)
        self._parallel: nn.Module = self._network
        self._part = Part(distributed.rank(), distributed.size(), settings.accumulate)
        self.skipped = Skipped(
            folder / "skipped.jsonl",
            {split: len(dataset) for split, dataset in self.datasets.items()},
            settings.max_bad,
            writes=distributed.is_main(),
        )
        self._lacking = Lacking(progress.say)
        self.stream = FeatureStream(
            encoders=self.encoders,
            modalities=modalities,
            device=device,
            precision=settings.precision,
            batch_size=settings.batch_size // settings.accumulate // distributed.size(),
            settings=loader,
            seed=settings.seed,
            unreadable=self.skipped,
            lacking=self._lacking,
            channels_last=settings.channels_last,
            where=self._where,
        )

    def run(self) -> None:
        """Train until the last round is done.

        Raises:
            Interrupted: a signal came; the state is saved.
            UserError: the loss is not finite, too many files are unreadable, or a tracker failed.
        """
        saved = self._newest_checkpoint()
        if saved is not None and saved["data"] != self.digests:
            raise UserError(
                f"the data of {self.folder} have changed since it began, and pseudo-labels are "
                "kept by row: restore them, or start under another name"
            )
        if saved is not None:
            self.state = State(**saved["state"])
            self.encoders.load_state_dict(saved["encoders"])
            self.objective.load_state_dict(saved["objective"])
            self.optimizer.load_state_dict(saved["optimizer"])
            self.scaler.load_state_dict(saved["scaler"])
        self.log = Log(
            self.folder if distributed.is_main() else None,
            self.trackers,
            length=saved["log_length"] if saved else 0,
            step=self.state.global_step,
            states=saved["trackers"] if saved else {},
            say=self.progress.say,
        )
        self.callbacks = Callbacks(self._components, Lent(self, resumed=saved is not None))
        self._last_saved = time.monotonic()
        try:
            # Closed inside: trackers may take their time, and a scheduler sends its next signal.
            with stop_requests() as self._stop, self.log.closed_on_error():
                if saved is not None:
                    self.callbacks.load_state_dict(saved["callbacks"])
                self.callbacks("on_run_start")
                self.state.finished |= self.objective.rounds == 0
                if saved is None:
                    self._save()
                while not self.state.finished:
                    self._round()
                self._agree_on_statistics()  # each rank goes on with what rank 0 saves
                self.callbacks("on_run_end")
                distributed.maximum([0])  # nothing is saved unless every rank came here
        except RuntimeError as error:
            # Between steps each rank stops by itself, and this one waited for one that did.
            if distributed.is_lost(error) and self._stop.is_set():
                raise self._stop.interrupted() from error
            raise
        self.log.close()
        self.objective.finish()
        if distributed.is_main():
            # The objective first: finished encoders say that both are there.
            save_weights(self.objective, self.folder / "checkpoints" / "objective.safetensors")
            self.encoders.save(self.folder / "checkpoints" / "encoders.safetensors")

    def _newest_checkpoint(self) -> dict[str, Any] | None:
        """The one that rank 0 finds: a shared file system may show others an older one."""
        folder = self.folder / "checkpoints"
        saved: dict[str, Any] | None = None

        def newest() -> int | None:
            nonlocal saved
            saved = checkpoints.load_newest(folder)
            return None if saved is None else int(saved["state"]["global_step"])

        step = distributed.on_main(newest)
        if step is not None and not distributed.is_main():
            saved = checkpoints.load(distributed.shown(checkpoints.path_of(folder, step)))
        return saved

    def _round(self) -> None:
        """One round, or what a checkpoint left of it."""
        state, plan = self.state, self.plan(self.state.round)
        self._agree_on_statistics()
        self._thaw()
        anew = self._begin_round(resumed=state.begun)
        self._tell_skipped()
        if not state.begun:
            if self.settings.restart_optimizer and state.round > 1:
                self.optimizer = self._new_optimizer()
            for parameter in anew:
                self.optimizer.state.pop(parameter, None)
            state.begun = True
            self._save()
        self._freeze()
        steps = self.settings.steps_per_epoch * plan.epochs
        title = f"round {state.round}/{self.objective.rounds}: training"
        self._parallelise()
        with self.progress.task(title, steps, state.step) as advance:
            self._steps(plan, steps, advance)
        self.callbacks("on_round_end")
        state.next_round(self.objective.rounds)
        self._save()

    def _freeze(self) -> None:
        """Take from training what the objective does not train in this round.

        The optimizer holds all parameters, and passes over those without gradient.
        """
        parameters = (
            p
            for part in self.objective.frozen
            for p in (part.parameters() if isinstance(part, nn.Module) else [part])
        )
        self._frozen = [p for p in parameters if p.requires_grad]
        for parameter in self._frozen:
            parameter.requires_grad_(False)
            parameter.grad = None

    def _thaw(self) -> None:
        """Give it back: another round may train it, and optimizers are made of all parameters."""
        for parameter in self._frozen:
            parameter.requires_grad_(True)
        self._frozen = []

    def _begin_round(self, resumed: bool) -> Iterable[nn.Parameter]:
        return self.objective.begin_round(
            TrainingRound(
                number=self.state.round,
                total=self.objective.rounds,
                resumed=resumed,
                clusters=self.folder / "clusters",
                step=self.state.global_step,
                recipe_seed=self.settings.seed,
                device=self.device,
                datasets=self.datasets,
                stream=self.stream,
                log=self.log,
                progress=self.progress,
                stop=self._stop,
            )
        )

    def _parallelise(self) -> None:
        """Average gradients over ranks; anew in each round, for which an objective may change."""
        if distributed.size() > 1:
            if self.settings.sync_batch_norm:
                synchronise(self._network)
            # Convolutions of size 1 with the channel last, whose strides mean nothing.
            warnings.filterwarnings("ignore", message="Grad strides do not match bucket view")
            with warnings.catch_warnings():  # torch 2.14 calls broadcast_buffers otherwise
                warnings.simplefilter("ignore", FutureWarning)
                self._parallel = DistributedDataParallel(
                    self._network,
                    broadcast_buffers=not self.settings.sync_batch_norm,
                    find_unused_parameters=True,  # an objective need not use all in every step
                )

    def _agree_on_statistics(self) -> None:
        """Where each rank normalises for itself, those of rank 0 are measured with and saved."""
        if not self.settings.sync_batch_norm:
            distributed.from_main(self._network.buffers())

    def _tell_skipped(self) -> None:
        """Let every rank know which samples the others found unreadable."""
        pending, self.skipped.pending = self.skipped.pending, []
        for found in distributed.share_objects(pending):
            for split, unreadable in found:
                self.skipped.learn(split, unreadable)

    def _steps(self, plan: RoundPlan, steps: int, advance: Advance) -> None:
        batches = self.batches(steps - self.state.step, self.objective.balanced_over())
        self.train_mode()
        with closing(batches):
            self._train(batches, plan, steps, advance)

    def batches(self, count: int, balanced_over: Sequence[np.ndarray]) -> Generator[Loaded]:
        """The next ``count`` training batches.

        Args:
            count: how many.
            balanced_over: as `Objective.balanced_over` gives it.
        """
        train, seed = self.datasets["train"], self.settings.seed
        sampler = Sampler(len(train), derive_seed(seed, "sampling"), balanced_over, train.storage())
        return training_batches(
            ClipReader(
                train, self.modalities, seed=seed, sampler=sampler, where=self._where["train"]
            ),
            start=self.state.position,
            batch_size=self.settings.batch_size,
            count=count,
            settings=self.loader,
            part=self._part,
        )

    def _train(
        self, batches: Iterator[Loaded], plan: RoundPlan, steps: int, advance: Advance
    ) -> None:
        settings, state = self.settings, self.state
        began = waited = 0.0
        mark, since = time.monotonic(), 0
        while state.step < steps:
            began = time.monotonic()
            loaded = next(batches)
            waited += time.monotonic() - began
            for failure in loaded.unreadable:
                self.skipped("train", failure)
            self._lacking(loaded)
            factor = plan.factor(settings.place(state.step, plan.epochs))
            losses = self.step(loaded.batch, factor)
            state.step += 1
            state.global_step += 1
            state.position += settings.batch_size
            since += 1
            if state.step % settings.log_every == 0 or state.step == steps:
                spent = time.monotonic() - mark
                figures = self._log_step(losses, factor, since, spent, waited)
                mark, since, waited = time.monotonic(), 0, 0.0
                advance(1, **figures)
            else:
                advance(1)
            self.callbacks("on_step_end", losses)
            if state.step % settings.steps_per_epoch == 0 and "validation" in self.datasets:
                self._validate()
                if settings.early_stop and saturated(state.validation, settings.early_stop):
                    self.progress.say(
                        f"round {state.round}: validation loss rose in {settings.early_stop} "
                        f"epochs running; stopped after epoch {len(state.validation)}"
                    )
                    break
            if asked := self._decide(losses):
                raise Interrupted(again=asked > 1)

    def _decide(self, losses: Losses) -> int:
        """At the end of a step, together: save if it is due, and tell what was unreadable.

        Returns:
            What any rank was asked: the largest `StopRequests.level`. One that is asked meanwhile
            says so after the next step.
        """
        own = self._stop.level, len(self.skipped.pending), int(self._save_is_due())
        asked, unreadable, due = distributed.maximum(own)
        if unreadable:
            self._tell_skipped()
        if due or asked:
            self._check_finite(float(distributed.mean(losses.total)))
            self._save(asked)
        return asked

    def step(self, batch: Batch, factor: float) -> Losses:
        """One optimizer step; gradients are averaged over micro-batches.

        Args:
            batch: as it comes from the loader.
            factor: on the peak learning rate.
        """
        settings = self.settings
        rank = distributed.rank()  # whose rows are others, and dropped otherwise
        of_rank = (rank,) if rank else ()
        seed = derive_seed(settings.seed, "step", self.state.global_step, *of_rank)
        # torch.manual_seed asks every backend, and half a millisecond of those that are not there.
        on_cpu = self.device.type == "cpu"
        (torch.default_generator.manual_seed if on_cpu else torch.manual_seed)(seed)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor
        self.optimizer.zero_grad(set_to_none=True)
        sums: dict[str, Tensor] = {}
        total = torch.zeros((), device=self.device)
        parts = batch.chunk(settings.accumulate)
        for number, part in enumerate(parts, start=1):
            with timing.step("transfer"):
                part = part.to(self.device)
            with self._gradients(last=number == len(parts)):
                losses = self._forward(part, augment=True)
                with timing.step("backward"):
                    self.scaler.scale(losses.total / settings.accumulate).backward()
            total += losses.total.detach() / settings.accumulate
            for name, value in losses.parts.items():
                sums[name] = sums.get(name, 0) + value / settings.accumulate
        with timing.step("optimizer"):
            if settings.clip_norm is not None:
                self.scaler.unscale_(self.optimizer)
                trained = [p for group in self.optimizer.param_groups for p in group["params"]]
                nn.utils.clip_grad_norm_(trained, settings.clip_norm)
            self.scaler.step(self.optimizer)
            self.scaler.update()
        return Losses(total, sums)

    def _gradients(self, *, last: bool) -> AbstractContextManager[None]:
        """Ranks average their gradients once a step, after its last micro-batch."""
        if last or not isinstance(self._parallel, DistributedDataParallel):
            return nullcontext()
        return self._parallel.no_sync()

    def _forward(self, batch: Batch, *, augment: bool) -> Losses:
        # DDP prepares for gradients, of which there are none in validation.
        network = self._parallel if augment else self._network
        with autocast(self.device, self.settings.precision):
            losses: Losses = network(batch, augment)
        return losses

    def _validate(self) -> None:
        """The losses on the validation clips, averaged over the samples that each is a mean of."""
        dataset = self.datasets["validation"]
        self._agree_on_statistics()
        where = self._where["validation"]
        reader = ClipReader(dataset, self.modalities, seed=self.settings.seed, where=where)
        self.encoders.eval()
        self.objective.eval()
        sums: dict[str, Tensor] = {}
        weights: dict[str, Tensor] = {}
        loader = ordered_batches(
            reader,
            range(len(dataset)),
            batch_size=self.settings.batch_size // self.settings.accumulate,
            split="validation",
            settings=self.loader,
            part=self._part,
        )
        title = f"round {self.state.round}/{self.objective.rounds}: validation"
        left = len(dataset)
        with closing(loader), self.progress.task(title, left) as advance:
            for loaded in loader:
                for failure in loaded.unreadable:
                    self.skipped("validation", failure)
                # The last few rows, which ranks cannot share, are the same on each of them.
                shared = left >= distributed.size()
                rows = len(loaded.batch) * (distributed.size() if shared else 1)
                left -= rows
                with torch.no_grad(), nullcontext() if shared else distributed.alone():
                    losses = self._forward(loaded.batch.to(self.device), augment=False)
                whole = torch.tensor(float(rows), device=self.device)
                counts = {name: count.double() for name, count in losses.counts.items()}
                if counts:  # samples that lack what a loss needs do not count in its mean
                    whole = torch.stack(list(counts.values())).mean()
                for name, value in {"loss": losses.total, **losses.parts}.items():
                    weight = counts.get(name, whole)
                    sums[name] = sums.get(name, 0) + value.double() * weight
                    weights[name] = weights.get(name, 0) + weight
                advance(rows)
        self.train_mode()
        self._tell_skipped()
        means = {
            name: float(distributed.mean(sums[name]) / weights[name].clamp(min=1e-9))
            for name in sums
        }
        self.state.validation.append(means["loss"])
        self.log.write(
            {
                "kind": "validation",
                "step": self.state.global_step,
                "round": self.state.round,
                **means,
            }
        )

    def train_mode(self) -> None:
        """Encoders and objective as a step wants them."""
        self.encoders.train(not self.settings.freeze_encoders)
        self.objective.train()
        for part in self.objective.frozen:
            if isinstance(part, nn.Module):
                part.eval()

    def _new_optimizer(self) -> torch.optim.Optimizer:
        modules = {"encoders": self.encoders, "objective": self.objective}
        optimizer = self.settings.make_optimizer(grouped(modules, self.settings.groups))
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"] * self.settings.lr_scale
        return optimizer

    def _log_step(
        self, losses: Losses, factor: float, steps: int, spent: float, waited: float
    ) -> dict[str, str]:
        values = [value.detach().double() for value in (losses.total, *losses.parts.values())]
        loss, *parts = distributed.mean(torch.stack(values)).tolist()
        self._check_finite(loss)
        rate = steps * self.settings.batch_size / spent
        self.log.write(
            {
                "kind": "step",
                "step": self.state.global_step,
                "round": self.state.round,
                "epoch": round(self.state.step / self.settings.steps_per_epoch, 4),
                "loss": loss,
                **dict(zip(losses.parts, parts, strict=True)),
                "lr": self.optimizer.param_groups[0]["peak_lr"] * factor,
                "clips_per_second": round(rate, 2),
                "data_wait": round(waited / spent, 4),
            }
        )
        return {
            "loss": f"{loss:.3f}",
            "clips/s": f"{rate:.0f}",
            "waiting for data": f"{waited / spent:.0%}",
        }

    def _check_finite(self, loss: float) -> None:
        if not math.isfinite(loss):
            raise UserError(
                f"the loss is {loss} at round {self.state.round}, step {self.state.step}: "
                "start again under another name (name=...) with a lower training.optimizer.lr or a "
                "longer warm-up"
            )

    def _save_is_due(self) -> bool:
        steps, minutes = self.settings.checkpoint_steps, self.settings.checkpoint_minutes
        if not distributed.is_main():  # whose clock decides
            return False
        if steps and self.state.step % steps == 0:
            return True
        return minutes is not None and time.monotonic() - self._last_saved > 60 * minutes

    def _save(self, asked: int = 0) -> None:
        """Write a checkpoint; what a tracker failed to tell for it is raised when it is there.

        Args:
            asked: what ranks were asked, as `StopRequests.level`: being stopped goes before that.
        """
        errors = self._write() if distributed.is_main() else {}
        path = checkpoints.path_of(self.folder / "checkpoints", self.state.global_step)
        self.callbacks("on_checkpoint", path)
        asked = max(asked, self._stop.level)
        if errors and asked:
            self.log.tell(errors)
            raise Interrupted(again=asked > 1)
        self.log.raise_first(errors)

    def _write(self) -> dict[str, Exception]:
        if not all(bool(p.isfinite().all()) for p in self.encoders.parameters()):
            raise UserError(
                f"parameters are not finite at round {self.state.round}, step {self.state.step}, "
                "and are not saved: start again under another name (name=...) with a lower "
                "training.optimizer.lr"
            )
        trackers, errors = self.log.states()
        checkpoints.save(
            self.folder / "checkpoints",
            {
                "state": asdict(self.state),
                "encoders": self.encoders.state_dict(),
                "objective": self.objective.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "scaler": self.scaler.state_dict(),
                "callbacks": self.callbacks.state_dict(),
                "trackers": trackers,
                "log_length": self.log.length(),
                "data": self.digests,
            },
            step=self.state.global_step,
            keep=self.settings.keep,
        )
        self._last_saved = time.monotonic()
        return errors
