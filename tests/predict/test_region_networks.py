"""Region networks asked together: what is averaged, how views are undone, what follows flips, what memory holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from cytolens import boxes as box
from cytolens.bundle import Bundle, write
from cytolens.models.region_settings import AnchorLayout
from cytolens.predict import tta
from cytolens.predict.region_member import Floats, Pixels, RegionMember, shown, turned_back
from cytolens.predict.region_networks import RegionEnsemble
from cytolens.problems import BundleError, LabelError, SettingError
from cytolens.tasks.region_proposals import counts
from cytolens.tasks.segment import SegmentInput, SegmentOutput
from cytolens.views import flip
from tests.predict.region_doubles import LAYOUT, RegionEyes, connect, ensemble, outlining

HALVED = AnchorLayout((2, 4, 8, 16, 32), 6.0, (1.0, 2.0))
DISCS = ((20, 15, 9), (50, 30, 11), (75, 12, 7), (30, 40, 8), (68, 44, 10))


def discs(width: int = 90, height: int = 55) -> Pixels:
    """Dark discs with soft edges on white."""
    y, x = np.mgrid[:height, :width] + 0.5
    pixels = np.full((height, width, 3), 250.0)
    for number, (centre_x, centre_y, radius) in enumerate(DISCS):
        cover = 1 / (1 + np.exp(np.hypot(x - centre_x, y - centre_y) - radius))
        pixels -= cover[..., None] * (150 + 10 * number)
    return np.clip(pixels, 0, 255).astype(np.uint8)


def squares(random: np.random.Generator, count: int, wh: tuple[int, int]) -> Floats:
    """Boxes inside an image, of which some end at its edge."""
    middle = random.uniform(8, np.array(wh) - 8, (count, 2))
    half = random.uniform(5, 14, (count, 2))
    return box.clip(np.concatenate([middle - half, middle + half], axis=1), *wh).astype(np.float32)


def mirrored(regions: Floats, wh: tuple[int, int], axis: int) -> Floats:
    """Boxes in the image mirrored along x (0) or y (1), written out."""
    found = regions.copy()
    found[:, axis], found[:, axis + 2] = wh[axis] - regions[:, axis + 2], wh[axis] - regions[:, axis]
    return found


# -- views ------------------------------------------------------------------------------------------


def test_the_worked_mirror_example() -> None:
    pixels = np.zeros((520, 704, 3), np.uint8)
    mirror = flip((704, 520))
    _, view = shown(pixels, mirror, SegmentInput(), (0, 0))
    assert view.forward_boxes([100, 0, 120, 520]).tolist() == [[584, 0, 604, 520]]
    _, moved = shown(pixels, mirror, SegmentInput(), (-0.5, 0))
    assert moved.forward_boxes([100, 0, 120, 520]).tolist() == [[583.5, 0, 603.5, 520]]
    assert moved.back_boxes([583.5, 0, 603.5, 520]).tolist() == [[100, 0, 120, 520]]


@pytest.mark.parametrize("turn", range(8))
def test_patches_are_turned_back(turn: int) -> None:
    patch = np.random.default_rng(0).integers(0, 256, (6, 6, 3)).astype(np.uint8)
    view = tta.symmetries((6, 6), 8)[turn]
    seen = view.pixels(patch).transpose(2, 0, 1).astype(np.float32)
    np.testing.assert_array_equal(turned_back(seen, view).transpose(1, 2, 0), patch)


def test_padding_stays_to_the_right_and_below_whatever_the_view() -> None:
    pixels = np.random.default_rng(0).integers(0, 100, (40, 50, 3)).astype(np.uint8)
    for turn in tta.symmetries((50, 40), 8):
        canvas, view = shown(pixels, turn, SegmentInput(), (0, 0))
        assert canvas.shape == (64, 64, 3)
        right, below = view.forward_boxes([0, 0, 50, 40])[0, 2:].astype(int)
        assert (canvas[:below, :right] < 100).all()
        assert (canvas[below:] == 114).all()
        assert (canvas[:, right:] == 114).all()


# -- averages ---------------------------------------------------------------------------------------


def test_boxes_and_masks_are_averaged_over_members_and_flips(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a slow twin that flips arrays and coordinates by hand."""
    pixels = discs()
    height, width = pixels.shape[:2]
    members = [RegionEyes(lopsided=0.4), RegionEyes(lopsided=1.0, sharpness=3)]
    weights = [1.0, 2.5]
    asked = ensemble(monkeypatch, *members, weights={"b": 2.5}, views=4)
    regions = squares(np.random.default_rng(0), 7, (width, height))
    classes = np.array([0, 1, 2, 0, 1, 2, 0])
    scores_sum, boxes_sum, masks_sum = np.zeros((7, 3)), np.zeros((7, 4)), np.zeros((7, 28, 28))
    for eyes, weight in zip(members, weights, strict=True):
        for across in (False, True):
            for down in (False, True):
                picture = pixels[:: -1 if down else 1, :: -1 if across else 1]
                canvas = np.full((1, 64, 96, 3), 114, np.uint8)
                canvas[0, :height, :width] = picture
                darkness = eyes.run(["map_0", "map_1", "map_2", "map_3", "objectness", "deltas"], {"images": canvas})[0]
                placed = regions
                for axis, flipped in ((0, across), (1, down)):
                    placed = mirrored(placed, (width, height), axis) if flipped else placed
                numbered = np.insert(placed, 0, 0, axis=1)
                scores, boxes = eyes.run(["scores", "boxes"], {"map_0": darkness, "regions": numbered})
                for axis, flipped in ((0, across), (1, down)):
                    boxes = mirrored(boxes, (width, height), axis) if flipped else boxes
                masks = eyes.run(["masks"], {"map_0": darkness, "regions": numbered, "classes": classes})[0]
                scores_sum += weight / 4 * scores
                boxes_sum += weight / 4 * np.clip(boxes, 0, [width, height, width, height])
                masks_sum += weight / 4 * masks[:, :: -1 if down else 1, :: -1 if across else 1]
    image = asked.image(pixels)
    boxes, scores = asked.boxes(image, regions)
    np.testing.assert_allclose(boxes, boxes_sum / 3.5, atol=1e-4)
    np.testing.assert_allclose(scores, scores_sum / 3.5, atol=1e-6)
    np.testing.assert_allclose(asked.masks(image, regions, classes), masks_sum / 3.5, atol=1e-6)


