"""Many images: found, read, predicted side by side, and joined into one table of cells."""

from __future__ import annotations

import os
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, count
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from cytolens import boxes as box
from cytolens.cells import Cells
from cytolens.dataset import Dataset
from cytolens.formats.file_metadata import metadata_of
from cytolens.formats.regions import Regions, open_regions
from cytolens.images import Images, find_images, load_image
from cytolens.predict.field_blocks import attributes_of, concepts_of, joined_blocks
from cytolens.predict.field_cells import FieldCells
from cytolens.predict.outlining import sampled_squares
from cytolens.predict.pipeline import Predictor
from cytolens.predict.tiles import Window, windows
from cytolens.problems import DatasetError, ImageError, Problem, Problems
from cytolens.tasks.attributes import values_given

_BLOCK_PX = 4096  # side of the regions in which a large tiled file is looked at
Progress = Callable[[int, int], None]
Task = tuple[dict[str, Any], Cells | None]  # a row of `Images`, and the cells to be named there; None: find them


@dataclass(frozen=True, slots=True)
class ImageResult:
    """One image of a batch: its row for `Images`, and its cells or the problem that stopped it."""

    row: dict[str, Any]
    cells: FieldCells | None
    problem: Problem | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Prediction:
    """What was found in a batch of images.

    Attributes:
        images: those that could be read.
        cells: everything found in them.
        problems: the images that could not be read, and what had to be converted.
        remarks: image_id → sentences about the field as a whole.
        reasons: why cells were referred: reason → how many.
        concepts: what names were read from, one row per cell, as in `FieldCells`; None: not from attributes.
        timings: seconds by phase.
    """

    images: Images
    cells: Cells
    problems: Problems
    remarks: dict[str, tuple[str, ...]] = field(default_factory=dict)
    reasons: dict[str, int] = field(default_factory=dict)
    concepts: NDArray[np.float32] | None = None
    timings: dict[str, float] = field(default_factory=dict)

    @property
    def failed(self) -> list[Problem]:
        """The images that could not be read."""
        return [problem for problem in self.problems if problem.severity == "error"]


def image_rows(
    sources: Sequence[str | os.PathLike[str] | Dataset], leave_out: Path | None = None, where: str | None = None
) -> list[dict[str, Any]]:
    """Rows of `Images` (without sizes) for images, folders, patterns, dataset folders and datasets.

    The image_id is the path relative to the folder that was named, or the file's name; where two
    sources give the same, the folder's name is put in front.

    Args:
        sources: where the images are.
        leave_out: a folder whose files are no images to look at, unless it is named itself.
        where: an SQL condition on the columns of `Images`, such as "fold = 0"; the sources are datasets then.

    Raises:
        DatasetError: a source names no image; or there is a condition, and a source is no dataset or has no such image.
    """
    rows: list[dict[str, Any]] = []
    for source in sources:
        if isinstance(source, Dataset):
            rows += [row | {"_folder": source.name} for row in _chosen(source, where)]
            continue
        folder = Path(source)
        if (folder / "dataset.json").exists():
            rows += [row | {"_folder": folder.resolve().name} for row in _chosen(Dataset.read(folder), where)]
            continue
        if where is not None:
            raise DatasetError(
                f'"{source}" is no dataset, so its images have no columns for "{where}"; import it first'
            )
        for path in find_images([source]):
            if leave_out is not None and _within(path, leave_out) and not _within(folder, leave_out):
                continue
            relative = path.relative_to(folder) if folder.is_dir() else Path(path.name)
            parent = (folder if folder.is_dir() else path.parent).resolve()
            rows.append({"image_id": relative.as_posix(), "path": str(path.resolve()), "_folder": parent.name})
    # A file that several sources name is looked at once; a dataset's image without a file is a case of its own.
    unique = {row["path"] or ("no file", number): row for number, row in enumerate(rows)}
    repeated = {name for name, times in Counter(row["image_id"] for row in unique.values()).items() if times > 1}
    return _apart(list(unique.values()), repeated)


def _chosen(dataset: Dataset, where: str | None) -> list[dict[str, Any]]:
    chosen = dataset if where is None else dataset.select(where)
    if where is not None and not len(chosen.images):
        raise DatasetError(f'no image of "{dataset.name}" meets "{where}"')
    return chosen.images.rows()


def _within(path: Path, folder: Path) -> bool:
    return path.resolve().is_relative_to(folder.resolve())


def _apart(rows: list[dict[str, Any]], repeated: set[str]) -> list[dict[str, Any]]:
    """The rows with image ids that differ."""
    seen: set[str] = set()
    result = []
    for row in rows:
        folder = row.pop("_folder")
        plain = f"{folder}/{row['image_id']}" if row["image_id"] in repeated else row["image_id"]
        numbered = (f"{plain}#{number}" for number in count(2))
        name = next(name for name in chain([plain], numbered) if name not in seen)
        seen.add(name)
        result.append(row | {"image_id": name})
    return result


