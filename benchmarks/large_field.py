"""A field of 10,000 × 10,000 px segmented in bounded memory: peak memory, seconds, counts against the truth, seams.

    python benchmarks/large_field.py BUNDLE          such as nuclei, or the folder of a bundle
    python benchmarks/large_field.py double          a network that reads its answer from the picture: the reading alone

Nuclei on a dark ground, as in fluorescence: ellipses apart from each other, so that their number is known. The file is
a tiled TIFF, written tile by tile; it is read by `cytolens predict` in a process of its own.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree

from cytolens import masks
from cytolens.bundle import BundleInfo, write
from cytolens.cells import Cells
from cytolens.labels import LabelSet
from cytolens.tasks.outlines import STEP_PX, OutlineInput, OutlineOutput

SIDE_PX = 10_000
STEP = 150  # px between the nuclei, on the whole
TILE_PX = 256
RADII_PX = (8.0, 20.0)

Truth = NDArray[np.float64]  # x, y, half axes, angle, brightness of each nucleus


def placed(side_px: int, seed: int = 0) -> Truth:
    """Nuclei, one in each square of a grid, anywhere in it; none reaches over the border of its square."""
    random = np.random.default_rng(seed)
    per_side = side_px // STEP
    middles = np.stack(np.meshgrid(np.arange(per_side), np.arange(per_side)), axis=-1).reshape(-1, 2) * STEP + STEP / 2
    count = len(middles)
    axes = random.uniform(*RADII_PX, (count, 2))
    axes[:, 1] = np.clip(axes[:, 1], axes[:, 0] / 1.5, axes[:, 0] * 1.5)
    spare = STEP / 2 - axes.max(axis=1, keepdims=True) - 4
    middles = middles + random.uniform(-1, 1, (count, 2)) * spare
    return np.column_stack([middles, axes, random.uniform(0, np.pi, count), random.uniform(110, 210, count)])


def rendered(truth: Truth, tree: KDTree, x: int, y: int, charted: bool) -> NDArray[np.uint8]:
    """One tile, uint8 (TILE_PX, TILE_PX, 3)."""
    rows, columns = np.mgrid[y : y + TILE_PX, x : x + TILE_PX] + 0.5
    random = np.random.default_rng((x, y))
    light = np.full((TILE_PX, TILE_PX), 14.0)
    chart = np.zeros((TILE_PX, TILE_PX, 3), np.uint8)
    middle = np.array([x, y]) + TILE_PX / 2
    for number in tree.query_ball_point(middle, TILE_PX * 0.75 + 2 * RADII_PX[1]):
        left, top, a, b, angle, bright = truth[number]
        dx, dy = columns - left, rows - top
        along, across = dx * np.cos(angle) + dy * np.sin(angle), dy * np.cos(angle) - dx * np.sin(angle)
        away = np.hypot(along / a, across / b)
        # A border of about two px, and a body that is a little brighter in its middle.
        share = 1 / (1 + np.exp((away - 1) * min(a, b) / 0.7))
        light += share * (bright - 14) * (1 - 0.2 * np.minimum(away, 1) ** 2)
        own = away <= 1
        near = 1 + 254 * np.exp(-(dx**2 + dy**2) / (2 * (0.16 * np.sqrt(np.pi * a * b)) ** 2))
        chart[own] = np.stack([near, 128 - 2 * dy, 128 - 2 * dx], axis=-1)[own].round().astype(np.uint8)
    if charted:
        return chart
    grey = np.clip(light + random.normal(0, 4, light.shape), 0, 255).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)


def write_field(path: Path, truth: Truth, side_px: int, charted: bool) -> None:
    """The field as a tiled TIFF; one tile at a time is in memory."""
    import tifffile

    tree = KDTree(truth[:, :2])

    def tiles() -> Iterator[NDArray[np.uint8]]:
        for y in range(0, side_px, TILE_PX):
            for x in range(0, side_px, TILE_PX):
                yield rendered(truth, tree, x, y, charted)

    with tifffile.TiffWriter(path) as file:
        file.write(
            tiles(), shape=(side_px, side_px, 3), dtype=np.uint8, tile=(TILE_PX, TILE_PX), photometric="rgb",
            compression="zlib",
        )  # fmt: skip


def double(folder: Path) -> Path:
    """A bundle whose network reads its maps from the channels of the picture."""
    from onnx import TensorProto, helper

    def number(name: str, *values: float) -> object:
        return helper.make_tensor(name, TensorProto.FLOAT, [len(values), 1, 1], values)

    nodes = [
        helper.make_node("Cast", ["images"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["floats"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Slice", ["planes", "first", "second", "axis"], ["red"]),
        helper.make_node("Clip", ["red", "none", "one"], ["inside"]),
        helper.make_node("Concat", ["red", "planes"], ["four"], axis=1),
        helper.make_node("Sub", ["four", "zeros"], ["centred"]),
        helper.make_node("Mul", ["centred", "scales"], ["scaled"]),
        helper.make_node("Mul", ["scaled", "inside"], ["maps"]),
    ]
    constants = [
        *(
            helper.make_tensor(name, TensorProto.INT64, [1], [v])
            for name, v in (("first", 0), ("second", 1), ("axis", 1))
        ),
        *(helper.make_tensor(name, TensorProto.FLOAT, [], [v]) for name, v in (("none", 0.0), ("one", 1.0))),
        number("zeros", 0, 0, 128, 128),
        number("scales", 1, 1 / 255, 1 / (2 * STEP_PX), 1 / (2 * STEP_PX)),
    ]
    sides = ["batch", "height", "width"]
    graph = helper.make_graph(
        nodes, "chart", [helper.make_tensor_value_info("images", TensorProto.UINT8, [*sides, 3])],
        [helper.make_tensor_value_info("maps", TensorProto.FLOAT, [sides[0], 4, *sides[1:]])], constants,
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    info = BundleInfo(
        name="double",
        task="segment",
        labels=LabelSet.of(["nucleus"]).to_dict(),
        architecture={"kind": "maps"},
        outline_input=OutlineInput(levels=False),
        outline_output=OutlineOutput(),
    )
    return write(folder / "double", info, {"model.onnx": model.SerializeToString()}).folder


def judged(cells: Cells, truth: Truth, side_px: int) -> list[str]:
    """What was found against what is there."""
    corners, codes = cells.boxes(), [code or b"" for code in cells.masks()]
    middles = (corners[:, :2] + corners[:, 2:]) / 2
    areas = np.array([masks.area(code) for code in codes])
    lines = [f"cells: {len(cells)} found, {len(truth)} there ({len(cells) / len(truth) - 1:+.2%})"]
    away, owner = KDTree(truth[:, :2]).query(middles)
    hit = away < truth[owner, 2:4].min(axis=1) / 2
    each = np.bincount(owner[hit], minlength=len(truth))
    lines.append(
        f"found once: {int((each == 1).sum())}, missed: {int((each == 0).sum())}, more than once: "
        f"{int((each > 1).sum())}, elsewhere: {int((~hit).sum())}"
    )
    ratios = areas[hit] / (np.pi * truth[owner[hit], 2] * truth[owner[hit], 3])
    lines.append(
        f"area against the truth: median {np.median(ratios):.3f}, 1 % … 99 %: {np.percentile(ratios, 1):.3f} … "
        f"{np.percentile(ratios, 99):.3f}, cut to less than half: {int((ratios < 0.5).sum())}"
    )
    doubles = 0
    diameters = (corners[:, 2:] - corners[:, :2]).mean(axis=1)
    for one, other in KDTree(middles).query_pairs(4 * RADII_PX[1]):
        near = np.hypot(*(middles[one] - middles[other])) < max(diameters[one], diameters[other]) / 3
        doubles += int(near or masks.iou([codes[one]], [codes[other]], (side_px, side_px))[0, 0] > 0.3)
    return [*lines, f"doubles: {doubles}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", help='name or folder of a bundle, or "double"')
    parser.add_argument("--side", type=int, default=SIDE_PX, help="side of the field in px; at least 8,001")
    parser.add_argument("--tta", default="bundle", help="views of each tile, as of cytolens predict")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="cytolens-field-") as name:
        folder, charted = Path(name), given.bundle == "double"
        truth = placed(given.side)
        started = time.perf_counter()
        write_field(folder / "field.tif", truth, given.side, charted)
        print(f"written in {time.perf_counter() - started:.0f} s: {given.side} × {given.side} px, {len(truth)} nuclei")
        bundle = str(double(folder)) if charted else given.bundle
        program = "from cytolens.apps.cli.main import main; main()"
        words = ["predict", folder / "field.tif", "--bundle", bundle, "--out", folder / "out", "--format", "cells"]
        started = time.perf_counter()
        subprocess.run([sys.executable, "-c", program, *map(str, words), "--tta", given.tta], check=True)
        seconds = time.perf_counter() - started
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024**2
        print(f"segmented in {seconds:.0f} s, peak memory {peak:.2f} GiB")
        cells = Cells.read_parquet(folder / "out" / "cells.parquet")
        counted = cells.filter(cells.frame["counted"].to_numpy())
        print("\n".join(judged(counted, truth, given.side)))


if __name__ == "__main__":
    main()
