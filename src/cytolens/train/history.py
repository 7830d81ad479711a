"""What happened in a training: one row per epoch, on disk after every epoch, and its plot."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import polars as pl
from lightning.pytorch import Callback, LightningModule, Trainer

from cytolens.problems import written


class History(Callback):
    """Writes ``history.parquet`` and ``history.png`` into the run folder after every epoch.

    A resumed run continues the table; rows of epochs that are run again are replaced.
    """

    def __init__(self, run: Path) -> None:
        # Loaded now and not after the first epoch: its compiled parts make an ImportError of a Ctrl-C that meets them.
        import matplotlib.backends.backend_agg
        import matplotlib.figure  # noqa: F401

        self.path = Path(run) / "history.parquet"
        self._started = self._learnt = time.monotonic()
        self._images = 0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock of the epoch."""
        self._started = self._learnt = time.monotonic()
        self._images = 0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the images learnt from; scoring the tuning part is not counted into their time."""
        self._images += len(batch[0])
        self._learnt = time.monotonic()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Append the epoch's row and redraw the plot."""
        if not trainer.is_global_zero:
            return
        seconds = time.monotonic() - self._started
        row: dict[str, Any] = {"epoch": trainer.current_epoch + 1, "seconds": seconds}
        row["images_per_s"] = self._images / max(self._learnt - self._started, 1e-9)
        row["learning_rate"] = float(trainer.optimizers[0].param_groups[0]["lr"])
        for name, value in sorted(trainer.callback_metrics.items()):
            if name != "loss_now":
                row[name] = float(value)
        past = read(self.path)
        if len(past):
            past = past.filter(pl.col("epoch") < row["epoch"])
        table = pl.concat([past, pl.DataFrame([row])], how="diagonal_relaxed") if len(past) else pl.DataFrame([row])
        with written(self.path) as part:
            table.write_parquet(part)
        with written(self.path.with_suffix(".png")) as part:
            part.write_bytes(plot(table))


def read(path: Path) -> pl.DataFrame:
    """The history so far; empty where there is none."""
    return pl.read_parquet(path) if Path(path).exists() else pl.DataFrame()


def plot(table: pl.DataFrame) -> bytes:
    """The history as a PNG: losses at the left, scores at the right, the best epoch marked."""
    import io

    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    epochs = table["epoch"]
    for name in table.columns:
        if name.startswith("loss"):
            left.plot(epochs, table[name], label=name.replace("_", " "), lw=2.2 if name == "loss" else 1)
        elif name not in ("epoch", "seconds", "images_per_s", "learning_rate"):
            right.plot(epochs, table[name], label=name.replace("_", " "), lw=2.2 if name == "score" else 1)
    left.set(xlabel="epoch", ylabel="training loss", yscale="log")
    right.set(xlabel="epoch", ylabel="score on the tuning part")
    if "score" in table.columns and table["score"].drop_nulls().len():
        best = table.row(int(table["score"].arg_max() or 0), named=True)
        right.axvline(best["epoch"], color="0.6", lw=1, ls=":")
        right.set_title(f"best: epoch {best['epoch']}, score {best['score']:.4f}", fontsize=10)
    for axes in (left, right):
        axes.grid(alpha=0.25)
        axes.legend(fontsize=8, frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()
