"""Hypothesis strategies for the nouns, shared by all tests.

Everything drawn here is legal: boxes have an area, label names are unique after folding, every cell
refers to an image of its table. A test that wants something illegal makes it from something legal.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from cytolens import masks as mask_arithmetic
from cytolens import views
from cytolens.cells import Cells
from cytolens.dataset import Dataset
from cytolens.images import Images
from cytolens.labels import AttributeSchema, LabelSet, folded

# Letters with case, accents, a ligature, other scripts, separators and quotes: what real label names hold.
_ALPHABET = "abcdXYZ019éßΣæ細胞 -_.'\",/µ"
_ROLES = ("leukocyte", "erythroblast", "erythrocyte", "platelet", "lysed", "artefact")
PUBLISHED_SETS = ("pbc", "txl_pbc", "bccd", "cytologia", "celluscan", "leukemia_attri")


# -- boxes and masks ------------------------------------------------------------------------------


@st.composite
def box_arrays(
    draw: st.DrawFn, *, least: int = 0, most: int = 6, side_px: int = 64, grid_px: float | None = None
) -> NDArray[np.float64]:
    """Boxes with an area inside a square of `side_px`, float64, shape (N, 4).

    With `grid_px` all edges are multiples of it, so that equal boxes and equal overlaps are common;
    otherwise they are any float32 numbers.
    """
    count = draw(st.integers(least, most))
    rows = [[*draw(_spans(side_px, grid_px)), *draw(_spans(side_px, grid_px))] for _ in range(count)]
    table = np.array(rows, np.float64).reshape(count, 4)
    return table[:, [0, 2, 1, 3]]


@st.composite
def _spans(draw: st.DrawFn, side_px: int, grid_px: float | None) -> tuple[float, float]:
    """A low and a high edge, at least a 16th of a pixel apart."""
    if grid_px is not None:
        steps = int(side_px / grid_px)
        low = draw(st.integers(0, steps - 1))
        return low * grid_px, draw(st.integers(low + 1, steps)) * grid_px
    low = draw(st.floats(0, side_px - 1, width=32))
    return low, draw(st.floats(float(np.float32(low + 0.0625)), side_px, width=32))


def score_arrays(count: int, *, ties: bool = True) -> st.SearchStrategy[NDArray[np.float32]]:
    """Scores in [0.01, 1], float32, shape (count,); with `ties` only ten values occur."""
    one = st.integers(1, 10).map(lambda n: n / 10) if ties else st.floats(0.0625, 1, width=32)
    return st.lists(one, min_size=count, max_size=count).map(lambda values: np.array(values, np.float32))


def mask_arrays(size_hw: tuple[int, int] | None = None, *, most: int = 12) -> st.SearchStrategy[NDArray[np.bool_]]:
    """Boolean masks (H, W), of a given size or with sides from 1 to `most`; often empty, full or one pixel."""
    side = st.integers(1, most)
    shape = st.tuples(side, side) if size_hw is None else st.just(size_hw)
    return shape.flatmap(
        lambda hw: st.one_of(
            hnp.arrays(np.bool_, hw),
            st.booleans().map(lambda value: np.full(hw, value)),
            st.tuples(st.integers(0, hw[0] - 1), st.integers(0, hw[1] - 1)).map(lambda at: _one_pixel(hw, at)),
        )
    )


def _one_pixel(size_hw: tuple[int, int], at: tuple[int, int]) -> NDArray[np.bool_]:
    mask = np.zeros(size_hw, bool)
    mask[at] = True
    return mask


def mask_codes(size_hw: tuple[int, int]) -> st.SearchStrategy[bytes]:
    """Masks of a given size as COCO's compressed run-length code."""
    return mask_arrays(size_hw).map(mask_arithmetic.encode)


# -- labels ---------------------------------------------------------------------------------------


def label_names(least: int = 1, most: int = 6) -> st.SearchStrategy[list[str]]:
    """Names that stay different when case and separators are ignored."""
    name = st.text(_ALPHABET, min_size=1, max_size=10).filter(lambda text: folded(text) != "")
    return st.lists(name, min_size=least, max_size=most, unique_by=folded)


