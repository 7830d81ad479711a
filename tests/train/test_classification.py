"""Training a classifier: its loss, its mixing, its draws and its score, each against an outside oracle."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from torch import Tensor

from cytolens.cells import Cells
from cytolens.dataset import Dataset
from cytolens.images import Images
from cytolens.labels import LabelSet
from cytolens.prepare.synthetic import render_cell
from cytolens.problems import LabelError, Problems, SettingError
from cytolens.settings import checked
from cytolens.train.augment_colour import ColourAugment
from cytolens.train.batches import EpochSampler, Samples
from cytolens.train.classification import (
    ClassifyModule,
    ClassifyTraining,
    StoredCells,
    collate,
    hierarchy_loss,
    macro_f1,
    sample_maker,
    sampling_weights,
    training_samples,
    tuning_batches,
)
from cytolens.train.fit import Plan, fit

pytestmark = pytest.mark.torch

LABELS = LabelSet.of(["leukocyte", "neutrophil", "band neutrophil", "segmented neutrophil", "lymphocyte"])
logit_tables = hnp.arrays(np.float32, (4, 5), elements=st.floats(-15, 15, width=32))


def settings(**values: Any) -> ClassifyTraining:
    small = {"model": "tf_efficientnet_lite0", "input": {"side_px": 32}}
    return checked(ClassifyTraining, small | values, "test")


def cells_of(
    folder: Path, boxes: Sequence[Sequence[float]], names: list[str | None], size_wh: tuple[int, int]
) -> Dataset:
    """A dataset of one image: pale, with a dark square in each box."""
    pixels = np.full((size_wh[1], size_wh[0], 3), (225, 215, 205), np.uint8)
    for x0, y0, x1, y1 in boxes:
        pixels[max(int(y0), 0) : int(y1), max(int(x0), 0) : int(x1)] = (100, 70, 140)
    Image.fromarray(pixels).save(folder / "a.png")
    row = {"image_id": "a.png", "path": str(folder / "a.png"), "width_px": size_wh[0], "height_px": size_wh[1]}
    cells = Cells.of(LABELS, image_id=["a.png"] * len(boxes), boxes=boxes, label=names, source="import:x")
    return Dataset(Images.of([row]), cells)


# -- loss -----------------------------------------------------------------------------------------


@given(logits=logit_tables, allowed=hnp.arrays(np.bool_, (4, 5)).filter(lambda a: a.any(axis=1).all()))
def test_the_loss_is_the_logarithm_of_the_summed_probability(logits: np.ndarray, allowed: np.ndarray) -> None:
    got = hierarchy_loss(torch.from_numpy(logits), torch.from_numpy(allowed), 0.0)
    for row, yes, loss in zip(logits.astype(np.float64), allowed, got.tolist(), strict=True):
        raised = [math.exp(value - max(row)) for value in row]
        inside = sum(value for value, ok in zip(raised, yes, strict=True) if ok) / sum(raised)
        assert loss == pytest.approx(-math.log(inside), abs=1e-4)


@given(logits=logit_tables, leaf=st.lists(st.integers(0, 4), min_size=4, max_size=4), smoothing=st.floats(0, 0.5))
def test_with_one_leaf_it_is_cross_entropy_with_label_smoothing(logits, leaf, smoothing: float) -> None:
    tensor, target = torch.from_numpy(logits), torch.tensor(leaf)
    got = hierarchy_loss(tensor, torch.nn.functional.one_hot(target, 5).bool(), smoothing)
    oracle = torch.nn.functional.cross_entropy(tensor, target, label_smoothing=smoothing, reduction="none")
    assert got.tolist() == pytest.approx(oracle.tolist(), abs=1e-4)


def test_a_parent_says_nothing_about_which_kind() -> None:
    logits = torch.tensor([[2.0, -1.0, 0.5]], requires_grad=True)
    hierarchy_loss(logits, torch.tensor([[True, True, True]]), 0.0).sum().backward()
    assert logits.grad is not None
    assert logits.grad.abs().max() < 1e-6
    two = torch.tensor([[1.0, 1.0, 3.0]], requires_grad=True)
    hierarchy_loss(two, torch.tensor([[True, True, False]]), 0.0).sum().backward()
    assert two.grad is not None
    assert two.grad[0, 0] == pytest.approx(float(two.grad[0, 1]))
    assert two.grad[0, 0] < 0 < two.grad[0, 2]


def test_the_loss_of_half_precision_logits_is_finite() -> None:
    logits = torch.tensor([[80.0, -80.0]], dtype=torch.bfloat16)
    loss = hierarchy_loss(logits, torch.tensor([[False, True]]), 0.1)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(0.9 * 160 + 0.1 * 80, rel=0.01)


# -- mixing ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def modules() -> dict[str, ClassifyModule]:
    """Modules that always mix, one kind each, sharing nothing but the code."""
    made = {}
    for kind in ("mixup", "cutmix", "none"):
        values = {} if kind == "none" else {kind: 1.0, "mix_share": 1.0}
        module = ClassifyModule(settings(**values), LABELS)
        module.network = torch.nn.Identity()  # the network is not asked
        made[kind] = module
    return made


def pictures(count: int = 6, side: int = 32) -> Tensor:
    """Pictures that each have one grey level, their own."""
    return torch.arange(1.0, count + 1)[:, None, None, None].expand(count, 3, side, side).clone() * 10


def at_step(module: ClassifyModule, step: int, images: Tensor) -> tuple[Tensor, Tensor | None, float]:
    """What the module makes of a batch at a step of the training."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ClassifyModule, "global_step", step)
        return module._mixed(images)


