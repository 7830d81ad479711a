"""Proposals: placed, decoded and chosen as torchvision does; averaged over members."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from cytolens.models.region_settings import AnchorLayout
from cytolens.problems import SettingError
from cytolens.tasks.region_proposals import Mean, anchors, counts, decoded, grids_hw, joined, layout_of, proposals
from cytolens.tasks.segment import SegmentInput as Input
from cytolens.tasks.segment import SegmentOutput, picture
from cytolens.views import View
from tests.reference import suppressed
from tests.strategies import box_arrays, score_arrays

WHOLE = AnchorLayout((4, 8, 16, 32, 64), 8, (0.5, 1, 2))
HALVED = AnchorLayout((2, 4, 8, 16, 32), 8, (0.5, 1, 2))


def of_torchvision(layout: AnchorLayout, wh: tuple[int, int]) -> Any:
    """torchvision's anchors for one input."""
    import torch
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.models.detection.image_list import ImageList

    sizes = tuple((layout.scale * stride,) for stride in layout.strides)
    made = AnchorGenerator(sizes, (layout.ratios,) * len(sizes))
    maps = [torch.zeros(1, 1, *grid) for grid in grids_hw(layout, wh)]
    return made(ImageList(torch.zeros(1, 3, wh[1], wh[0]), [(wh[1], wh[0])]), maps)[0]


@pytest.mark.torch
@pytest.mark.parametrize("layout", [WHOLE, HALVED])
def test_anchors_stand_where_torchvision_places_them(layout: AnchorLayout) -> None:
    expected = of_torchvision(layout, (192, 128)).numpy()
    placed = anchors(layout, (192, 128))
    assert placed.dtype == np.float32
    assert len(placed) == sum(counts(layout, (192, 128)))
    np.testing.assert_array_equal(placed, expected)


def test_a_place_is_its_stride_from_the_next_even_on_a_level_that_ends_in_half_a_place() -> None:
    placed = anchors(AnchorLayout((64,), 1, (1.0,)), (96, 32))
    assert placed.tolist() == [[-32, -32, 32, 32], [32, -32, 96, 32]]


@pytest.mark.torch
def test_deltas_are_decoded_as_torchvision_does() -> None:
    import torch
    from torchvision.models.detection._utils import BoxCoder

    random = np.random.default_rng(0)
    placed = anchors(WHOLE, (64, 64))
    deltas = random.normal(0, 2, placed.shape).astype(np.float32)
    deltas[:5] = 9  # beyond the most that a box may grow
    expected = BoxCoder((1.0, 1.0, 1.0, 1.0)).decode(torch.tensor(deltas), [torch.tensor(placed)])[:, 0].numpy()
    np.testing.assert_allclose(decoded(deltas, placed), expected, rtol=1e-5, atol=1e-3)
    grown = decoded(deltas[:1], placed[:1])[0]
    assert (grown[2] - grown[0]) / (placed[0, 2] - placed[0, 0]) == pytest.approx(62.5, rel=1e-4)


def of_filter(
    logits: NDArray[np.float32],
    deltas: NDArray[np.float32],
    layout: AnchorLayout,
    wh: tuple[int, int],
    shown_wh: tuple[int, int],
    output: SegmentOutput,
) -> tuple[Any, Any]:
    """What torchvision's proposal network keeps."""
    import torch
    from torchvision.models.detection._utils import BoxCoder
    from torchvision.models.detection.rpn import RegionProposalNetwork

    kept = {"training": output.proposals_before, "testing": output.proposals_before}
    after = {"training": output.proposals_kept, "testing": output.proposals_kept}
    head: Any = torch.nn.Identity()
    network = RegionProposalNetwork(
        SimpleNamespace(),  # type: ignore[arg-type]
        head, 0.7, 0.3, 256, 0.5, kept, after, output.proposal_nms_iou, output.proposal_floor,
    ).eval()  # fmt: skip
    placed = of_torchvision(layout, wh)
    boxes = BoxCoder((1.0, 1.0, 1.0, 1.0)).decode(torch.tensor(deltas), [placed]).view(1, -1, 4)
    found, scores = network.filter_proposals(
        boxes, torch.tensor(logits)[None], [(shown_wh[1], shown_wh[0])], counts(layout, wh)
    )
    return found[0].numpy(), scores[0].numpy()


