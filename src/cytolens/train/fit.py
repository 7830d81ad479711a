"""One training: Lightning drives, this file says with what.

A run folder holds ``settings.json``, ``checkpoints/`` (for resuming; read with the restricted
reader), ``history.parquet`` and its plot, and at the end ``weights.safetensors``: the averaged
weights of the epoch with the best score on the tuning part. ``finished.json`` is written last.
"""

from __future__ import annotations

import json
import logging
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint, RichProgressBar
from torch import Tensor, nn

from cytolens.problems import SettingError, written
from cytolens.train.batches import EpochSampler, Samples, loader
from cytolens.train.history import History, read
from cytolens.train.optimiser import RunningAverage
from cytolens.train.settings import Hardware, Optimise


@dataclass(frozen=True, slots=True)
class Plan:
    """What a task gives to `fit`.

    Attributes:
        module: the module to train; its network is `module.network`.
        samples: the training samples, by ticket.
        weights: how often each sample is drawn, relative; None: once per epoch.
        collate: joins samples into a batch.
        tuning: the inputs of the tuning part, one batch each.
        sampler: makes the sampler for a process (rank, world), where epochs are not simply all samples once; its
            length may change from epoch to epoch.
    """

    module: LightningModule
    samples: Samples
    weights: Any
    collate: Callable[[list[Any]], Any]
    tuning: Sequence[Any]
    sampler: Callable[[int, int], EpochSampler] | None = None


class _Batches(LightningDataModule):
    def __init__(self, plan: Plan, seed: int, optimise: Optimise, hardware: Hardware, epochs_done: int) -> None:
        super().__init__()
        self.plan, self.seed, self.optimise, self.hardware = plan, seed, optimise, hardware
        self.epochs_done = epochs_done

    def train_dataloader(self) -> Any:
        trainer = self.trainer
        assert trainer is not None
        rank, world = trainer.global_rank, trainer.world_size
        if self.plan.sampler is not None:
            sampler = self.plan.sampler(rank, world)
        else:
            sampler = EpochSampler(len(self.plan.samples), self.seed, self.plan.weights, rank=rank, world=world)
        # Workers begin to load before Lightning knows itself where a resumed run stands.
        sampler.set_epoch(max(self.epochs_done, trainer.current_epoch))
        batch = max(1, self.optimise.batch // trainer.world_size)
        return loader(self.plan.samples, sampler, batch, self.hardware.workers, self.plan.collate)

    def val_dataloader(self) -> Any:
        from torch.utils.data import DataLoader

        return DataLoader(self.plan.tuning, batch_size=None, num_workers=0, collate_fn=_as_is)  # type: ignore[arg-type]

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        if self.trainer is not None and self.trainer.training:
            images, targets = batch
            moved = targets.to(device) if isinstance(targets, Tensor) else targets
            return images.to(device, non_blocking=True), moved
        return batch


def _as_is(item: Any) -> Any:
    return item


def precision(hardware: Hardware) -> str:
    """Lightning's name of the arithmetic to use."""
    if hardware.precision != "auto":
        return hardware.precision
    if hardware.accelerator != "cpu" and torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported() else "16-mixed"
    return "bf16-mixed" if torch.ops.mkldnn._is_mkldnn_bf16_supported() else "32-true"


def fit(
    plan: Plan, settings: Any, run: Path, *, resume: bool, progress: bool | None = None, notify: Callable[[str], None]
) -> nn.Module:
    """Train, and return the network with the weights of the best epoch.

    Args:
        plan: what to train on what.
        settings: the task's settings; `seed`, `optimise` and `hardware` are read here.
        run: the run folder.
        resume: go on where an earlier call was stopped.
        progress: show a progress bar; None: where standard error is a terminal.
        notify: is told, in a sentence, what a user should know.

    Raises:
        SettingError: the folder holds another run, or one that `resume` was not asked for.
    """
    run = Path(run)
    optimise, hardware = settings.optimise, settings.hardware
    last = _prepare(run, settings, resume)
    seed_everything(settings.seed, verbose=False)
    if hardware.threads:
        torch.set_num_threads(hardware.threads)
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    callbacks: list[Callback] = [History(run)]
    if optimise.average_decay:
        callbacks.append(RunningAverage(optimise.average_decay, optimise.average_ramp))
    if optimise.patience_epochs:
        callbacks.append(EarlyStopping("score", mode="max", patience=optimise.patience_epochs))
    if progress if progress is not None else sys.stderr.isatty():
        callbacks.append(RichProgressBar(console_kwargs={"stderr": True}))
    # Two keepers: the "last" of a keeper with a score is written only when the score was a new best.
    checkpoints: Any = {
        "dirpath": run / "checkpoints", "save_on_train_epoch_end": True, "enable_version_counter": False
    }  # fmt: skip
    callbacks.append(ModelCheckpoint(filename="best", monitor="score", mode="max", **checkpoints))
    callbacks.append(ModelCheckpoint(filename="last", **checkpoints))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message=".*number of training batches.*")
        warnings.filterwarnings("ignore", message=".*GPU available but not used.*")
        warnings.filterwarnings("ignore", message=".*exists and is not empty.*")
        warnings.filterwarnings("ignore", message=".*treespec, LeafSpec.*")
        warnings.filterwarnings("ignore", message=".*in eval mode at the start.*")  # those that are frozen
        trainer = Trainer(
            accelerator=hardware.accelerator,
            devices=hardware.devices,
            precision=precision(hardware),  # type: ignore[arg-type]
            max_epochs=optimise.epochs,
            gradient_clip_val=optimise.clip_norm or None,
            callbacks=callbacks,
            logger=False,
            enable_model_summary=False,
            enable_progress_bar=any(isinstance(c, RichProgressBar) for c in callbacks),
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            reload_dataloaders_every_n_epochs=0 if plan.sampler is None else 1,  # epochs may differ in length
            default_root_dir=run,
        )
        if hardware.channels_last:
            plan.module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        epochs_done = 0 if last is None else _epochs_done(last)
        batches = _Batches(plan, settings.seed, optimise, hardware, epochs_done)
        if last is not None:
            notify(f"resuming after epoch {epochs_done}")
        try:
            trainer.fit(plan.module, batches, ckpt_path=last, weights_only=True)
        except SystemExit:  # Lightning's way of ending after Ctrl-C, with further ones switched off
            if not trainer.interrupted:
                raise
            signal.signal(signal.SIGINT, signal.default_int_handler)
            raise KeyboardInterrupt from None
    return _finish(plan.module, run, trainer, notify)