@pytest.mark.parametrize("step", range(8))
def test_mixup_is_a_weighted_mean(modules: dict[str, ClassifyModule], step: int) -> None:
    images = pictures()
    mixed, other, share = at_step(modules["mixup"], step, images)
    assert other is not None
    assert sorted(other.tolist()) == list(range(6))
    assert 0 <= share <= 1
    assert mixed.shape == images.shape
    assert torch.allclose(mixed, share * images + (1 - share) * images[other], atol=1e-4)
    assert torch.equal(images, pictures())  # the argument is not touched


@pytest.mark.parametrize("step", range(8))
def test_cutmix_exchanges_a_square_and_counts_it(modules: dict[str, ClassifyModule], step: int) -> None:
    images = pictures()
    mixed, other, share = at_step(modules["cutmix"], step, images)
    assert other is not None
    assert mixed.shape == images.shape
    for row in range(6):
        same = mixed[row, 0] == images[row, 0]
        from_other = mixed[row, 0] == images[other[row], 0]
        assert (same | from_other).all()
        if other[row] != row:
            assert same.float().mean().item() == pytest.approx(share, abs=1e-6)
            exchanged = torch.nonzero(~same)
            if len(exchanged):  # one solid rectangle
                sides = exchanged.max(dim=0).values - exchanged.min(dim=0).values + 1
                assert int(sides.prod()) == len(exchanged)
    assert torch.equal(images, pictures())


def test_mixing_depends_on_the_step_and_not_on_when_it_is_asked(modules: dict[str, ClassifyModule]) -> None:
    first = [at_step(modules["mixup"], step, pictures())[2] for step in range(5)]
    again = [at_step(modules["mixup"], step, pictures())[2] for step in reversed(range(5))][::-1]
    assert first == again
    assert len(set(first)) == 5


def test_nothing_is_mixed_unless_asked(modules: dict[str, ClassifyModule]) -> None:
    images = pictures()
    mixed, other, share = at_step(modules["none"], 3, images)
    assert torch.equal(mixed, images)
    assert (other, share) == (None, 1.0)


def test_about_the_share_of_the_batches_is_mixed() -> None:
    module = ClassifyModule(settings(mixup=0.4, cutmix=0.4, mix_share=0.3), LABELS)
    mixed = [at_step(module, step, pictures(2, 8))[1] is not None for step in range(400)]
    assert np.mean(mixed) == pytest.approx(0.3, abs=0.07)