def predict_images(
    predictor: Predictor,
    rows: Iterable[dict[str, Any]],
    progress: Progress | None = None,
    boxes: Cells | None = None,
) -> Prediction:
    """Look at every image; those that cannot be read become problems, the rest goes on.

    The order of the result is that of `rows`, and nothing depends on how many run at a time.

    Args:
        predictor: the bundle that looks.
        rows: of `Images`.
        progress: is told the images done and in all.
        boxes: cells of these images that are named where they are, in their order; none are looked for.

    Raises:
        DatasetError: `boxes` is about none of these images.
        BundleError: there are `boxes`, and no classifier.
    """
    started = time.perf_counter()
    results = list(_in_order(partial(look, predictor), tasks(list(rows), boxes), predictor.settings.jobs, progress))
    looked = time.perf_counter()
    prediction = assembled(predictor, results)
    prediction.timings.update(predict_s=looked - started, assemble_s=time.perf_counter() - looked)
    return prediction


def tasks(rows: Sequence[dict[str, Any]], boxes: Cells | None) -> list[Task]:
    """What there is to do in each image: find cells, or name those that are given.

    Args:
        rows: of `Images`.
        boxes: cells of these images; None: cells are looked for.

    Raises:
        DatasetError: `boxes` is about none of these images.
    """
    if boxes is None:
        return [(row, None) for row in rows]
    if len(boxes) and not set(boxes.frame["image_id"]) & {row["image_id"] for row in rows}:
        raise DatasetError("the boxes are of other images (by image_id) than those to look at; name the same dataset")
    given, none = dict(boxes.by_image()), Cells.empty(boxes.labels)
    return [(row, given.get(row["image_id"], none)) for row in rows]


def look(predictor: Predictor, task: Task) -> ImageResult:
    """Do what there is to do in one image."""
    row, cells = task
    return _find_in(predictor, row) if cells is None else _name_in(predictor, row, cells)


def _in_order(
    look: Callable[[Task], ImageResult], rows: list[Task], jobs: int, progress: Progress | None
) -> Iterator[ImageResult]:
    jobs = jobs or os.cpu_count() or 1
    waiting: deque[Future[ImageResult]] = deque()
    queue = iter(rows)
    done = 0
    with ThreadPoolExecutor(jobs, thread_name_prefix="cytolens") as pool:
        try:
            while True:
                # A bounded line keeps memory flat: results are taken as fast as images are started.
                while len(waiting) < 2 * jobs and (row := next(queue, None)) is not None:
                    waiting.append(pool.submit(look, row))
                if not waiting:
                    return
                yield waiting.popleft().result()
                done += 1
                if progress is not None:
                    progress(done, len(rows))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _find_in(predictor: Predictor, row: dict[str, Any]) -> ImageResult:
    """Read one image and find its cells."""
    path = row.get("path")
    try:
        if not _speakable(path, row["image_id"]):
            shown = row["image_id"].encode("utf-8", "replace").decode()
            problem = Problem("image-name", shown, "the file's name is not valid UTF-8.", "Rename it.", "error")
            return ImageResult(row | {"image_id": shown}, None, problem)
        if path is None:
            problem = Problem("image-missing", row["image_id"], "the dataset knows no file for it.", "", "error")
            return ImageResult(row, None, problem)
        if (regions := open_regions(Path(path))) is not None:
            with regions:
                return _look_by_regions(predictor, row, regions)
        image = load_image(path, predictor.settings.max_pixels)
        height, width = image.pixels.shape[:2]
        known, said = _scaled(row, lambda: metadata_of(Path(path)).um_per_px)
        known |= {"sha256": image.sha256, "width_px": width, "height_px": height}
        found = predictor.field(image.pixels, known.get("um_per_px"))
        return ImageResult(known, found, notes=(*image.notes, *said, *found.notes))
    except ImageError as error:
        return ImageResult(row, None, error.problem)


def _name_in(predictor: Predictor, row: dict[str, Any], cells: Cells) -> ImageResult:
    """Read one image and name the cells that are given for it."""
    try:
        if row.get("path") is None:
            raise ImageError(
                Problem("image-missing", row["image_id"], "the dataset knows no file for it.", "", "error")
            )
        image = load_image(row["path"], predictor.settings.max_pixels)
    except ImageError as error:
        return ImageResult(row, None, error.problem)
    height, width = image.pixels.shape[:2]
    known = row | {"sha256": image.sha256, "width_px": width, "height_px": height}
    inside = cells.with_boxes(box.clip(cells.boxes(), width, height))
    inside = inside.filter(box.valid(inside.boxes(), width, height))
    said = () if len(inside) == len(cells) else (f"{len(cells) - len(inside)} boxes without an area inside",)
    counted = inside.frame["counted"].to_numpy() | inside.frame["score"].is_null().to_numpy()
    answer = predictor.named(image.pixels, inside.boxes(), inside.frame["score"].fill_null(np.nan).to_numpy(), counted)
    return ImageResult(known, answer, notes=(*image.notes, *said))


