"""The training loop: any task, one optimizer per objective, averaged weights, exact resume."""

from __future__ import annotations

import json
import logging
import math
import platform
import random
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import is_dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from . import checkpoints, distributed
from .batches import BatchQueue, clip_order
from .config import Recipe
from .ema import Ema
from .metrics import Meter, MetricsFile, draw_curves, read_rows
from .revision import git_revision
from .sample import Sampler, sample_captions, write_samples
from .sections import Optimization
from .settings import RecipeError, to_table, to_toml
from .task import Batch, Losses, Task
from .tracking import Tracker, open_trackers

log = logging.getLogger(__name__)
FORMAT = 1
SAMPLE_STEPS, SAMPLE_GUIDANCE = 50, 3.0


class TrainingError(RuntimeError):
    """Training cannot go on; the message says at which step and why."""


def learning_rate(settings: Optimization, step: int, steps: int) -> float:
    """The rate of step 0..steps-1: linear warm-up, then constant or a cosine down to the final fraction."""
    if step < settings.warmup_steps:
        return settings.learning_rate * (step + 1) / settings.warmup_steps
    progress = (step - settings.warmup_steps) / max(1, steps - settings.warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return settings.learning_rate * (settings.final_fraction + (1 - settings.final_fraction) * cosine)


def seed_everything(seed: int) -> None:
    """Seed the generators of python, numpy and torch."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def uses_bf16(precision: str, device: torch.device) -> bool:
    """Whether forward passes run in mixed precision with bfloat16."""
    return precision == "bf16" or (precision == "auto" and device.type == "cuda")


class Trainer:
    """Runs a task in a folder. State lives in the folder's checkpoints, so a new Trainer can `restore` and go on."""

    def __init__(self, recipe: Recipe, task: Task, folder: Path, device: torch.device) -> None:
        self.recipe, self.task, self.folder, self.device = recipe, task, folder, device
        settings = recipe.optimization
        self._check_batch()
        self.ema = self._prepare_networks()
        self.parameters = task.parameters()
        self.optimizers = {
            name: torch.optim.AdamW(
                parameters, settings.learning_rate, settings.betas, weight_decay=settings.weight_decay, fused=True
            )
            for name, parameters in self.parameters.items()
        }
        self.meter = Meter()
        self.step = 0
        self.clips_seen = 0
        self.seconds = 0.0
        self.mixed = uses_bf16(recipe.run.precision, device)
        self._noted: int | None = None
        self._signal: int | None = None
        self._between_steps = True

    def _check_batch(self) -> None:
        """Raise RecipeError when the processes cannot share a batch."""
        found, processes = self.recipe.run.batch_size, distributed.size()
        if found % processes:
            raise RecipeError(f"run.batch_size: found {found}, {processes} processes share a multiple of {processes}")

    def _prepare_networks(self) -> Ema:
        """Averages of the networks; both as the processes share them."""
        task, run = self.task, self.recipe.run
        distributed.start_alike((task.networks | task.companions).values())
        for companion in task.companions.values():
            distributed.normalize_together(companion, self.device)
        ema = Ema(task.networks, run.ema_decay)
        if run.activation_checkpointing:
            for network in task.networks.values():
                distributed.compute_anew(network)
        self.shared_out = run.sharded and distributed.size() > 1
        if self.shared_out:
            for network in (*task.networks.values(), *ema.networks.values()):
                distributed.share_out(network, self.device)
        return ema

    def shared_out_tensors(self) -> dict[distributed.Keys, Tensor]:
        """Tensors of which this process has a part, by where they lie in a checkpoint."""
        optimizers = {
            name: {"state": {number: dict.fromkeys(("exp_avg", "exp_avg_sq"), weight)
                             for number, weight in enumerate(weights)}}
            for name, weights in self.parameters.items()
        }  # fmt: skip
        tree = {
            "networks": {name: network.state_dict() for name, network in self.task.networks.items()},
            "ema": self.ema.state_dict(),
            "optimizers": optimizers,
        }
        return {keys: leaf for keys, leaf in distributed.leaves(tree) if distributed.is_shared_out(leaf)}

    def restore(self, state: checkpoints.State) -> None:
        """Continue from a checkpoint's state, in which `shared_out_tensors` are this process's parts."""
        for name, network in (self.task.networks | self.task.companions).items():
            network.load_state_dict(state["networks"][name])
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
        self.ema.load_state_dict(state["ema"])
        self.task.facts = state["facts"]
        if distributed.is_first():
            self.meter.load_state_dict(state["meter"], self.device)
        self.step, self.clips_seen, self.seconds = state["step"], state["clips_seen"], state["seconds"]
        checkpoints.set_random_state(state["random"], self.device)

    def run(self, max_steps: int | None = None) -> int | None:
        """Train to the recipe's end or for `max_steps` and write a checkpoint; returns the signal that ended it early.

        Raises TrainingError when a loss or a weight is not finite. After any other error between two steps of a single
        process a checkpoint is written before it is raised again; of several, one that fails ends the others, which
        torchrun starts again from the last checkpoint.
        """
        settings = self.recipe.run
        first, last = self.step, settings.steps if max_steps is None else min(settings.steps, self.step + max_steps)
        self._open_records()
        clips = clip_order(self.task, self.recipe.seed)
        queue = BatchQueue(self.task.batch, clips, settings.batch_size, self.clips_seen)
        bar = tqdm(total=settings.steps, initial=self.step, desc=self.recipe.task, dynamic_ncols=True,
                   disable=not distributed.is_first())  # fmt: skip
        self._mark = (time.perf_counter(), self.clips_seen)
        try:
            with self._catch_signals():
                while self.step < last and self._signal is None:
                    self._train_step(queue)
                    self._signal = distributed.largest(self._noted or 0) or None
                    bar.update()
                    if self.step % settings.log_every == 0:
                        bar.set_postfix(self._log())
                    if self.step % settings.checkpoint_every == 0 and self.step < last:
                        self._finish_interval()
                if self._signal is None:
                    self._finish_interval()
                else:
                    self.save()
        except TrainingError:
            raise
        except Exception:
            if self._between_steps and self.step > first and distributed.size() == 1:
                self._rescue()
            raise
        finally:
            queue.close()
            bar.close()
            for tracker in self.trackers:
                tracker.close()
        return self._signal

    def save(self) -> Path:
        """Write a checkpoint of everything; returns its path. Raises TrainingError instead when it would be useless."""
        self.meter.gather()
        self._require_finite()
        networks = self.task.networks | self.task.companions
        state = {
            "format": FORMAT,
            "recipe": to_table(self.recipe),
            "facts": self.task.facts,
            "configs": {name: _plain_config(network) for name, network in self.task.networks.items()},
            "step": self.step,
            "clips_seen": self.clips_seen,
            "seconds": self.seconds,
            "networks": {name: network.state_dict() for name, network in networks.items()},
            "ema": self.ema.state_dict(),
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            "meter": self.meter.state_dict(),
            "random": checkpoints.random_state(self.device),
        }
        return checkpoints.save(self.folder / "checkpoints", self.step, state, self.recipe.run.keep_checkpoints)

    def _train_step(self, queue: BatchQueue) -> None:
        rate = learning_rate(self.recipe.optimization, self.step, self.recipe.run.steps)
        for optimizer in self.optimizers.values():
            optimizer.param_groups[0]["lr"] = rate
            optimizer.zero_grad()
        # Data first: a clip that cannot be read leaves the state between two steps.
        batches = [queue.take() for _ in range(self.recipe.run.accumulation)]
        with self._undone_on_error():
            objectives = self._gradients(batches)
        self._between_steps = False
        for name in objectives:
            if self.recipe.optimization.gradient_clip:
                norm = nn.utils.clip_grad_norm_(self.parameters[name], self.recipe.optimization.gradient_clip)
                self.meter.add({f"{name}_gradient_norm": distributed.whole(norm)})
            self.optimizers[name].step()
        self.task.after_step()
        self.ema.update(self.task.networks)
        self.step += 1
        self.clips_seen = queue.position
        self._between_steps = True

    def _gradients(self, batches: list[Batch]) -> list[str]:
        """Add up the gradients of one step; returns the objectives that have any."""
        for number, batch in enumerate(batches):
            before = checkpoints.random_state(self.device)
            batch = tuple(tensor.to(self.device, non_blocking=True) for tensor in batch)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.mixed):
                losses = self.task.losses(batch, self.step)
            self._keep_if_not_finite(losses, batch, before, number)
            for name, objective in losses.objectives.items():
                # What is shared out is put together in the forward pass: the graph ends in other tensors.
                inputs = None if self.shared_out else self.parameters[name]
                (objective / len(batches)).backward(inputs=inputs)
            self.meter.add(losses.metrics)
        for name in losses.objectives:
            distributed.average_gradients(self.parameters[name])
        self.task.before_step()
        return list(losses.objectives)

    def _keep_if_not_finite(self, losses: Losses, batch: Batch, before: checkpoints.State, number: int) -> None:
        """Raise TrainingError when a loss of any process is not finite; those with such a loss write their batch."""
        values = losses.metrics | losses.objectives
        finite = torch.stack([value.detach().float().reshape(()) for value in values.values()]).isfinite()
        broken = [name for name, good in zip(values, finite.tolist(), strict=True) if not good]
        if not distributed.any_of(bool(broken)):
            return
        path = self.folder / f"not-finite-step-{self.step + 1}-process-{distributed.rank()}.pt"
        if broken:
            state = {"step": self.step, "pass": number, "batch": batch, "random": before}
            torch.save(state | {"values": {name: value.detach() for name, value in values.items()}}, path)
        distributed.wait()
        found = f"{_listed(broken)} not finite in step {self.step + 1}; the batch is in {path}"
        raise TrainingError(
            f"{found if broken else f'losses of another process not finite in step {self.step + 1}'}. Weights are "
            "as they were before it. Look at the batch; or continue from the last checkpoint with a lower learning rate"
        )

    @contextmanager
    def _undone_on_error(self) -> Iterator[None]:
        """Put back random states, running means and buffers when what is inside fails: weights do not change there."""
        random_state, meter = checkpoints.random_state(self.device), self.meter.state_dict()
        networks = (self.task.networks | self.task.companions).values()
        buffers = [(buffer, buffer.clone()) for network in networks for buffer in network.buffers()]
        try:
            yield
        except BaseException:
            checkpoints.set_random_state(random_state, self.device)
            self.meter.load_state_dict(meter, self.device)
            for buffer, before in buffers:
                buffer.copy_(before)
            raise

    def _require_finite(self) -> None:
        """Raise TrainingError when a loss since the last row or a weight is not finite."""
        broken = [name for name, total in self.meter.totals.items() if not total.isfinite()]
        for role, network in (self.task.networks | self.task.companions).items():
            weights = ((name, distributed.local(weight)) for name, weight in network.named_parameters())
            broken += [f"{role}.{name}" for name, weight in weights if not weight.isfinite().all()]
        if distributed.any_of(bool(broken)):
            broken = broken or ["weights of another process"]
            raise TrainingError(
                f"{_listed(broken)} not finite at step {self.step}; no checkpoint was written. "
                "Continue from the last one with a lower learning rate"
            )

    def _rescue(self) -> None:
        """Write a checkpoint because of an error, which is more important than one of the writing."""
        try:
            log.error("stopped by an error; everything up to step %d is in %s", self.step, self.save())
        except Exception as error:
            log.error("no checkpoint of step %d could be written: %s", self.step, error)

    def _log(self) -> dict[str, str]:
        """Append a row of means over all processes; returns what the progress bar shows."""
        self.meter.gather()
        means = self.meter.means()
        if not distributed.is_first():
            return {}
        broken = [name for name, value in means.items() if not math.isfinite(value)]
        if broken:
            raise TrainingError(f"{', '.join(broken)} not finite before step {self.step}; lower the learning rate")
        then, clips_then = self._mark
        self._mark = (time.perf_counter(), self.clips_seen)
        elapsed = self._mark[0] - then
        self.seconds += elapsed
        clips_per_second = (self.clips_seen - clips_then) / elapsed
        rate = learning_rate(self.recipe.optimization, self.step - 1, self.recipe.run.steps)
        row = {"step": self.step, **means, "learning_rate": rate, "clips_per_second": round(clips_per_second, 2)}
        self._record(row | {"clips": self.clips_seen, "seconds": round(self.seconds, 3)})
        return {"loss": f"{means['loss']:.4g}", "clips/s": f"{clips_per_second:.1f}"}

    def _finish_interval(self) -> None:
        """Validate the averaged weights, write a checkpoint, draw the curves, make samples."""
        started = time.perf_counter()
        rows = read_rows(self.folder / "metrics.jsonl") if distributed.is_first() else []
        known = any(row["step"] == self.step and any(name.startswith("validation_") for name in row) for row in rows)
        if not distributed.any_of(known):
            with torch.no_grad():
                measures = {f"validation_{name}": x for name, x in self.task.validate(self.ema.networks).items()}
            if measures and distributed.is_first():
                rows.append({"step": self.step, **measures})
                self._record(rows[-1])
                log.info("step %d: %s", self.step, ", ".join(f"{name} {x:.5g}" for name, x in measures.items()))
        path = self.save()
        if rows:
            draw_curves(rows, self.folder / "loss.png")
        if self.recipe.run.samples and distributed.is_first():
            self._make_samples(path)
        distributed.wait()
        self._mark = (self._mark[0] + time.perf_counter() - started, self._mark[1])

    def _make_samples(self, checkpoint: Path) -> None:
        """Videos by a checkpoint's averaged weights; building the networks draws numbers, which are not the run's."""
        before = checkpoints.random_state(self.device)
        sampler, out = Sampler(checkpoint, self.device), self.folder / "samples" / checkpoint.stem
        write_samples(sampler, self._captions, out, SAMPLE_STEPS, SAMPLE_GUIDANCE, self.recipe.seed)
        checkpoints.set_random_state(before, self.device)

    def _record(self, row: dict[str, Any]) -> None:
        """Append a row to metrics.jsonl and show it to the trackers."""
        self.metrics.append(row)
        for tracker in self.trackers:
            tracker.scalars(row["step"], {name: value for name, value in row.items() if name != "step"})

    def _open_records(self) -> None:
        """What is written beside checkpoints: by the first process alone."""
        self.trackers: list[Tracker] = []
        if distributed.is_first():
            self.metrics = MetricsFile(self.folder / "metrics.jsonl", self.step)
            self._write_description()
            self.trackers = open_trackers(self.recipe.run.tracker, self.folder, self.step)
            self._captions = sample_captions(self.recipe) if self.recipe.run.samples else []

    def _write_description(self) -> None:
        (self.folder / "recipe.toml").write_text(to_toml(to_table(self.recipe)), encoding="utf-8")
        description = {
            "revision": git_revision(),
            "torch": torch.__version__,
            "python": platform.python_version(),
            "device": torch.cuda.get_device_name() if self.device.type == "cuda" else platform.machine(),
            "threads": torch.get_num_threads(),
            "parameters": {name: sum(p.numel() for p in network.parameters())
                           for name, network in (self.task.networks | self.task.companions).items()},
        }  # fmt: skip
        (self.folder / "run.json").write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")

    @contextmanager
    def _catch_signals(self) -> Iterator[None]:
        """Finish the step and write a checkpoint at the first SIGINT or SIGTERM; the second one ends at once."""

        def note(number: int, frame: FrameType | None) -> None:
            self._noted = number
            # torchrun passes on what a terminal has sent to all processes already, and waits before it kills.
            if distributed.size() == 1:
                signal.signal(number, previous[number])

        previous: dict[int, Any] = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            for number in previous:
                signal.signal(number, note)
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


def _listed(names: list[str]) -> str:
    """The first three names, and how many more there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _plain_config(network: nn.Module) -> dict[str, Any]:
    config = network.config
    if not is_dataclass(config) or isinstance(config, type):
        raise TypeError(f"{type(network).__name__}.config is {config!r}, expected a dataclass")
    return to_table(config)