def test_proposals_are_made_of_the_mean_of_logits_and_deltas(monkeypatch: pytest.MonkeyPatch) -> None:
    class Fixed(RegionEyes):
        """Says the same of every picture."""

        def __init__(self, seed: int) -> None:
            super().__init__()
            random = np.random.default_rng(seed)
            count = sum(counts(LAYOUT, (96, 64)))
            self.said = [random.normal(0, 2, (1, count)), random.normal(0, 0.3, (1, count, 4))]

        def _trunk(self, images: Any) -> Any:
            return [*super()._trunk(images)[:4], *[one.astype(np.float32) for one in self.said]]

    members = [Fixed(0), Fixed(1)]
    asked = ensemble(monkeypatch, *members, weights={"a": 3.0}, views=4)
    both = Fixed(2)
    both.said = [0.75 * a + 0.25 * b for a, b in zip(members[0].said, members[1].said, strict=True)]
    boxes, scores = asked.proposals(asked.image(discs()))
    assert [one.calls for one in members] == [["deltas"]] * 2  # one view each
    alone = ensemble(monkeypatch, both)
    expected, told = alone.proposals(alone.image(discs()))
    assert len(boxes) > 50
    np.testing.assert_allclose(boxes, expected, atol=1e-3)
    np.testing.assert_allclose(scores, told, atol=1e-6)


def test_the_merged_objectness_is_told_level_by_level(monkeypatch: pytest.MonkeyPatch) -> None:
    eyes = [RegionEyes(), RegionEyes((2.0, 1.0)), RegionEyes(layout=HALVED)]
    asked = ensemble(monkeypatch, *eyes, weights={"b": 3.0})
    levels = asked.objectness(asked.image(discs()))
    assert [level.shape for level in levels] == [(384, 3), (96, 3), (24, 3), (6, 3), (2, 3)]
    alone = (ensemble(monkeypatch, one) for one in eyes[:2])  # one after the other: each is connected when it is made
    first, second = (np.concatenate(one.objectness(one.image(discs()))) for one in alone)
    np.testing.assert_allclose(np.concatenate(levels), 0.25 * first + 0.75 * second, atol=1e-5)