def _scaled(row: dict[str, Any], ask: Callable[[], float | None]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The row with the scale that the image file states where the row knows none, and a note that says so."""
    if row.get("um_per_px") is not None or (um_per_px := ask()) is None:
        return row, ()
    return row | {"um_per_px": um_per_px}, (f"a pixel measures {um_per_px:.3g} µm, as the file says",)


def _speakable(*names: str | None) -> bool:
    """Whether no name holds bytes that are no text; tables and reports cannot carry those."""
    try:
        "".join(name for name in names if name is not None).encode()
    except UnicodeEncodeError:
        return False
    return True


def _look_by_regions(predictor: Predictor, row: dict[str, Any], regions: Regions) -> ImageResult:
    """A large tiled file, block by block; cells cut by a block's border are taken from its neighbour."""
    row, said = _scaled(row, lambda: regions.um_per_px)
    pages = (f"first of {regions.pages} pages",) if regions.pages > 1 else ()
    size_wh, um_per_px = regions.size_wh, row.get("um_per_px")
    known = row | {"sha256": regions.fingerprint(), "width_px": size_wh[0], "height_px": size_wh[1]}
    if predictor.outlines_fields:
        found = predictor.through(regions.read, size_wh, sampled_squares(regions.read, size_wh))
        return ImageResult(known, found, notes=("read by tiles", *said, *pages, *found.notes))
    blocks = windows(size_wh, _BLOCK_PX)
    notes = [f"read in {len(blocks)} regions", *said, *pages]
    red_cell_px = None
    if um_per_px is None and (predictor.settings.tile_px is None or predictor.scaled):
        # One scale for all blocks, from the one nearest to the middle that shows enough red cells.
        red_cell_px = next(
            (
                size
                for b in _from_the_middle(blocks, size_wh)
                if (size := predictor.red_cell_px(_pixels_of(regions, b)))
            ),
            None,
        )
        if red_cell_px is None and predictor.settings.tile_px is None:
            notes.append("no red cells were seen that tell its scale; --tile-px sets the size of the tiles")
    parts = [(block, predictor.field(_pixels_of(regions, block), um_per_px, red_cell_px)) for block in blocks]
    inner = frozenset(name for name in predictor.labels.names if predictor.labels.role(name) == "part")
    return ImageResult(known, joined_blocks(parts, size_wh, inner), notes=tuple(notes))


def _pixels_of(regions: Regions, block: Window) -> NDArray[np.uint8]:
    return regions.read(block.x, block.y, block.width, block.height)


def _from_the_middle(blocks: list[Window], size_wh: tuple[int, int]) -> list[Window]:
    """The blocks, nearest to the middle of the image first."""

    def off(block: Window) -> float:
        return abs(2 * block.x + block.width - size_wh[0]) + abs(2 * block.y + block.height - size_wh[1])

    return sorted(blocks, key=off)


def assembled(predictor: Predictor, results: Sequence[ImageResult]) -> Prediction:
    """One prediction from the results of its images."""
    problems = Problems()
    good: list[tuple[dict[str, Any], FieldCells]] = []
    for result in results:
        if result.problem is not None:
            problems.extend([result.problem])
        for note in result.notes:
            problems.add("image-converted", str(result.row["image_id"]), note + ".", severity="note")
        if result.cells is not None:
            good.append((result.row, result.cells))
    reasons: Counter[str] = Counter()
    for _, cells in good:
        reasons.update({reason: int(which.sum()) for reason, which in cells.reasons.items()})
    return Prediction(
        images=Images.of([row for row, _ in good]),
        cells=_cells(predictor, good),
        problems=problems,
        remarks={row["image_id"]: cells.remarks for row, cells in good if cells.remarks},
        reasons=dict(reasons),
        concepts=concepts_of([cells for _, cells in good]),
    )


def _cells(predictor: Predictor, good: list[tuple[dict[str, Any], FieldCells]]) -> Cells:
    labels = predictor.labels
    if not good:
        return Cells.empty(labels)
    table = np.concatenate([cells.probabilities for _, cells in good])
    counts = [len(cells.boxes) for _, cells in good]
    described = attributes_of([cells for _, cells in good])
    attributes: dict[str, Any] = {f"{column}_probabilities": table for column, table in described.items()}
    for attribute in labels.attributes:
        if (one := described.get(attribute.column)) is not None:
            output = predictor.attribute_outputs[attribute.column]
            attributes[attribute.column] = values_given(one, attribute, output)
    return Cells.of(
        labels,
        image_id=_repeated([row["image_id"] for row, _ in good], counts),
        image_key=_repeated([row["sha256"] for row, _ in good], counts),
        boxes=np.concatenate([cells.boxes for _, cells in good]),
        label=[name for _, cells in good for name in cells.labels],
        source=predictor.bundle.source,
        score=np.concatenate([cells.scores for _, cells in good]),
        probabilities=np.nan_to_num(table),
        known=~np.isnan(table).any(axis=1),
        attributes=attributes,
        counted=np.concatenate([cells.counted for _, cells in good]),
        refer=np.concatenate([cells.refer for _, cells in good]),
        mask=[code for _, cells in good for code in cells.masks or [None] * len(cells.boxes)],
    )


def _repeated(values: list[str], counts: list[int]) -> list[str]:
    return pl.Series(values, dtype=pl.String).repeat_by(pl.Series(counts)).explode().drop_nulls().to_list()