# -- draws ----------------------------------------------------------------------------------------


def test_sampling_weights() -> None:
    names = ["a"] * 9 + ["b"] * 1
    assert sampling_weights(names, 0.0).tolist() == [1.0] * 10
    full = sampling_weights(names, 1.0)
    assert full[:9].sum() == pytest.approx(full[9:].sum())  # each label as often as the other
    half = sampling_weights(names, 0.5)
    assert half[9] / half[0] == pytest.approx(3.0)


@given(names=st.lists(st.sampled_from("abcd"), min_size=1, max_size=30), balance=st.floats(0, 1))
def test_rarer_labels_are_drawn_more_often_each(names: list[str], balance: float) -> None:
    weights = dict(zip(names, sampling_weights(names, balance), strict=True))
    for a in weights:
        for b in weights:
            if names.count(a) <= names.count(b):
                assert weights[a] >= weights[b] * (1 - 1e-12)


# -- score ----------------------------------------------------------------------------------------


@given(pairs=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=40))
def test_macro_f1_is_that_of_scikit_learn(pairs: list[tuple[int, int]]) -> None:
    from sklearn.metrics import f1_score

    truth, found = np.array(pairs).T
    oracle = f1_score(truth, found, labels=np.unique(truth), average="macro", zero_division=0)  # pyright: ignore[reportArgumentType]
    assert macro_f1(truth, found, 5) == pytest.approx(oracle)


def test_macro_f1_of_nothing_is_zero() -> None:
    assert macro_f1(np.zeros(0, int), np.zeros(0, int), 3) == 0.0


# -- samples --------------------------------------------------------------------------------------


def test_stored_cells_are_those_with_a_name_and_a_box(tmp_path: Path) -> None:
    boxes = [[10, 10, 40, 40], [50, 10, 80, 40], [5, 5, 5, 30], [60, 50, 90, 75]]
    data = cells_of(tmp_path, boxes, ["neutrophil", None, "lymphocyte", "lymphocyte"], (100, 80))
    store = StoredCells(data, settings(), Problems())
    assert store.names == ["neutrophil", "lymphocyte"]
    assert store.pixels.shape == (2, store.side_px, store.side_px, 3)
    assert store.side_px % 32 == 0
    assert store.allowed.tolist() == [[True, True, False], [False, False, True]]
    middle = store.side_px // 2
    assert store.pixels[0, middle, middle].max() < 180 < store.pixels[0, 0, 0].min()
    assert store.whole_zoom == pytest.approx([30 * 1.25 / 100] * 2)


def test_tuning_batches_leave_out_the_same_cells(tmp_path: Path) -> None:
    boxes = [[10, 10, 40, 40], [50, 10, 80, 40], [5, 5, 5, 30], [60, 50, 90, 75]]
    data = cells_of(tmp_path, boxes, ["neutrophil", None, "lymphocyte", "lymphocyte"], (100, 80))
    batches = tuning_batches(data, settings(), Problems(), batch=1)
    assert [(tuple(images.shape), allowed.tolist()) for images, allowed in batches] == [
        ((1, 3, 32, 32), [[True, True, False]]),
        ((1, 3, 32, 32), [[False, False, True]]),
    ]


def test_without_any_usable_cell_there_is_a_clear_error(tmp_path: Path) -> None:
    data = cells_of(tmp_path, [[5, 5, 5, 30]], ["lymphocyte"], (100, 80))
    with pytest.raises(LabelError, match="no cell of the dataset has both a name and a box"):
        StoredCells(data, settings(), Problems())
    with pytest.raises(LabelError, match="kept for tuning has both a name and a box"):
        tuning_batches(data, settings(), Problems())


