"""What the three-stage ensemble of two region networks gains over the better of them, with a paired interval.

    python recipes/outline-ensemble.py DATASET RUN RUN OUT [VIEWS]

The members were trained on the part "train" of the dataset with the same seed and tuning_share, so they kept the same
images for tuning. There the cleaning of masks is tuned, for each member and for the ensemble alike; the part "val",
which nobody has seen, is scored. Intervals are of pairs: groups of images are drawn with replacement.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np

from cytolens import Bundle, Dataset
from cytolens.evaluate.outline_precision import mean_precision
from cytolens.evaluate.uncertainty import percentile_interval, resampling
from cytolens.images import Images, load_image
from cytolens.masks import iou
from cytolens.predict.region_networks import RegionEnsemble
from cytolens.predict.soft_outlines import write_soft_outlines
from cytolens.run.packing import pack_outliners
from cytolens.run.tune_masks import tune_masks
from cytolens.tasks.mask_cleaning import cleaned
from cytolens.train.batches import tuning_part


def main(data: Path, runs: list[Path], out: Path, views: int) -> None:
    """Tune, score, compare."""
    dataset = Dataset.read(data)
    members = [Bundle.load(run) for run in runs]
    settings = [one.info.training["settings"] for one in members]
    learnt = dataset.part("train")
    kept = [tuning_part(learnt.images.frame, one["tuning_share"], one["seed"]) for one in settings]
    assert all((one == kept[0]).all() for one in kept), "members kept other images for tuning"
    tuning = learnt.of_images(Images(learnt.images.frame.filter(kept[0])))
    val = dataset.part("val")
    output = members[0].info.segment_output.model_copy(update={"views": views})
    packed = pack_outliners(members, out / "ensemble", name="ensemble", output=output)
    scores: dict[str, np.ndarray] = {}
    figures: dict[str, object] = {"tuning_images": len(tuning.images), "val_images": len(val.images), "views": views}
    for name, bundle, parts in [*((m.name, m, [m]) for m in members), ("ensemble", packed, members)]:
        ensemble = RegionEnsemble(parts, output)
        folder = out / f"soft-{name}"
        folder.mkdir(parents=True, exist_ok=True)
        for row in tuning.images.rows():
            soft = ensemble.look(load_image(row["path"]).pixels)
            write_soft_outlines(folder, row["image_id"], soft, bundle.labels.names)
        tuned = tune_masks(bundle, folder, tuning, out / f"tuned-{name}")
        started, values = time.perf_counter(), []
        for row in val.images.rows():
            found = cleaned(ensemble.look(load_image(row["path"]).pixels), bundle.labels, tuned.output)
            truth = val.cells.of_image(row["image_id"]).masks()
            codes = [code for code, counts in zip(found.masks, found.counted, strict=True) if counts]
            values.append(mean_precision(iou(codes, truth, (row["height_px"], row["width_px"]))))
        scores[name] = np.array([value[1] if isinstance(value, tuple) else value for value in values])
        figures[name] = {
            "map": float(scores[name].mean()),
            "s_per_image": (time.perf_counter() - started) / len(values),
        }
    better = max((m.name for m in members), key=lambda name: float(scores[name].mean()))
    drawn = resampling(val.images, 2000, 1)
    gain = scores["ensemble"] - scores[better]
    samples = (drawn.weights @ gain) / drawn.weights.sum(axis=1)
    interval = percentile_interval(samples)
    figures["gain"] = {"over": better, "map": float(gain.mean()), "interval": interval, "unit": drawn.unit}
    (out / "figures.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main(Path(sys.argv[1]), [Path(one) for one in sys.argv[2:4]], Path(sys.argv[4]), int((sys.argv[5:] or ["4"])[0]))