def test_an_ensemble_of_equals_is_the_one(monkeypatch: pytest.MonkeyPatch) -> None:
    one = ensemble(monkeypatch, RegionEyes(lopsided=0.5), views=4).look(discs())
    three = ensemble(monkeypatch, *[RegionEyes(lopsided=0.5) for _ in range(3)], views=4).look(discs())
    assert len(one.boxes) >= len(DISCS)
    np.testing.assert_allclose(three.boxes, one.boxes, atol=1e-4)
    np.testing.assert_allclose(three.class_scores, one.class_scores, atol=1e-6)
    assert np.abs(three.patches.astype(int) - one.patches).max() <= 1


def test_a_member_without_weight_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    silent = RegionEyes()
    ensemble(monkeypatch, RegionEyes(), silent, weights={"b": 0}).look(discs())
    assert silent.calls == []


def test_members_with_other_anchors_and_scales_propose_for_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    eyes = {"a": RegionEyes(), "b": RegionEyes(layout=HALVED), "c": RegionEyes()}
    connect(monkeypatch, **eyes)
    bundles = [outlining("a"), outlining("b", layout=HALVED), outlining("c", magnify=2.0)]
    output = SegmentOutput(proposal_floor=0.5, proposal_nms_iou=0.5, views=2)
    together = RegionEnsemble(bundles, output)
    regions, scores = together.proposals(together.image(discs()))
    assert (np.diff(scores) <= 0).all()
    overlaps = box.iou(regions, regions) - np.eye(len(regions))
    assert overlaps.max() <= 0.5
    own = [RegionEnsemble([bundle], output) for bundle in bundles]
    lists = [one.proposals(one.image(discs()))[0] for one in own]
    for one in lists:
        assert (box.iou(one, regions).max(axis=1) > 0.5 - 1e-6).all()  # each is there, or a better one in its place
    assert {tuple(row) for row in regions.tolist()} <= {tuple(row) for one in lists for row in one.tolist()}
    found = together.look(discs())
    for centre_x, centre_y, radius in DISCS:
        truth = [[centre_x - radius, centre_y - radius, centre_x + radius, centre_y + radius]]
        assert box.iou(truth, found.boxes).max() > 0.4


# -- what follows flips -----------------------------------------------------------------------------


def assert_follows_flips(asked: RegionEnsemble, pixels: Pixels, regions: Floats, classes: NDArray[np.intp]) -> None:
    """The answer for a flipped (and, with eight views, turned) image is the flipped answer, to 1e-4."""
    wh = (pixels.shape[1], pixels.shape[0])
    image = asked.image(pixels)
    boxes, scores = asked.boxes(image, regions)
    masks = asked.masks(image, regions, classes)
    for symmetry in tta.symmetries(wh, asked.output.views)[1:]:
        other = asked.image(symmetry.pixels(pixels))
        moved = symmetry.forward_boxes(regions)
        boxes_there, scores_there = asked.boxes(other, moved)
        np.testing.assert_allclose(symmetry.back_boxes(boxes_there), boxes, atol=1e-4)
        np.testing.assert_allclose(scores_there, scores, atol=1e-4)
        np.testing.assert_allclose(turned_back(asked.masks(other, moved, classes), symmetry), masks, atol=1e-4)


@pytest.mark.parametrize("views", [2, 4, 8])
@pytest.mark.parametrize("wh", [(96, 64), (90, 55), (33, 31)])
def test_stages_two_and_three_follow_flips(monkeypatch: pytest.MonkeyPatch, wh: tuple[int, int], views: int) -> None:
    """With networks that are beside the mark and lopsided, and with padding on one side."""
    eyes = [RegionEyes((0.5, -0.3), lopsided=0.8), RegionEyes(lopsided=0.4), RegionEyes((-0.7, 0.0))]
    asked = ensemble(monkeypatch, *eyes, views=views)
    pixels = np.random.default_rng(1).integers(0, 256, (wh[1], wh[0], 3)).astype(np.uint8)
    regions = squares(np.random.default_rng(2), 9, wh)
    assert_follows_flips(asked, pixels, regions, np.arange(9) % 3)
    alone = ensemble(monkeypatch, *eyes, views=1)  # so there is something to undo
    plain, mirror = alone.image(pixels), alone.image(flip(wh).pixels(pixels))
    there, _ = alone.boxes(mirror, mirrored(regions, wh, 0))
    assert np.abs(mirrored(there, wh, 0) - alone.boxes(plain, regions)[0]).max() > 1e-2