@pytest.mark.torch
@pytest.mark.parametrize("floor", [0.0, 0.6])
@pytest.mark.parametrize("layout", [WHOLE, HALVED])
def test_proposals_are_those_of_torchvision(layout: AnchorLayout, floor: float) -> None:
    output = SegmentOutput(proposals_before=150, proposal_nms_iou=0.6, proposal_floor=floor, proposals_kept=200)
    random = np.random.default_rng(1)
    wh, shown_wh = (192, 128), (170, 101)
    count = sum(counts(layout, wh))
    logits = random.normal(0, 2, count).astype(np.float32)
    deltas = random.normal(0, 0.4, (count, 4)).astype(np.float32)
    _, view = picture(np.zeros((101, 170, 3), np.uint8), Input())
    boxes, scores = proposals(logits, deltas, layout, view, output)
    expected, told = of_filter(logits, deltas, layout, wh, shown_wh, output)
    assert len(boxes) > 60
    assert boxes.dtype == scores.dtype == np.float32
    np.testing.assert_allclose(scores, told, atol=1e-6)
    np.testing.assert_allclose(boxes, expected, atol=1e-3)


def test_proposals_of_a_magnified_picture_are_in_px_of_the_image() -> None:
    output = SegmentOutput(proposal_nms_iou=0.5)
    random = np.random.default_rng(2)
    count = sum(counts(WHOLE, (128, 64)))
    logits, deltas = random.normal(0, 1, count).astype(np.float32), np.zeros((count, 4), np.float32)
    halves, told = proposals(
        logits, deltas, WHOLE, picture(np.zeros((32, 64, 3), np.uint8), Input(magnify=2))[1], output
    )
    wholes, same = proposals(logits, deltas, WHOLE, View.whole((128, 64)), output)
    np.testing.assert_allclose(halves * 2, wholes, atol=1e-4)
    np.testing.assert_array_equal(told, same)


def test_what_is_not_finite_is_no_proposal() -> None:
    count = sum(counts(WHOLE, (32, 32)))
    deltas = np.full((count, 4), np.nan, np.float32)
    boxes, scores = proposals(np.zeros(count, np.float32), deltas, WHOLE, View.whole((32, 32)), SegmentOutput())
    assert boxes.shape == (0, 4)
    assert scores.shape == (0,)


def test_another_number_of_anchors_is_refused() -> None:
    with pytest.raises(ValueError, match="anchors stand on an input of"):
        proposals(np.zeros(5, np.float32), np.zeros((5, 4), np.float32), WHOLE, View.whole((32, 32)), SegmentOutput())


@given(
    st.lists(st.tuples(st.lists(st.floats(-9, 9), min_size=3, max_size=3), st.floats(0.1, 5)), min_size=1, max_size=5)
)
def test_the_mean_is_that_of_all_members_by_weight(members: list[tuple[list[float], float]]) -> None:
    mean = Mean()
    for values, weight in members:
        given_values = np.array(values)
        mean.add(given_values, weight)
        assert given_values.tolist() == values
    total = sum(weight for _, weight in members)
    expected = [sum(values[i] * weight for values, weight in members) / total for i in range(3)]
    np.testing.assert_allclose(mean.value(), expected, atol=1e-9)


def test_there_is_no_mean_of_nothing() -> None:
    with pytest.raises(ValueError, match="no mean of nothing"):
        Mean().value()


@given(st.data())
def test_lists_of_other_anchors_are_joined_by_suppression(data: st.DataObject) -> None:
    lists = []
    for _ in range(2):
        boxes = data.draw(box_arrays(most=6)).astype(np.float32)
        scores = np.sort(data.draw(score_arrays(len(boxes))))[::-1]
        lists.append((boxes, scores.astype(np.float32)))
    output = SegmentOutput(proposal_nms_iou=0.4, proposals_kept=5)
    found, told = joined(lists, output)
    boxes, scores = (np.concatenate(part) for part in zip(*lists, strict=True))
    expected = suppressed(boxes.tolist(), scores.tolist(), 0.4, [0] * len(boxes))[:5]
    assert found.tolist() == boxes[expected].tolist()
    assert told.tolist() == scores[expected].tolist()
    assert joined(lists[:1], output) is lists[0]


def test_a_layout_is_read_from_what_a_bundle_says() -> None:
    layout = layout_of({"strides": [2, 4], "scale": 8, "ratios": [0.5, 1, 2]})
    assert layout == AnchorLayout((2, 4), 8.0, (0.5, 1.0, 2.0))
    assert counts(layout, (64, 32)) == [32 * 16 * 3, 16 * 8 * 3]
    for wrong in ({}, {"strides": [2], "scale": "x", "ratios": [1]}, {"strides": 2, "scale": 8, "ratios": [1]}):
        with pytest.raises(SettingError, match="strides, scale and ratios"):
            layout_of(wrong)
    with pytest.raises(SettingError, match="positive"):
        layout_of({"strides": [2], "scale": 8, "ratios": [0]})
