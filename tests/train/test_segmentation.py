"""The module that trains region networks: how losses are weighed, and how an epoch is judged."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from cytolens import masks
from cytolens.cells import Cells
from cytolens.dataset import Dataset
from cytolens.images import Images
from cytolens.labels import LabelSet
from cytolens.tasks.segment import MaskCleaning, Outlines, SegmentOutput, picture
from cytolens.train.outlined_samples import Target
from cytolens.train.segment_settings import SegmentTraining, loss_weights
from cytolens.train.segmentation import _LIMITS, SegmentModule, counting_from, precisions

pytestmark = pytest.mark.torch

LABELS = LabelSet.of(["nucleus"])
NAMES = ("class", "box", "mask", "rpn_class", "rpn_box")


def module(**values: Any) -> SegmentModule:
    small = {"channels": 16, "hidden": 16, "mask_layers": 1, "proposals_kept": 20, "region_samples": 8}
    settings = SegmentTraining.model_validate({"backbone": "test_resnet", "network": small, **values})
    rows = [{"image_id": "one", "width_px": 64, "height_px": 64}]
    return SegmentModule(settings, Dataset(Images.of(rows), Cells.empty(LABELS)))


def square(x: int, y: int, side_px: int) -> bytes:
    mask = np.zeros((64, 64), bool)
    mask[y : y + side_px, x : x + side_px] = True
    return masks.encode(mask)


def test_losses_are_summed_or_weighed_by_the_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    losses = {name: torch.tensor(float(number + 1)) for number, name in enumerate(NAMES)}
    assert float(module().total(losses)) == 15
    decaying = module(loss_decay=True, optimise={"epochs": 40})
    for epoch in (1, 20, 40):
        monkeypatch.setattr(SegmentModule, "current_epoch", epoch - 1)
        weights = loss_weights(epoch, 40)
        mean = sum(weights[name] * float(losses[name]) for name in NAMES) / sum(weights[name] for name in NAMES)
        assert float(decaying.total(losses)) == pytest.approx(mean)
    more = {**losses, "semantic": torch.tensor(100.0)}
    assert float(decaying.total(more)) > float(decaying.total(losses))  # it is not forgotten


@pytest.mark.parametrize("family", ["mask-rcnn", "cascade", "htc"])
def test_every_family_has_losses_that_the_module_can_weigh(family: str) -> None:
    made = module(family=family, loss_decay=True)
    target: Target = {
        "boxes": torch.tensor([[8.0, 8, 30, 30]]),
        "labels": torch.zeros(1, dtype=torch.int64),
        "masks": torch.from_numpy(masks.decode(square(8, 8, 22), (64, 64)).astype(np.uint8))[None],
    }
    images = torch.randint(0, 255, (2, 3, 64, 64), generator=torch.Generator().manual_seed(0)).float()
    empty: Target = {
        "boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64),
        "masks": torch.zeros(0, 64, 64, dtype=torch.uint8),
    }  # fmt: skip
    losses = made.network.losses(images, [target, empty])
    assert set(losses) == {*NAMES, *(["semantic"] if family == "htc" else [])}
    made.total(losses).backward()
    assert all(torch.isfinite(p.grad).all() for p in made.network.parameters() if p.grad is not None)


def test_the_same_step_draws_the_same_regions(monkeypatch: pytest.MonkeyPatch) -> None:
    made = module()
    monkeypatch.setattr(SegmentModule, "global_step", 3)
    monkeypatch.setattr(made, "log_dict", lambda *_, **__: None)
    monkeypatch.setattr(made, "log", lambda *_, **__: None)
    drawn: list[float] = []

    def losses(*_: Any) -> dict[str, torch.Tensor]:
        drawn.append(float(torch.rand(1)))
        return {"box": torch.zeros(1)}

    monkeypatch.setattr(made.network, "losses", losses)
    batch = (torch.zeros(1, 3, 64, 64, dtype=torch.uint8), [])
    made.training_step(batch, 0)
    torch.rand(5)
    made.training_step(batch, 0)
    monkeypatch.setattr(SegmentModule, "global_step", 4)
    made.training_step(batch, 0)
    assert drawn[0] == drawn[1] != drawn[2]


def test_an_epoch_is_judged_at_each_limit_of_the_scores() -> None:
    """Two truths: one found exactly (score .65), one not; and one finding on nothing (score .35)."""
    codes = [square(4, 4, 10), square(40, 40, 10)]
    truth = Cells.of(
        LABELS, image_id=["one"] * 2, boxes=[masks.bounds(code, (64, 64)) for code in codes],
        label=["nucleus"] * 2, mask=codes, source="import:x",
    )  # fmt: skip
    found_codes = [codes[0], square(20, 4, 10)]
    found = Outlines(
        np.array([masks.bounds(code, (64, 64)) for code in found_codes]),
        np.zeros(2, np.intp),
        np.array([0.65, 0.35], np.float32),
        found_codes,
        np.ones(2, bool),
    )
    expected = {0.3: 1 / 3, 0.4: 1 / 2, 0.5: 1 / 2, 0.6: 1 / 2, 0.7: 0}  # found / (found + missed + false)
    assert precisions(truth, found, (64, 64)).tolist() == pytest.approx([expected[limit] for limit in _LIMITS])
    nothing = Outlines(
        np.zeros((0, 4), np.float32), np.zeros(0, np.intp), np.zeros(0, np.float32), [], np.zeros(0, bool)
    )
    assert precisions(truth, nothing, (64, 64)).tolist() == [0] * len(_LIMITS)
    assert precisions(Cells.empty(LABELS), nothing, (64, 64)).tolist() == [1] * len(_LIMITS)


def test_counting_from_changes_nothing_but_the_limit() -> None:
    output = SegmentOutput(per_label={"nucleus": MaskCleaning(score_min=0.7, area_min_px=30)}, views=4)
    lower = counting_from(output, 0.3)
    assert lower.cleaning.score_min == lower.per_label["nucleus"].score_min == 0.3
    assert lower.per_label["nucleus"].area_min_px == 30
    assert output.cleaning.score_min == 0.5
    assert lower.views == 4


def test_a_whole_image_is_looked_at_even_where_nothing_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    made = module(output={"score_floor": 1.0})
    logged: dict[str, float] = {}
    monkeypatch.setattr(made, "log_dict", lambda values: logged.update(values))
    monkeypatch.setattr(made, "log", lambda name, value, **_: logged.update({name: value}))
    made.eval()
    canvas, view = picture(np.full((50, 40, 3), 128, np.uint8), made.settings.input)
    made.validation_step((canvas, view, "one"), 0)
    made.on_validation_epoch_end()
    assert logged["score"] == 1.0  # no truth, nothing found
    assert set(logged) == {"score", *(f"map from {limit}" for limit in _LIMITS)}
