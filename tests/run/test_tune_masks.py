"""The cleaning of masks, tuned on made-up outlines whose best settings are known."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cytolens import bundle as bundles
from cytolens import masks
from cytolens.bundle import Bundle, BundleInfo
from cytolens.cells import Cells
from cytolens.dataset import Dataset
from cytolens.evaluate.sartorius import sartorius_score
from cytolens.images import Images
from cytolens.labels import LabelSet
from cytolens.predict.soft_outlines import write_soft_outlines
from cytolens.problems import BundleError, DatasetError, SettingError
from cytolens.run.mask_grid import MaskGrid, best_choice, choice_scores, nested_choices, overlaps, subset_scores
from cytolens.run.tune_masks import DOMAIN, place_of_results, tune_masks
from cytolens.tasks.mask_cleaning import cleaned
from cytolens.tasks.segment import MaskCleaning, SegmentOutput, SoftOutlines
from tests.apps.speaking import say

LABELS = LabelSet.of(["small", "large"])
HW = (80, 120)
SIDE = {"small": 12, "large": 24}
# Cells of each kind are drawn as squares; outlines are their boxes, with a rim of soft values that reaches beyond.
# "small" is right above .45 and from score .5 on, "large" above .65 and from score .3 on.
RIM = {"small": 0.45, "large": 0.65}
TRUE_SCORE = {"small": 0.5, "large": 0.3}
GRID = MaskGrid(
    mask_threshold=(0.35, 0.5, 0.8), mask_nms_iou=(0.05, 0.15), score_min=(0.2, 0.3, 0.5, 0.7), area_min_px=(0, 50)
)


def square(x: int, y: int, side: int) -> np.ndarray:
    mask = np.zeros(HW, bool)
    mask[y : y + side, x : x + side] = True
    return mask


def soft_of(boxes: list[tuple[float, ...]], kinds: list[str], scores: list[float]) -> SoftOutlines:
    """Outlines whose patch is full in its inner 14 × 14 of 28 bins, and as high as the kind's rim around it."""
    patches = np.zeros((len(boxes), 28, 28), np.uint8)
    for patch, kind in zip(patches, kinds, strict=True):
        patch[:] = round(255 * RIM[kind])
        patch[7:21, 7:21] = 255
    order = np.argsort(-np.array(scores), kind="stable")
    class_scores = np.zeros((len(boxes), 2), np.float32)
    for row, (kind, score) in enumerate(zip(kinds, scores, strict=True)):
        class_scores[row, LABELS.index(kind)] = score
    return SoftOutlines(
        HW,
        np.array(boxes, np.float32).reshape(-1, 4)[order],
        np.array([LABELS.index(kind) for kind in kinds], np.intp)[order],
        np.array(scores, np.float32)[order],
        class_scores[order],
        patches[order],
    )