def test_a_network_beside_the_mark_is_brought_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Told its shift, it answers as the network that looks straight, in every view."""
    regions = squares(np.random.default_rng(3), 9, (90, 55))
    regions = regions[(regions > 2).all(axis=1) & (regions[:, 2] < 88) & (regions[:, 3] < 53)]
    straight = ensemble(monkeypatch, RegionEyes())
    boxes, scores = straight.boxes(straight.image(discs()), regions)
    masks = straight.masks(straight.image(discs()), regions, np.zeros(len(regions), int))
    for views in (1, 4):
        beside = ensemble(monkeypatch, RegionEyes((0.5, -0.25)), views=views)
        image = beside.image(discs())
        np.testing.assert_allclose(beside.boxes(image, regions)[0], boxes, atol=1e-4)
        np.testing.assert_allclose(beside.boxes(image, regions)[1], scores, atol=1e-5)
        np.testing.assert_allclose(beside.masks(image, regions, np.zeros(len(regions), int)), masks, atol=1e-4)


# -- what comes out ---------------------------------------------------------------------------------


def test_every_disc_has_its_outline(monkeypatch: pytest.MonkeyPatch) -> None:
    output: dict[str, Any] = {"box_nms_iou": 0.3, "score_floor": 0.3, "views": 4}
    pixels = discs()
    before = pixels.copy()
    found = ensemble(monkeypatch, RegionEyes(), RegionEyes(sharpness=8), **output).look(pixels)
    assert np.array_equal(pixels, before)
    assert found.size_hw == (55, 90)
    assert found.boxes.dtype == found.scores.dtype == found.class_scores.dtype == np.float32
    assert found.patches.dtype == np.uint8
    assert found.patches.shape == (len(found.boxes), 28, 28)
    assert (found.scores >= 0.3).all()
    assert (np.diff(found.scores) <= 0).all()
    assert (found.classes == found.class_scores.argmax(axis=1)).all()
    assert (found.scores == found.class_scores.max(axis=1)).all()
    assert (box.iou(found.boxes, found.boxes) - np.eye(len(found.boxes))).max() <= 0.3
    assert box.valid(found.boxes, 90, 55).all()
    for centre_x, centre_y, radius in DISCS:
        truth = [[centre_x - radius, centre_y - radius, centre_x + radius, centre_y + radius]]
        assert box.iou(truth, found.boxes).max() > 0.4
    assert len(ensemble(monkeypatch, RegionEyes(), **output, most=2).look(pixels).boxes) == 2


def test_an_empty_image_has_no_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    eyes = RegionEyes()
    white = np.full((64, 96, 3), 255, np.uint8)  # fills its canvas, whose grey would be dark
    found = ensemble(monkeypatch, eyes, proposal_floor=0.9, views=4).look(white)
    assert eyes.calls == ["deltas"]  # nothing was proposed, so nothing more is asked
    assert found.size_hw == (64, 96)
    assert found.boxes.shape == (0, 4)
    assert found.class_scores.shape == (0, 3)
    assert found.classes.shape == found.scores.shape == (0,)
    assert found.patches.shape == (0, 28, 28)
    assert found.patches.dtype == np.uint8
    none = ensemble(monkeypatch, eyes, score_floor=1.0, views=4).look(white)
    assert none.boxes.shape == (0, 4)
    assert none.patches.shape == (0, 28, 28)


@pytest.mark.parametrize("wh", [(20, 9), (1, 1), (31, 33)])
def test_images_smaller_than_a_stride(monkeypatch: pytest.MonkeyPatch, wh: tuple[int, int]) -> None:
    found = ensemble(monkeypatch, RegionEyes(), views=8).look(np.full((wh[1], wh[0], 3), 20, np.uint8))
    assert found.size_hw == (wh[1], wh[0])
    assert len(found.boxes) > 0
    assert box.valid(found.boxes, *wh).all()


def test_many_regions_are_asked_about_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    eyes = RegionEyes()
    asked = ensemble(monkeypatch, eyes)
    regions = squares(np.random.default_rng(4), 300, (90, 55))
    boxes, scores = asked.boxes(asked.image(discs()), regions)
    assert eyes.calls == ["deltas", "boxes", "boxes", "boxes"]
    few, told = asked.boxes(asked.image(discs()), regions[200:210])
    np.testing.assert_array_equal(boxes[200:210], few)
    np.testing.assert_array_equal(scores[200:210], told)
    assert asked.masks(asked.image(discs()), regions, np.zeros(300, int)).shape == (300, 28, 28)


# -- memory -----------------------------------------------------------------------------------------


def on_disk(folder: Path, name: str, size: int = 1000) -> Bundle:
    files = {file: bytes(size) for file in ("trunk.onnx", "boxes.onnx", "masks.onnx")}
    return write(folder / name, outlining(name).info, files)


def test_members_that_memory_does_not_hold_are_open_one_at_a_time(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    names = "abc"
    opened = connect(monkeypatch, **{name: RegionEyes() for name in names})
    asked = RegionEnsemble([on_disk(tmp_path, name) for name in names], SegmentOutput(), networks_mb=0.0035)
    first = asked.look(discs())
    open_now = [bool(member._sessions) for member in asked.members]
    assert open_now == [True, False, False]
    assert opened == [
        *[(name, "trunk.onnx") for name in names],
        *[(name, "boxes.onnx") for name in names],
        *[(name, "masks.onnx") for name in names],
    ]
    opened.clear()
    again = asked.look(discs())
    np.testing.assert_array_equal(again.patches, first.patches)
    assert {name for name, _ in opened} == {"b", "c"}


def test_a_member_that_another_thread_closes_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where memory does not hold all members, each thread closes those that it has asked."""

    class ClosedAtOnce(dict[str, Any]):
        def __setitem__(self, key: str, value: Any) -> None:
            """Open for no time at all."""

    connect(monkeypatch, a=RegionEyes())
    asked = RegionEnsemble([outlining("a")], SegmentOutput())
    expected = asked.look(discs())
    asked.members[0]._sessions = ClosedAtOnce()
    np.testing.assert_array_equal(asked.look(discs()).patches, expected.patches)