@st.composite
def attribute_schemas(draw: st.DrawFn, most: int = 2) -> tuple[AttributeSchema, ...]:
    """Up to `most` attributes with one to three values each."""
    names = draw(st.lists(st.sampled_from(["size", "shape", "colour", "granule"]), max_size=most, unique=True))
    values = st.lists(st.sampled_from(["small", "big", "nil", "très", "no"]), min_size=1, max_size=3, unique=True)
    return tuple(AttributeSchema("look", name, tuple(draw(values)), draw(st.booleans())) for name in names)


@st.composite
def label_sets(draw: st.DrawFn, *, least: int = 1, most: int = 6) -> LabelSet:
    """Label sets with a random forest of parents, aliases, roles and attributes."""
    words = draw(label_names(least, most + 3))
    split = min(most, max(least, draw(st.integers(least, len(words)))))
    names, spare = words[:split], words[split:]
    parents: dict[str, str] = {}
    for at in range(1, len(names)):  # a parent comes from the earlier names: no ring
        if (wider := draw(st.none() | st.sampled_from(names[:at]))) is not None:
            parents[names[at]] = wider
    some = st.sampled_from(names) if names else st.nothing()
    return LabelSet(
        names=tuple(draw(st.permutations(names))),
        parents=parents,
        aliases={alias: draw(some) for alias in spare if names},
        roles=draw(st.dictionaries(some, st.sampled_from(_ROLES), max_size=2)) if names else {},
        reportable=frozenset(draw(st.sets(some))) if names else frozenset(),
        attributes=draw(attribute_schemas()),
    )


def published_sets() -> st.SearchStrategy[LabelSet]:
    """One of the label sets of published data that the package ships."""
    return st.sampled_from(PUBLISHED_SETS).map(LabelSet.shipped)


# -- images, cells, datasets ----------------------------------------------------------------------


def pictures(*, least_px: int = 1, most_px: int = 24) -> st.SearchStrategy[NDArray[np.uint8]]:
    """Pixels of noise, uint8 RGB, shape (H, W, 3)."""
    side = st.integers(least_px, most_px)
    return st.builds(
        lambda height, width, seed: np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8),
        side,
        side,
        st.integers(0, 2**16),
    )


@st.composite
def image_tables(
    draw: st.DrawFn,
    *,
    least: int = 0,
    most: int = 4,
    size_wh: tuple[int, int] = (64, 48),
    labels: LabelSet | None = None,
) -> Images:
    """Tables of images of one size, whose files do not exist."""
    names = draw(st.lists(st.text("abcß細 /._-", min_size=1, max_size=8), min_size=least, max_size=most, unique=True))
    some_label = st.lists(st.sampled_from(labels.names), unique=True) if labels and labels.names else st.just([])
    rows: list[dict[str, Any]] = [
        {
            "image_id": name,
            "path": f"/nowhere/{number}.png",
            "width_px": size_wh[0],
            "height_px": size_wh[1],
            "um_per_px": draw(st.none() | st.sampled_from([0.1, 0.25])),
            "sha256": draw(st.none() | st.integers(0, 15).map(lambda n: f"{n:064x}")),
            "group": draw(st.none() | st.sampled_from(["patient 1", "patient 2"])),
            "complete_for": draw(st.none() | some_label),
            "stain": draw(st.none() | st.just("May-Grünwald-Giemsa")),
            "fold": draw(st.none() | st.integers(0, 4)),
            "split": draw(st.none() | st.sampled_from(["train", "val"])),
        }
        for number, name in enumerate(names)
    ]
    return Images.of(rows)


