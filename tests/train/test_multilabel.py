"""Classifiers of whole images: what is known of an image, the loss, the score, and a training from end to end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from cytolens.cells import Cells
from cytolens.dataset import Dataset
from cytolens.images import Images
from cytolens.labels import LabelSet
from cytolens.predict.ensemble import image_logits, image_shares
from cytolens.prepare.synthetic import render_cell
from cytolens.problems import LabelError, Problems, SettingError
from cytolens.run.training import prepared, train
from cytolens.settings import checked
from cytolens.train.augment_colour import ColourAugment
from cytolens.train.classification import ClassifyTraining
from cytolens.train.multilabel import (
    MultiLabelModule,
    WholeImages,
    focal_loss,
    label_macro_f1,
    presence,
    rarest,
    sample_maker,
    training_samples,
    tuning_batches,
)

pytestmark = pytest.mark.torch

LABELS = LabelSet.of(["leukocyte", "neutrophil", "band neutrophil", "segmented neutrophil", "lymphocyte", "monocyte"])
BAND, SEGMENTED, LYMPHOCYTE, MONOCYTE = range(4)
SMALL: dict[str, Any] = {
    "model": "test_efficientnet",
    "target": "image",
    "loss": "focal",
    "input": {"side_px": 32},
    "hardware": {"accelerator": "cpu", "workers": 0, "threads": 1},
    "optimise": {"epochs": 2, "closing_epochs": 0, "batch": 4},
}
CALM: dict[str, Any] = {
    "rotate": False, "flip": 0, "scale": [1, 1], "aspect": 0, "translate": 0,
    "colour": {name: 0 for name in ColourAugment.model_fields if name != "weakest"},
}  # fmt: skip


def settings(**values: Any) -> ClassifyTraining:
    return checked(ClassifyTraining, SMALL | values, "test")


Said = tuple[str | None, bool]


def dataset_of(folder: Path, images: dict[str, list[Said]], complete: dict[str, list[str]] | None = None) -> Dataset:
    """Images 60 × 40, dark on the left, with cells as (label, ignored)."""
    rows, ids, names, ignored = [], [], [], []
    for image_id, said in images.items():
        pixels = np.full((40, 60, 3), (225, 215, 205), np.uint8)
        pixels[:, :20] = (100, 70, 140)
        Image.fromarray(pixels).save(folder / image_id)
        rows.append({
            "image_id": image_id, "path": str(folder / image_id), "width_px": 60, "height_px": 40,
            "complete_for": (complete or {}).get(image_id),
        })  # fmt: skip
        for name, ignore in said:
            ids.append(image_id)
            names.append(name)
            ignored.append(ignore)
    boxes = [[5 + row, 5, 25 + row, 25] for row in range(len(ids))]
    cells = Cells.of(LABELS, image_id=ids, boxes=boxes, label=names, ignore=ignored, source="import:x")
    return Dataset(Images.of(rows), cells)


# -- what is known --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "complete", "expected"),
    [
        ([], None, [0, 0, 0, 0]),  # an image without cells: all answers are no
        ([("lymphocyte", False), ("lymphocyte", False)], None, [0, 0, 1, 0]),
        ([("neutrophil", False), ("monocyte", False)], None, [-1, -1, 0, 1]),  # a parent says nothing of its kinds
        ([("neutrophil", False), ("band neutrophil", False)], None, [1, -1, 0, 0]),
        ([("leukocyte", False)], None, [-1, -1, -1, -1]),
        ([(None, False), ("monocyte", False)], None, [-1, -1, -1, 1]),  # a cell without a name may be anything
        ([("lymphocyte", True), ("monocyte", False)], None, [0, 0, -1, 1]),  # ignored: neither
        ([("lymphocyte", True), ("lymphocyte", False)], None, [0, 0, 1, 0]),
        ([("lymphocyte", False)], ["lymphocyte", "neutrophil"], [0, 0, 1, -1]),  # nobody looked for monocytes
        ([], [], [-1, -1, -1, -1]),  # nobody looked at all
    ],
)
def test_what_is_known_of_an_image(tmp_path: Path, said: list[Said], complete: Any, expected: list[int]) -> None:
    known = presence(dataset_of(tmp_path, {"a.png": said}, {"a.png": complete}))
    assert known.dtype == np.int8
    assert known.tolist() == [expected]


def test_the_rarest_label_of_each_image() -> None:
    known = np.array([[1, 0, 1, 0], [0, 0, 1, 0], [0, 0, 0, 0], [-1, -1, 0, 0], [0, 0, 1, 1]], np.int8)
    assert rarest(known, LABELS) == ["band neutrophil", "lymphocyte", "", "", "monocyte"]
    assert rarest(known[:0], LABELS) == []


# -- loss -----------------------------------------------------------------------------------------


def test_the_loss_of_the_published_example() -> None:
    loss = focal_loss(torch.tensor([[1.2, -0.7]]), torch.tensor([[1, 0]], dtype=torch.int8))
    assert loss[0].tolist() == pytest.approx([0.014107, 0.044391], abs=1e-6)
    assert loss.mean().item() == pytest.approx(0.029249, abs=1e-6)


def test_without_focus_it_is_the_binary_cross_entropy_of_the_example() -> None:
    loss = focal_loss(torch.tensor([[1.2, -0.7]]), torch.tensor([[1, 0]]), gamma=0.0)
    assert loss[0].tolist() == pytest.approx([0.263282, 0.403186], abs=1e-6)
    assert torch.equal(focal_loss(torch.tensor([[1.2]]), torch.tensor([[1]]), alpha=3.0, gamma=0.0), 3 * loss[:, :1])


@given(
    logits=hnp.arrays(np.float32, (3, 4), elements=st.floats(-12, 12, width=32)),
    known=hnp.arrays(np.int8, (3, 4), elements=st.integers(-1, 1)),
)
def test_the_loss_is_that_of_torchvision_where_something_is_known(logits: np.ndarray, known: np.ndarray) -> None:
    from torchvision.ops import sigmoid_focal_loss

    got = focal_loss(torch.from_numpy(logits), torch.from_numpy(known))
    oracle = sigmoid_focal_loss(torch.from_numpy(logits), torch.from_numpy(known == 1).float(), alpha=-1, gamma=2)
    assert np.allclose(got.numpy(), np.where(known >= 0, oracle.numpy(), 0), atol=1e-5)


@pytest.fixture(scope="module")
def module() -> MultiLabelModule:
    made = MultiLabelModule(settings(mixup=1.0, mix_share=1.0), LABELS)
    made.network = Through()
    return made


class Through(torch.nn.Module):
    """A network whose logits are its input."""

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, None]:
        return images.flatten(1), None


def test_what_is_not_known_teaches_nothing(module: MultiLabelModule) -> None:
    logits = torch.tensor([[1.2, -0.7, 3.0, -3.0]], requires_grad=True)
    loss = module.loss(logits, torch.tensor([[1, 0, -1, -1]], dtype=torch.int8))
    assert loss.item() == pytest.approx(0.029249, abs=1e-6)  # the mean is over what is known
    loss.backward()
    assert logits.grad is not None
    assert (logits.grad[0, :2] != 0).all()
    assert (logits.grad[0, 2:] == 0).all()
    nothing = module.loss(logits, torch.full((1, 4), -1))
    assert nothing.item() == 0.0
    assert module.loss(logits.to(torch.bfloat16), torch.ones(1, 4)).dtype == torch.float32


def test_the_loss_of_a_mixed_batch_is_weighted_by_the_shares(module: MultiLabelModule) -> None:
    known = torch.tensor([[1, 0, 0, 0], [0, 1, 0, -1]], dtype=torch.int8)
    images = torch.tensor([[0.5, -1.0, 0.2, 0.0], [2.0, 0.1, -0.3, 1.0]])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MultiLabelModule, "global_step", 3)
        patch.setattr(MultiLabelModule, "log", lambda *_, **__: None)
        planes = images[:, :, None, None]
        got = module.training_step((planes, known), 0)
        mixed, other, share = module._mixed(planes)
    assert other is not None
    assert 0 < share < 1
    logits = mixed.flatten(1)
    oracle = share * module.loss(logits, known) + (1 - share) * module.loss(logits, known[other])
    assert got.item() == pytest.approx(oracle.item(), rel=1e-6)


# -- score ----------------------------------------------------------------------------------------


@given(
    truth=hnp.arrays(np.bool_, (7, 3)).filter(lambda t: t.any()),
    found=hnp.arrays(np.bool_, (7, 3)),
)
def test_the_score_is_that_of_scikit_learn(truth: np.ndarray, found: np.ndarray) -> None:
    from sklearn.metrics import f1_score

    present = np.flatnonzero(truth.any(axis=0))
    oracle = f1_score(truth, found, labels=present, average="macro", zero_division=0)  # pyright: ignore[reportArgumentType]
    assert label_macro_f1(truth.astype(np.int8), found) == pytest.approx(oracle)


def test_the_score_leaves_out_what_is_not_known() -> None:
    known = np.array([[1, -1], [0, 1], [-1, 0]])
    found = np.array([[True, True], [False, True], [True, False]])
    assert label_macro_f1(known, found) == 1.0
    assert label_macro_f1(known[:0], found[:0]) == 0.0


# -- samples --------------------------------------------------------------------------------------

FOUR: dict[str, list[Said]] = {
    "two.png": [("lymphocyte", False), ("monocyte", False)],
    "one.png": [("lymphocyte", False)],
    "none.png": [],
    "unknown.png": [("leukocyte", False)],
}


def test_images_of_which_something_is_known_are_samples(tmp_path: Path) -> None:
    images = WholeImages(dataset_of(tmp_path, FOUR), settings(), Problems())
    assert len(images) == 3
    assert images.presence.tolist() == [[0, 0, 1, 1], [0, 0, 1, 0], [0, 0, 0, 0]]
    assert images.names == ["monocyte", "lymphocyte", ""]
    samples, weights = training_samples(images, settings(balance=1.0))
    assert len(samples) == 3
    assert weights is not None
    assert weights.tolist() == [1.0, 1.0, 1.0]  # three labels, each the rarest of one image
    floored, none = training_samples(images, settings(balance=0, floor=4))
    assert (len(floored), none) == (12, None)


def test_files_that_cannot_be_read_are_problems(tmp_path: Path) -> None:
    data = dataset_of(tmp_path, FOUR)
    (tmp_path / "two.png").write_bytes(b"no picture")
    problems = Problems()
    images = WholeImages(data, settings(), problems)
    assert len(problems) == 1
    assert images.presence.tolist() == [[0, 0, 1, 0], [0, 0, 0, 0]]
    assert images.picture(0).shape == (32, 32, 3)


def test_without_any_certain_cell_there_is_a_clear_error(tmp_path: Path) -> None:
    data = dataset_of(tmp_path, {"a.png": [("neutrophil", False)], "b.png": []})
    with pytest.raises(LabelError, match="no image of the dataset holds a cell whose label is a single kind"):
        WholeImages(data, settings(), Problems())


def test_an_image_is_padded_and_not_cut(tmp_path: Path) -> None:
    """60 × 40 px with the left third dark become 60 × 60 px with the left third dark: the edge is repeated."""
    own = settings(input={"side_px": 60}, augment=CALM)
    images = WholeImages(dataset_of(tmp_path, {"a.png": [("lymphocyte", False)]}), own, Problems())
    shown = images.picture(0)
    dark = shown[:, :, 0] < 170
    assert dark[:, :19].all()
    assert not dark[:, 21:].any()
    varied, known = sample_maker(images, own)(0, np.random.default_rng(0), 0)
    assert np.abs(varied.astype(int) - shown.astype(int)).max() <= 1
    assert known.tolist() == [0, 0, 1, 0]


def test_tuning_batches_are_made_when_asked_for(tmp_path: Path) -> None:
    batches = tuning_batches(dataset_of(tmp_path, FOUR), settings(), Problems(), batch=2)
    assert len(batches) == 2
    images, known = batches[-1]
    assert images.shape == (1, 3, 32, 32)
    assert known.tolist() == [[0, 0, 0, 0]]
    assert [len(known) for _, known in batches] == [2, 1]
    assert [len(known) for _, known in batches[:1]] == [2]
    with pytest.raises(IndexError):
        batches[2]


# -- settings -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"loss": "cross-entropy"}, "target = image does not go with loss = cross-entropy"),
        ({"target": "cell"}, "target = cell does not go with loss = focal"),
        ({"background": "Background"}, "is for crops; with target = image an image without cells is an example"),
        ({"target": "cell", "loss": "cross-entropy", "output": {"outputs": "sigmoid"}}, "needs loss = focal"),
        ({"target": "slide"}, "target = 'slide'"),
    ],
)
def test_settings_that_do_not_go_together(values: dict[str, Any], complaint: str) -> None:
    with pytest.raises(SettingError, match=complaint):
        settings(**values)


# -- from end to end --------------------------------------------------------------------------------


def smears(folder: Path) -> Dataset:
    """Images of one rendered cell, of two, and of none."""
    folder.mkdir(exist_ok=True)
    kinds = ("lymphocyte", "segmented neutrophil", "monocyte")
    rows, ids, boxes, names = [], [], [], []
    for number in range(24):
        held = [kinds[number % 3]] if number % 4 else [kinds[number % 3], kinds[(number + 1) % 3]]
        held = [] if number % 6 == 5 else held
        pixels = np.full((48, 96, 3), (226, 217, 208), np.uint8)
        for place, name in enumerate(held):
            pixels[:, 48 * place : 48 * place + 48] = render_cell(number, name, 48).pixels
            ids.append(f"{number}.png")
            boxes.append([48 * place + 8, 8, 48 * place + 40, 40])
            names.append(name)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        rows.append({
            "image_id": f"{number}.png", "path": str(folder / f"{number}.png"), "width_px": 96, "height_px": 48
        })  # fmt: skip
    cells = Cells.of(LabelSet.of(kinds), image_id=ids, boxes=boxes, label=names, source="import:x")
    return Dataset(Images.of(rows), cells)


def test_its_bundle_predicts_one_row_per_image(tmp_path: Path) -> None:
    import cytolens

    data = smears(tmp_path / "images")
    own = settings(tuning_share=0.3, mixup=0.2, cutmix=1.0)
    result = train(own, data, tmp_path / "run", progress=False)
    output = result.bundle.info.classify_output
    assert output is not None
    assert output.outputs == "sigmoid"
    assert result.bundle.self_test().passed
    paths = data.images.frame["path"].to_list()
    cells = cytolens.predict(paths, bundle=result.bundle)
    assert cells.frame["image_id"].to_list() == data.images.ids
    assert np.allclose(cells.boxes(), [0, 0, 96, 48])
    table = cells.probabilities()
    assert np.allclose(table.sum(axis=1), 1, atol=1e-5)
    pixels = np.asarray(Image.open(paths[0]).convert("RGB"))
    raw = image_shares(result.bundle, pixels)
    logits = image_logits(result.bundle, pixels)
    assert raw.shape == logits.shape == (3,)
    assert np.allclose(raw, 1 / (1 + np.exp(-logits.astype(float) / output.temperature)), atol=1e-6)
    assert table[0].argmax() == raw.argmax()


def coloured(folder: Path, count: int) -> Dataset:
    """Pale images with a square of its own colour for each kind that is in them."""
    kinds = {"lymphocyte": (200, 40, 40), "monocyte": (40, 160, 40), "eosinophil": (40, 40, 200)}
    random = np.random.default_rng(0)
    rows, ids, boxes, names = [], [], [], []
    for number in range(count):
        pixels = np.full((48, 48, 3), 230, np.uint8)
        for place, (name, colour) in enumerate(kinds.items()):
            if random.random() < 0.45:
                left = 8 + place % 2 * 20 + int(random.integers(-4, 5))
                top = 8 + place // 2 * 20 + int(random.integers(-4, 5))
                pixels[top : top + 12, left : left + 12] = colour
                ids.append(f"{number}.png")
                boxes.append([left, top, left + 12, top + 12])
                names.append(name)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        rows.append({
            "image_id": f"{number}.png", "path": str(folder / f"{number}.png"), "width_px": 48, "height_px": 48
        })  # fmt: skip
    cells = Cells.of(LabelSet.of(kinds), image_id=ids, boxes=boxes, label=names, source="import:x")
    return Dataset(Images.of(rows), cells)


@pytest.mark.slow
def test_it_learns_which_kinds_are_there(tmp_path: Path) -> None:
    import json

    import cytolens

    data = coloured(tmp_path, 96)
    optimise = {"epochs": 9, "closing_epochs": 2, "batch": 8, "learning_rate": 0.004, "average_decay": 0}
    own = settings(norm="group", dropout=0, tuning_share=0.25, augment=CALM, optimise=optimise)
    bundle = train(own, data, tmp_path / "run", progress=False).bundle
    # Macro-F1 is 0.62 where every kind is said of every image.
    assert json.loads((tmp_path / "run" / "finished.json").read_text())["score"] > 0.75
    cells = cytolens.predict(data.images.frame["path"].to_list(), bundle=bundle)
    held = [list(data.cells.of_image(image_id).label_names()) for image_id in cells.frame["image_id"]]
    single = np.array([len(names) == 1 for names in held])
    likeliest = [bundle.labels.leaves[leaf] for leaf in cells.probabilities().argmax(axis=1)]
    right = [name == names[0] for name, names in zip(likeliest, held, strict=True) if len(names) == 1]
    assert single.sum() > 20
    assert np.mean(right) > 0.75
    nothing = np.array([not names for names in held])
    assert cells.scores()[nothing].mean() < cells.scores()[single].mean() - 0.1


def test_images_whose_cells_have_no_word_are_left_out(tmp_path: Path) -> None:
    data = smears(tmp_path)
    said: list[str] = []
    narrow = settings(labels=["lymphocyte", "monocyte"])
    made = prepared([data], narrow, None, said.append)
    lost = set(data.cells.frame.filter(data.cells.frame["label"] == "segmented neutrophil")["image_id"])
    assert set(made.images.ids) == set(data.images.ids) - lost
    assert any(f"so are {len(lost)} whole images" in line for line in said)
    crops = checked(ClassifyTraining, {"labels": ["lymphocyte", "monocyte"]}, "test")
    assert len(prepared([data], crops, None, said.append).images) == len(data.images)