def check_run(run: Path, settings: Any, resume: bool) -> None:
    """See that a run folder is free, or holds the run that is to be resumed.

    Raises:
        SettingError: it holds another run, or one that `resume` was not asked for.
    """
    file = run / "settings.json"
    if not file.exists():
        return
    if not resume:
        raise SettingError(f"{run} already holds a run. Use --resume to go on with it, or another --out.")
    before, data = json.loads(file.read_text(encoding="utf-8")), settings.model_dump(mode="json")
    if before != data:
        changed = sorted(key for key in data.keys() | before.keys() if data.get(key) != before.get(key))
        raise SettingError(f"{run} was started with other settings ({', '.join(changed)}); resume with the same ones")


def _prepare(run: Path, settings: Any, resume: bool) -> Path | None:
    """Check the run folder, write the settings, and say which checkpoint to go on from."""
    check_run(run, settings, resume)
    run.mkdir(parents=True, exist_ok=True)
    with written(run / "settings.json") as part:
        part.write_text(json.dumps(settings.model_dump(mode="json"), indent=2) + "\n", encoding="utf-8")
    last = run / "checkpoints" / "last.ckpt"
    return last if resume and last.exists() else None


def _epochs_done(checkpoint: Path) -> int:
    """How many epochs a checkpoint has behind it; raises SettingError where it cannot be read safely."""
    try:
        content = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        raise SettingError(
            f"{checkpoint}: is damaged, or holds more than a training leaves there; it is not loaded. "
            "Train anew, in another folder."
        ) from error
    return int(content["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"])


def best_state(run: Path) -> dict[str, Tensor]:
    """The network's weights of the best epoch, from the run's checkpoint, read with the restricted reader."""
    content = torch.load(run / "checkpoints" / "best.ckpt", map_location="cpu", weights_only=True)
    prefix = "network."
    return {k.removeprefix(prefix): v for k, v in content["state_dict"].items() if k.startswith(prefix)}


def _finish(module: LightningModule, run: Path, trainer: Trainer, notify: Callable[[str], None]) -> nn.Module:
    from safetensors.torch import save_file

    network: nn.Module = module.network  # type: ignore[assignment]
    network.load_state_dict(best_state(run))
    network.eval()
    history = read(run / "history.parquet")
    best = history.sort(pl.col("score").fill_nan(-1), descending=True, maintain_order=True).row(0, named=True)
    if trainer.is_global_zero:
        with written(run / "weights.safetensors") as part:
            save_file({name: value.contiguous() for name, value in network.state_dict().items()}, part)
        summary = {
            "epochs": len(history),
            "best_epoch": best["epoch"],
            "score": best["score"],
            "seconds": history["seconds"].sum(),
        }
        with written(run / "finished.json") as part:
            part.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    notify(f"best epoch {best['epoch']} of {len(history)}, score {best['score']:.4f} on the tuning part")
    return network