class Made:
    """A data set, its outlines and a bundle: each image has cells of one kind, found well, and a false one."""

    def __init__(self, root: Path, *, folds: bool = True, one_label: bool = True, images: int = 8) -> None:
        self.soft, self.truth, self.bundle = root / "soft", root / "truth", root / "net"
        random = np.random.default_rng(0)
        rows, cells = [], []
        for number in range(images):
            kind, name = LABELS.names[number % 2], f"{number}.png"
            fold = {"fold": number // 2 % 2} if folds else {}
            rows.append({"image_id": name, "width_px": HW[1], "height_px": HW[0], **fold})
            side, boxes, scores = SIDE[kind], [], []
            for column in range(3):
                x, y = 2 + 38 * column, int(random.integers(2, 10))
                cells.append((name, kind, square(x, y, side)))
                # The inner half of the patch is the cell, so the box is twice as long.
                boxes.append((x - side / 2, y - side / 2, x + 1.5 * side, y + 1.5 * side))
                scores.append(TRUE_SCORE[kind] + 0.01 + 0.1 * column)
            boxes.append((20, 50, 40, 78))
            scores.append(TRUE_SCORE[kind] - 0.05)
            write_soft_outlines(self.soft, name, soft_of(boxes, [kind] * 4, scores), LABELS.names)
        drawn = Cells.of(
            LABELS,
            image_id=[name for name, _, _ in cells],
            boxes=np.array([masks.bounds(masks.encode(mask), HW) for _, _, mask in cells]),
            label=[kind for _, kind, _ in cells],
            source="human:test",
            mask=[masks.encode(mask) for _, _, mask in cells],
        )
        Dataset(Images.of(rows), drawn, "made").write(self.truth)
        output = SegmentOutput(one_label=one_label, type_score_min=0.2)
        info = BundleInfo(name="net", task="segment", labels=LABELS.to_dict(), segment_output=output)
        bundles.write(self.bundle, info, {"card.md": b"made for a test"})

    def dataset(self) -> Dataset:
        return Dataset.read(self.truth)


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return Made(tmp_path)


@pytest.mark.parametrize("one_label", [True, False])
def test_the_best_settings_are_found(tmp_path: Path, one_label: bool):
    made = Made(tmp_path, one_label=one_label)
    result = tune_masks(Bundle.load(made.bundle), made.soft, made.dataset(), tmp_path / "out", GRID)
    small, large = result.labels
    assert (small.label, small.cleaning.mask_threshold, small.cleaning.score_min) == ("small", 0.5, 0.5)
    assert (large.label, large.cleaning.mask_threshold, large.cleaning.score_min) == ("large", 0.8, 0.3)
    assert (small.images, large.images, result.images) == (4, 4, 8)
    assert small.score == large.score == result.in_sample == result.nested == 1.0, "folds agree on what is best"
    assert result.before < 1
    assert result.unit == "fold"
    assert result.notes == ()


def test_what_is_left(made: Made, tmp_path: Path):
    out = tmp_path / "out"
    before = Bundle.load(made.bundle)
    result = tune_masks(before, made.soft, made.dataset(), out, GRID)
    tuned = Bundle.load(out / "bundle")
    assert tuned.hash == result.bundle.hash != before.hash
    assert Bundle.load(made.bundle).hash == before.hash, "the given bundle stays as it was"
    assert tuned.info.segment_output == result.output
    assert result.output.cleaning_of("large").mask_threshold == 0.8
    assert tuned.info.scores[DOMAIN] == {
        "task": "segmentation",
        "score": 1.0,
        "score_in_sample": 1.0,
        "score_before": result.before,
        "images": 8,
        "left_out": "fold",
    }
    rows = list(csv.DictReader((out / "masks.csv").read_text("utf-8").splitlines()))
    assert len(rows) == 2 * 3 * 2 * 4 * 2
    assert [row["label"] for row in rows if row["chosen"] == "true"] == ["small", "large"]
    assert (out / "masks.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((out / "tune.json").read_text("utf-8"))["per_label"]["small"]["cleaning"]["score_min"] == 0.5


def test_folds_that_disagree_are_judged_by_the_other(tmp_path: Path):
    """In one fold false outlines have score .4, in the other true ones do: so neither may choose for itself."""
    made = Made(tmp_path, images=0)
    rows, cells = [], []
    for fold in (0, 1):
        name = f"{fold}.png"
        rows.append({"image_id": name, "width_px": HW[1], "height_px": HW[0], "fold": fold})
        places = [4, 44] if fold else [4]
        cells += [(name, square(x, 30, 12)) for x in places]
        boxes = [(x - 6.0, 24.0, x + 18.0, 48.0) for x in (4, 44)]
        write_soft_outlines(made.soft, name, soft_of(boxes, ["small"] * 2, [0.9, 0.4]), LABELS.names)
    drawn = Cells.of(
        LABELS,
        image_id=[name for name, _ in cells],
        boxes=np.array([masks.bounds(masks.encode(mask), HW) for _, mask in cells]),
        label=["small"] * len(cells),
        source="human:test",
        mask=[masks.encode(mask) for _, mask in cells],
    )
    truth = Dataset(Images.of(rows), drawn, "two")
    grid = MaskGrid(mask_threshold=(0.5,), mask_nms_iou=(0.1,), score_min=(0.3, 0.5), area_min_px=(0,))
    result = tune_masks(Bundle.load(made.bundle), made.soft, truth, tmp_path / "out", grid)
    (small,) = result.labels
    # With both: fold 0 has a false one (1 of 2 right), fold 1 is right. Without the lower: fold 0 is right, 1 of 2.
    assert small.table.tolist() == [0.75, 0.75]
    assert small.cleaning.score_min == 0.3, "of equally good ones the first"
    assert (small.score, small.nested, result.in_sample, result.nested) == (0.75, 0.5, 0.75, 0.5)
    assert "No image has outlines of large" in result.notes[0]


def test_without_folds_groups_or_images_are_left_out(tmp_path: Path):
    made = Made(tmp_path, folds=False)
    truth = made.dataset()
    result = tune_masks(Bundle.load(made.bundle), made.soft, truth, tmp_path / "out", GRID)
    assert (result.unit, result.nested) == ("image", 1.0)
    assert "leaves out one image at a time" in result.notes[0]
    single = truth.select("image_id = '0.png'")
    alone = tune_masks(Bundle.load(made.bundle), made.soft, single, tmp_path / "alone", GRID)
    assert (alone.nested, alone.labels[0].nested, alone.in_sample) == (None, None, 1.0)
    assert any("7 files of outlines" in note for note in alone.notes)
    grouped = Dataset(truth.images.with_columns(group=[str(n // 4) for n in range(8)]), truth.cells, "grouped")
    assert tune_masks(Bundle.load(made.bundle), made.soft, grouped, tmp_path / "grouped", GRID).unit == "group"


def test_images_without_outlines_or_cells_count(made: Made, tmp_path: Path):
    truth = made.dataset()
    none = soft_of([], [], [])
    for name in ("bare.png", "missed.png"):
        write_soft_outlines(made.soft, name, none, LABELS.names)
    rows = [{"image_id": name, "width_px": HW[1], "height_px": HW[0], "fold": 0} for name in ("bare.png", "missed.png")]
    missed = truth.cells.of_image("0.png").with_columns(image_id="missed.png")
    missed = missed.with_columns(cell_id=[f"m{n}" for n in range(len(missed))])
    more = Dataset(truth.images.concat(Images.of(rows)), truth.cells.concat(missed), "more")
    result = tune_masks(Bundle.load(made.bundle), made.soft, more, tmp_path / "out", GRID)
    # Nothing to find and nothing found is right; three to find and nothing found is wrong.
    assert result.in_sample == pytest.approx((8 + 1 + 0) / 10)
    nothing = more.select("image_id = 'bare.png'")
    with pytest.raises(DatasetError, match="nothing to tune"):
        tune_masks(Bundle.load(made.bundle), made.soft, nothing, tmp_path / "none", GRID)


def test_what_cannot_be_tuned_is_refused(made: Made, tmp_path: Path):
    net, truth, out = Bundle.load(made.bundle), made.dataset(), tmp_path / "out"
    (made.soft / "3.png.npz").unlink()
    with pytest.raises(DatasetError, match=r"no outlines of 1 of the truth's 8 images: 3\.png"):
        tune_masks(net, made.soft, truth, out, GRID)
    boxes_only = Dataset(truth.images, truth.cells.with_masks([None] * len(truth.cells)), "boxes")
    with pytest.raises(DatasetError, match='cells of "boxes" have only a box'):
        tune_masks(net, made.soft, boxes_only.select("image_id != '3.png'"), out, GRID)
    info = BundleInfo(name="other", task="segment", labels=LABELS.to_dict())
    with pytest.raises(BundleError, match="reads no soft outlines of region networks"):
        tune_masks(bundles.write(tmp_path / "other", info, {}), made.soft, truth, out, GRID)
    smaller = masks.encode(np.ones((3, 4), bool))
    wrong = Dataset(truth.images, truth.cells.with_masks([smaller] * len(truth.cells)), "wrong")
    with pytest.raises(DatasetError, match="outlines are of an image of 120 × 80 px"):
        tune_masks(net, made.soft, wrong.select("image_id != '3.png'"), out, GRID)
    assert not out.exists()


# -- parts ----------------------------------------------------------------------------------------


@given(
    st.tuples(st.integers(0, 6), st.integers(0, 5)).flatmap(
        lambda shape: st.tuples(
            hnp.arrays(np.float64, shape, elements=st.sampled_from([0, 0.3, 0.5, 0.55, 0.6, 0.7, 0.95, 1.0])),
            hnp.arrays(np.bool_, shape[1]),
            hnp.arrays(np.bool_, (4, shape[0])),
        )
    )
)
def test_sets_of_findings_are_scored_as_each_alone(case: tuple[np.ndarray, np.ndarray, np.ndarray]):
    table, ignored, kept = case
    alone = [sartorius_score(table[one], ignored)[1] for one in kept]
    assert subset_scores(table, ignored, kept) == pytest.approx(alone)


def test_the_worked_example():
    """Of the specification: two images, at all limits together .186667 and .633333."""
    first = np.zeros((3, 4))
    first[0, 0], first[1, 1], first[2, 3] = 0.82, 0.63, 0.47
    second = np.diag([0.91, 0.71])
    scores = [subset_scores(t, np.zeros(t.shape[1], bool), np.ones((1, len(t)), bool))[0] for t in (first, second)]
    assert scores == pytest.approx([0.186667, 0.633333], abs=1e-6)


@given(st.integers(0, 10_000), st.sampled_from(["largest", "all"]))
@settings(max_examples=12)
def test_the_grid_scores_as_the_cleaning_itself_does(seed: int, parts: str):
    """Without a size limit exactly, whatever overlaps; with one as long as the small take nothing from others."""
    random = np.random.default_rng(seed)
    centres = random.uniform([10, 10], [110, 70], (9, 2))
    half = random.uniform(4, 14, (9, 2))
    boxes = [tuple(row) for row in np.concatenate([centres - half, centres + half], axis=1).tolist()]
    soft = soft_of(boxes, ["small"] * 9, random.choice([0.25, 0.4, 0.6, 0.9], 9).tolist())
    drawn = [masks.encode(square(int(x), int(y), 11)) for x, y in centres[:6] - 5]
    truth = Cells.of(
        LABELS,
        image_id=["x"] * 6,
        boxes=np.array([masks.bounds(code, HW) for code in drawn]),
        label=["small"] * 6,
        source="human:test",
        mask=drawn,
        ignore=random.random(6) < 0.2,
    )
    base = MaskCleaning.model_validate({"parts": parts})
    grid = MaskGrid(mask_threshold=(0.4, 0.6), mask_nms_iou=(0.05, 0.5), score_min=(0.2, 0.5), area_min_px=(0,))
    scores = choice_scores(soft, truth, LABELS, SegmentOutput(), grid, base)
    for tried, score in zip(grid.choices(base), scores, strict=True):
        found = cleaned(soft, LABELS, SegmentOutput(cleaning=tried))
        table = overlaps(truth, found, LABELS, HW)[found.counted]
        assert score == pytest.approx(sartorius_score(table, truth.frame["ignore"].to_numpy())[1])


def test_outlines_without_a_pixel_above_the_threshold_score_nothing():
    """Networks that have hardly learnt leave patches that are faint everywhere."""
    soft = soft_of([(10.0, 10.0, 30.0, 30.0)], ["small"], [0.9])
    faint = dataclasses.replace(soft, patches=np.full_like(soft.patches, 0.1))
    drawn = masks.encode(square(10, 10, 20))
    truth = Cells.of(LABELS, image_id=["x"], boxes=[(10, 10, 30, 30)], label=["small"], source="human:t", mask=[drawn])
    grid = MaskGrid(mask_threshold=(0.4,), mask_nms_iou=(0.05,), score_min=(0.2, 0.5), area_min_px=(0, 50))
    assert choice_scores(faint, truth, LABELS, SegmentOutput(), grid, MaskCleaning()).tolist() == [0.0] * 4


def test_choices():
    assert best_choice([[0.2, 0.6, 0.6], [0.4, 0.5, 0.5]]) == 1
    assert nested_choices([[1, 0], [1, 0], [0, 1]], ["a", "a", "b"]) == {"a": 1, "b": 0}
    assert nested_choices([[1, 0]], ["a"]) == {}


def test_values_that_are_not_allowed_are_refused():
    with pytest.raises(ValueError, match="less than 1"):
        MaskGrid(mask_threshold=(0.5, 1.0))
    with pytest.raises(ValueError, match="at least 1 item"):
        MaskGrid(area_min_px=())
    full = MaskGrid()
    assert (full.score_min[0], full.score_min[-1], len(full.score_min)) == (0.2, 0.8, 13)
    assert len(full.choices(MaskCleaning())) == 5 * 3 * 13 * 5


# -- the command ----------------------------------------------------------------------------------


def test_the_command(made: Made, tmp_path: Path):
    values = [f"{name}={json.dumps(value)}" for name, value in GRID.model_dump().items()]
    words = ["tune", made.bundle, "--soft", made.soft, "--truth", made.truth]
    for value in values:
        words += ["--set", value]
    told = say(*words, "--json").json
    assert (told["score"], told["score_in_sample"], told["images"]) == (1.0, 1.0, 8)
    assert told["out"] == str(made.bundle.with_name("net-tuned"))
    assert Bundle.load(made.bundle.with_name("net-tuned") / "bundle").hash == told["bundle"]["hash"]
    people = say(*words, "--out", tmp_path / "there", "--where", "fold = 0")
    assert people.code == 0
    assert "4 images, Sartorius score" in people.out
    assert "small (2 images): mask > 0.5, mask NMS 0.05, score ≥ 0.5, at least 0 px" in people.out
    assert "note: 4 files of outlines are of images that the truth does not have" in people.out


def test_the_command_refuses(made: Made, tmp_path: Path):
    assert "it needs --truth" in say("tune", made.bundle, "--soft", made.soft).complaint
    assert "go with --soft" in say("tune", made.bundle, "--truth", made.truth).complaint
    both = ("tune", made.bundle, "--soft", made.soft, "--truth", made.truth)
    assert "takes no --budget-ms" in say(*both, "--budget-ms", 3).complaint
    assert 'did you mean "area_min_px"' in say(*both, "--set", "area_min=[0]").complaint.lower()
    assert "lies in the bundle" in say(*both, "--out", made.bundle / "tune").complaint
    assert "holds no soft outlines" in say("tune", made.bundle, "--soft", tmp_path, "--truth", made.truth).complaint


def test_results_of_a_run_lie_in_it(tmp_path: Path):
    (tmp_path / "run" / "bundle").mkdir(parents=True)
    assert place_of_results(tmp_path / "run", None) == tmp_path / "run" / "tune"
    assert place_of_results(tmp_path / "run", tmp_path) == tmp_path
    assert place_of_results(Path("nuclei"), None) == Path("nuclei-tuned")
    (tmp_path / "run" / "bundle" / "bundle.json").touch()
    with pytest.raises(SettingError, match="holds nothing else"):
        place_of_results(tmp_path / "run" / "bundle", tmp_path / "run" / "bundle" / "x")