def test_trunks_look_again_where_memory_does_not_hold_what_they_said(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {}
    for maps_mb, looks in ((1024.0, 2), (0.0, 5)):
        eyes = RegionEyes(lopsided=0.5)
        connect(monkeypatch, a=eyes)
        found[looks] = RegionEnsemble([outlining("a")], SegmentOutput(views=2), maps_mb=maps_mb).look(discs())
        assert eyes.calls.count("deltas") == looks
    np.testing.assert_array_equal(found[2].patches, found[5].patches)


# -- what is refused --------------------------------------------------------------------------------


def test_only_region_networks_are_members() -> None:
    plain = outlining(kind="maps")
    with pytest.raises(BundleError, match='"eyes" does the task "segment", kind "maps"; a region network has'):
        RegionMember(plain)
    with pytest.raises(BundleError, match="architecture: anchors are described by strides, scale and ratios"):
        RegionMember(outlining(anchors={}))
    for wrong in (3, ["a", 1], [1], [0, float("nan")]):
        with pytest.raises(BundleError, match="mirror_shift_px is two numbers"):
            RegionMember(outlining(mirror_shift_px=wrong))
    with pytest.raises(BundleError, match=r"has no trunk\.onnx"):
        RegionEnsemble([outlining()], SegmentOutput()).look(discs())


def test_members_speak_the_same_labels() -> None:
    bundles = [outlining("a"), outlining("b", names=("round", "star", "long"))]
    with pytest.raises(LabelError, match='"b" has the labels round, star, long, and "a" round, long, star'):
        RegionEnsemble(bundles, SegmentOutput())


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"c": 1.0}, 'no member "c"'),
        ({"a": -1.0}, '"a" has -1.0; allowed: 0 and more'),
        ({"a": float("nan")}, '"a" has nan'),
        ({"a": 0.0, "b": 0.0}, "all members have weight 0"),
    ],
)
def test_weights_are_checked(weights: dict[str, float], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        RegionEnsemble([outlining("a"), outlining("b")], SegmentOutput(), weights)


def test_a_weight_is_of_one_member() -> None:
    twice = [outlining("a"), outlining("a"), outlining("b")]
    RegionEnsemble(twice, SegmentOutput(), {"b": 2})
    with pytest.raises(SettingError, match='2 members are called "a"'):
        RegionEnsemble(twice, SegmentOutput(), {"a": 2})


def test_an_ensemble_has_members() -> None:
    with pytest.raises(SettingError, match="at least one member"):
        RegionEnsemble([], SegmentOutput())