@st.composite
def cell_tables(
    draw: st.DrawFn,
    labels: LabelSet | None = None,
    *,
    image_ids: tuple[str, ...] = ("a.png", "b/ü.png"),
    size_wh: tuple[int, int] = (64, 48),
    least: int = 0,
    most: int = 5,
    found: bool | None = None,
    with_masks: bool | None = None,
) -> Cells:
    """Cells of a label set (drawn where it is not given), inside images of `size_wh`.

    Args:
        draw: hypothesis's own.
        labels: the label set; None draws one.
        image_ids: the images that cells may lie in; none: no cells.
        size_wh: size of every image in px.
        least, most: how many cells.
        found: True: with scores and probabilities; False: said by a person; None: either.
        with_masks: whether every cell, no cell or (None) some cells have a mask.
    """
    labels = draw(label_sets()) if labels is None else labels
    count = draw(st.integers(least, most)) if image_ids else 0
    found = draw(st.booleans()) if found is None else found

    def column(one: st.SearchStrategy[Any]) -> list[Any]:
        return [draw(one) for _ in range(count)]

    code = mask_codes((size_wh[1], size_wh[0])) if with_masks is not False else st.none()
    if with_masks is None:
        code = st.none() | code
    boxes = draw(box_arrays(least=count, most=count, side_px=min(size_wh)))
    attributes: dict[str, Any] = {a.column: column(st.none() | st.sampled_from(a.values)) for a in labels.attributes}
    for attribute in labels.attributes if found else ():
        shares = draw(_shares(count, len(attribute.values)))
        known = np.array(column(st.booleans()), bool)
        shares[~known] = np.nan
        attributes[f"{attribute.column}_probabilities"] = shares
        for row in np.flatnonzero(known):  # a model says the likeliest value
            attributes[attribute.column][row] = attribute.values[int(shares[row].argmax())]
    return Cells.of(
        labels,
        image_id=column(st.sampled_from(image_ids)) if count else [],
        boxes=boxes,
        label=column(st.none() | st.sampled_from(labels.names)) if labels.names else [None] * count,
        source="bundle:test@0123" if found else "human:ab",
        score=draw(score_arrays(count)) if found else None,
        probabilities=draw(_shares(count, len(labels.leaves))) if found else None,
        known=column(st.booleans()) if found else None,
        mask=column(code),
        attributes=attributes,
        ignore=column(st.booleans()),
        counted=column(st.booleans()),
        refer=column(st.booleans()),
    )


def _shares(count: int, width: int) -> st.SearchStrategy[NDArray[np.float32]]:
    """Rows of `width` shares that sum to 1, shape (count, width)."""
    one = st.integers(1, 8)
    return hnp.arrays(np.float64, (count, width), elements=one.map(float)).map(
        lambda table: (table / table.sum(axis=1, keepdims=True)).astype(np.float32) if width else table
    )


@st.composite
def datasets(draw: st.DrawFn, labels: LabelSet | None = None, *, most_images: int = 3, most_cells: int = 5) -> Dataset:
    """Datasets whose image files do not exist; some of their images have no cell."""
    labels = draw(label_sets()) if labels is None else labels
    images = draw(image_tables(most=most_images, labels=labels))
    cells = draw(cell_tables(labels, image_ids=tuple(images.ids), most=most_cells))
    name = draw(st.sampled_from(["smears", "Färbung 2", "細胞"]))
    licence = draw(st.sampled_from(["", "CC0-1.0", "CC BY 4.0"]))
    return Dataset(images, cells, name, ({"step": "drawn"},), licence)


# -- views ----------------------------------------------------------------------------------------


@st.composite
def view_steps(draw: st.DrawFn, source_wh: tuple[int, int]) -> views.View:
    """One view of a picture of `source_wh`: flip, quarter turn, tile, letterbox or crop."""
    kind = draw(st.sampled_from(["flip", "turn", "tile", "letterbox", "crop"]))
    width, height = source_wh
    if kind == "flip":
        return views.flip(source_wh, draw(st.booleans()))
    if kind == "turn":
        return views.quarter_turn(source_wh, draw(st.integers(-3, 5)))
    if kind == "letterbox":
        return views.letterbox(source_wh, (draw(st.integers(8, 96)), draw(st.integers(8, 96))))
    if kind == "tile":
        corner = draw(st.integers(-8, width)), draw(st.integers(-8, height))
        return views.tile(source_wh, *corner, (draw(st.integers(1, 64)), draw(st.integers(1, 64))))
    side = draw(st.integers(4, 64))
    x_min, y_min = draw(st.integers(-8, width - 1)), draw(st.integers(-8, height - 1))
    return views.crop(source_wh, (x_min, y_min, x_min + side, y_min + side), draw(st.integers(8, 64)))


@st.composite
def view_chains(draw: st.DrawFn, source_wh: tuple[int, int] = (40, 30), *, most: int = 4) -> views.View:
    """Up to `most` views, one after the other, as one view."""
    view = views.View.whole(source_wh)
    for _ in range(draw(st.integers(0, most))):
        view = view.then(draw(view_steps(view.wh)))
    return view