def test_without_variation_a_training_crop_is_the_crop_of_prediction(tmp_path: Path) -> None:
    calm: dict[str, Any] = {"rotate": False, "flip": 0, "scale": [1, 1], "aspect": 0, "translate": 0}
    calm["colour"] = {name: 0 for name in ColourAugment.model_fields if name != "weakest"}
    data = cells_of(tmp_path, [[30, 20, 70, 60]], ["lymphocyte"], (100, 80))
    still = settings(augment=calm, input={"side_px": 64})
    store = StoredCells(data, still, Problems())
    pixels, allowed = sample_maker(store, still)(0, np.random.default_rng(0), 0)
    shown = tuning_batches(data, still, Problems())[0][0][0].permute(1, 2, 0).numpy()
    assert pixels.shape == shown.shape == (64, 64, 3)
    assert allowed.tolist() == [False, False, True]
    assert np.abs(pixels.astype(int) - shown.astype(int)).mean() < 4  # the store is a little coarser
    dark = [picture[:, :, 0] < 170 for picture in (pixels, shown)]
    assert dark[0].sum() == pytest.approx(dark[1].sum(), rel=0.03)
    assert np.argwhere(dark[0]).mean(axis=0) == pytest.approx(np.argwhere(dark[1]).mean(axis=0), abs=0.5)


def test_batches_are_planes_first() -> None:
    sample = np.arange(2 * 2 * 3, dtype=np.uint8).reshape(2, 2, 3)
    images, allowed = collate([(sample, np.array([True, False])), (sample + 1, np.array([False, True]))])
    assert images.shape == (2, 3, 2, 2)
    assert images[0, :, 0, 1].tolist() == sample[0, 1].tolist()
    assert allowed.tolist() == [[True, False], [False, True]]


def test_a_training_crop_with_margin_and_stretch_is_the_crop_of_prediction(tmp_path: Path) -> None:
    calm: dict[str, Any] = {"rotate": False, "flip": 0, "scale": [1, 1], "aspect": 0, "translate": 0}
    calm["colour"] = {name: 0 for name in ColourAugment.model_fields if name != "weakest"}
    data = cells_of(tmp_path, [[5, 20, 45, 40]], ["lymphocyte"], (100, 80))  # the margin ends at the left border
    still = settings(augment=calm, input={"side_px": 64, "margin_px": 16, "fit": "stretch"})
    pixels, _ = sample_maker(StoredCells(data, still, Problems()), still)(0, np.random.default_rng(0), 0)
    shown = tuning_batches(data, still, Problems())[0][0][0].permute(1, 2, 0).numpy()
    dark = [picture[:, :, 0] < 170 for picture in (pixels, shown)]
    assert dark[1].sum() == pytest.approx(64 * 64 * (40 * 20) / (61 * 52), rel=0.04)
    assert dark[0].sum() == pytest.approx(dark[1].sum(), rel=0.05)
    assert np.argwhere(dark[0]).mean(axis=0) == pytest.approx(np.argwhere(dark[1]).mean(axis=0), abs=0.5)


# -- the floor ------------------------------------------------------------------------------------


def rendered(folder: Path, counts: dict[str, int]) -> Dataset:
    """Images of one rendered cell each."""
    rows, names, boxes = [], [], []
    for name, count in counts.items():
        for number in range(count):
            image_id = f"{name}-{number}.png"
            kind = "band neutrophil" if name == "neutrophil" else name
            cell = render_cell(number, kind, 48)
            Image.fromarray(cell.pixels).save(folder / image_id)
            rows.append({"image_id": image_id, "path": str(folder / image_id), "width_px": 48, "height_px": 48})
            names.append(name)
            boxes.append([0, 0, 48, 48])
    ids = [row["image_id"] for row in rows]
    return Dataset(Images.of(rows), Cells.of(LABELS, image_id=ids, boxes=boxes, label=names, source="import:x"))


COUNTS = {"lymphocyte": 7, "band neutrophil": 2, "neutrophil": 3}  # "neutrophil": known only as the parent
FLOORED: dict[str, Any] = {
    "model": "test_efficientnet",
    "dropout": 0,  # a resumed run draws its chance anew
    "floor": 6,
    "balance": 0,
    "optimise": {"epochs": 2, "batch": 4},
    "hardware": {"accelerator": "cpu", "workers": 0},
}


def seen_by(run: Path, data: Dataset, epochs: int, resume: bool = False) -> list[tuple[int, str, bytes]]:
    """Train for so many epochs in all; each sample that was made: epoch, label, pixels."""
    own = settings(**FLOORED)
    torch.manual_seed(own.seed)
    store = StoredCells(data, own, Problems())
    samples, weights = training_samples(store, own)
    seen = []

    def make(index: int, random: np.random.Generator, epoch: int) -> Any:
        pixels, allowed = samples.make(index, random, epoch)
        name = next(n for n in COUNTS if (LABELS.leaf_matrix[LABELS.index(n)] == allowed).all())
        seen.append((epoch, name, pixels.tobytes()))
        return pixels, allowed

    plan = Plan(
        module=ClassifyModule(own, LABELS),
        samples=Samples(make, len(samples), own.seed),
        weights=weights,
        collate=collate,
        tuning=tuning_batches(data, own, Problems()),
    )
    if epochs < own.optimise.epochs:
        plan.module.on_train_epoch_end = lambda: setattr(plan.module.trainer, "should_stop", True)  # type: ignore[method-assign]
    fit(plan, own, run, resume=resume, progress=False, notify=lambda _: None)
    return seen


def test_an_epoch_shows_rare_labels_as_often_as_the_floor_says(tmp_path: Path) -> None:
    data = rendered(tmp_path, COUNTS)
    seen = seen_by(tmp_path / "run", data, 1)
    # 7 + 6 + 6 = 19 samples: the last batch of four is not full and is left out
    assert len(seen) == 16
    order = [index for _, index in EpochSampler(19, settings(**FLOORED).seed)]
    samples, _ = training_samples(StoredCells(data, settings(**FLOORED), Problems()), settings(**FLOORED))
    in_all = Counter(seen_name for _, seen_name, _ in seen)
    left_out = Counter(name_of(samples, index) for index in order[16:])
    assert in_all + left_out == {"lymphocyte": 7, "band neutrophil": 6, "neutrophil": 6}
    pictures = [pixels for _, _, pixels in seen]
    assert len(set(pictures)) == 16  # each repetition is varied anew


def name_of(samples: Samples, index: int) -> str:
    allowed = samples[0, index][1]
    return next(n for n in COUNTS if (LABELS.leaf_matrix[LABELS.index(n)] == allowed).all())


def test_a_resumed_training_with_a_floor_sees_what_an_uninterrupted_one_would(tmp_path: Path) -> None:
    data = rendered(tmp_path, COUNTS)
    whole = seen_by(tmp_path / "whole", data, 2)
    parts = seen_by(tmp_path / "parts", data, 1) + seen_by(tmp_path / "parts", data, 2, resume=True)
    assert [epoch for epoch, _, _ in whole] == [0] * 16 + [1] * 16
    assert parts == whole
    assert (tmp_path / "parts" / "weights.safetensors").read_bytes() == (
        tmp_path / "whole" / "weights.safetensors"
    ).read_bytes()


def test_a_floor_and_a_balance_are_not_mixed_silently(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"floor = 100: .*balance = 0\.5; set balance = 0"):
        settings(floor=100)
    with pytest.raises(SettingError, match=r"balance = 1\.0"):
        settings(floor=1, balance=1)
    data = cells_of(tmp_path, [[5, 5, 25, 25], [40, 30, 70, 60]], ["lymphocyte", "neutrophil"], (100, 80))
    by_weight = settings(balance=0.5)
    samples, weights = training_samples(StoredCells(data, by_weight, Problems()), by_weight)
    assert (len(samples), weights is None) == (2, False)
    assert settings(floor=0, balance=0.5).floor == 0
