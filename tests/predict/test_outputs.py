"""What a prediction leaves on disk: all of it, whole, and nothing else."""

from __future__ import annotations

import csv
import errno
import json
import re
import signal
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import tifffile
from PIL import Image

from cytolens.bundle import Bundle
from cytolens.cells import Cells
from cytolens.formats import regions
from cytolens.images import SCHEMA, Images
from cytolens.predict import fields, outputs
from cytolens.predict.differential import SCHEMA as DIFFERENTIAL
from cytolens.predict.differential import differential
from cytolens.predict.fields import Prediction, image_rows, predict_images
from cytolens.predict.outputs import DEFAULT_FORMATS, FORMATS, checked_formats, file_of_image, flat, write_outputs
from cytolens.predict.pipeline import Predictor, PredictSettings
from cytolens.problems import SettingError
from tests.predict.doubles import ColourEyes, FixedNames, both, connect, detecting, naming, painted, rendered

DISCS = [("leukocyte", 60.0, 50.0, 20.0), ("erythrocyte", 150.0, 40.0, 14.0), ("platelet", 100.0, 110.0, 6.0)]
SIZE_WH = (208, 160)
UNSURE = [0.5, 0.0, 0.5, 0.0]  # band or lymphocyte


@pytest.fixture
def predictor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Predictor:
    """Finds painted discs, and calls every leukocyte a monocyte."""
    connect(monkeypatch, eyes=ColourEyes(), names=FixedNames([0.02, 0.0, 0.03, 0.95]))
    return Predictor(both(tmp_path, detecting(tmp_path), naming(tmp_path, sure=0.8)), PredictSettings(jobs=1))


@pytest.fixture
def prediction(predictor: Predictor, tmp_path: Path) -> Prediction:
    """Two images with cells, one without, one that cannot be read."""
    folder = tmp_path / "in"
    (folder / "slide <b>1").mkdir(parents=True)
    Image.fromarray(painted(SIZE_WH, DISCS)).save(folder / "a.png")
    Image.fromarray(painted(SIZE_WH, DISCS[:1])).convert("RGBA").save(folder / "slide <b>1" / "é.png")
    Image.fromarray(painted(SIZE_WH, [])).save(folder / "empty.png")
    (folder / "zero.png").write_bytes(b"")
    return predict_images(predictor, image_rows([folder]))


def written_files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


OVERLAYS = {"overlays/a.png.png", "overlays/slide <b>1/é.png.png", "overlays/empty.png.png"}


# -- everything is there --------------------------------------------------------------------------


def test_every_output_is_written(prediction: Prediction, predictor: Predictor, tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    told: list[tuple[int, int]] = []
    tell = lambda done, total: told.append((done, total))  # noqa: E731
    write_outputs(prediction, predictor.bundle, out, FORMATS, predictor.settings, tell)
    tables = {"cells.parquet", "images.parquet", "cells.csv", "differential.csv", "cells.coco.json", "morphometry.csv"}
    tables |= {f"label_images/masks/{name}" for name in ("a.png", "é.png", "empty.png", "cells.csv")}
    outlines = {name.replace("overlays/", "geojson/").removesuffix(".png") + ".geojson" for name in OVERLAYS}
    assert written_files(out) == tables | OVERLAYS | outlines | {"report.html", "run.json"}
    features = json.loads((out / "geojson" / "a.png.geojson").read_text())["features"]
    shown = prediction.cells.filter(pl.col("counted")).of_image("a.png")
    assert [f["properties"]["classification"]["name"] for f in features] == shown.label_names()
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_only_what_was_asked_for_is_written(prediction: Prediction, predictor: Predictor, tmp_path: Path) -> None:
    write_outputs(prediction, predictor.bundle, tmp_path / "out", checked_formats(["cells"]), predictor.settings)
    assert written_files(tmp_path / "out") == {"cells.parquet", "images.parquet", "run.json"}


def test_formats_are_checked_before_the_work() -> None:
    assert checked_formats(["report"]) == ("cells", "report")
    assert checked_formats(["overlay", "csv", "csv"]) == ("cells", "csv", "overlay")
    assert set(DEFAULT_FORMATS) == set(FORMATS) - {"coco", "geojson", "label_images", "morphometry"}
    with pytest.raises(SettingError, match=r'no output format "overlays"\. Did you mean "overlay"\? Allowed: cells, '):
        checked_formats(["csv", "overlays"])


def test_tables_come_back_as_they_were(prediction: Prediction, predictor: Predictor, tmp_path: Path) -> None:
    write_outputs(prediction, predictor.bundle, tmp_path, ["cells"], predictor.settings)
    back = Cells.read_parquet(tmp_path / "cells.parquet")
    assert back.labels == prediction.cells.labels
    assert back.frame.equals(prediction.cells.frame)
    assert len(back) == 4
    images = Images(pl.read_parquet(tmp_path / "images.parquet"))
    assert images.frame.equals(prediction.images.frame)
    assert list(images.frame.columns) == list(SCHEMA)


def test_the_csv_holds_the_counted_cells(prediction: Prediction, predictor: Predictor, tmp_path: Path) -> None:
    faint = prediction.cells.frame["label"].cast(pl.String) == "platelet"
    cells = prediction.cells.with_columns(counted=(~faint).to_list())
    some = Prediction(prediction.images, cells, prediction.problems)
    write_outputs(some, predictor.bundle, tmp_path, ["csv"], predictor.settings)
    with (tmp_path / "cells.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    leaves = predictor.labels.leaves
    assert list(rows[0]) == [
        *("cell_id", "image_id", "x_min", "y_min", "x_max", "y_max", "label", "score", "counted", "refer"),
        *(f"p({leaf})" for leaf in leaves),
        "source",
    ]
    assert [(row["image_id"], row["label"]) for row in rows if row["label"] != "erythrocyte"] == [
        ("a.png", "monocyte"),
        ("slide <b>1/é.png", "monocyte"),
    ]
    assert len(rows) == 3
    white, red = ({row["label"]: row for row in rows}[name] for name in ("monocyte", "erythrocyte"))
    assert (white["p(monocyte)"], white["p(lymphocyte)"], white["p(platelet)"]) == ("0.95", "0.03", "0.0")
    assert all(red[f"p({leaf})"] == "" for leaf in leaves)
    assert (white["score"], white["refer"], white["counted"]) == ("0.9", "false", "true")
    first = prediction.cells.frame.row(by_predicate=pl.col("cell_id") == red["cell_id"], named=True)
    for column in ("x_min", "y_min", "x_max", "y_max"):
        assert float(red[column]) == pytest.approx(first[column], abs=0.006)


def test_the_differential_is_a_table_of_its_own(prediction: Prediction, predictor: Predictor, tmp_path: Path) -> None:
    write_outputs(prediction, predictor.bundle, tmp_path, ["csv"], predictor.settings)
    table = pl.read_csv(tmp_path / "differential.csv")
    assert table.columns == list(DIFFERENTIAL)
    expected = differential(prediction.cells, prediction.images)
    assert table.select("image_id", "label", "part", "depth", "count").rows() == (
        expected.select("image_id", "label", "part", "depth", "count").rows()
    )
    assert table["image_id"].unique(maintain_order=True).to_list() == [
        *("(all images)", "a.png", "empty.png", "slide <b>1/é.png")
    ]
    monocytes = table.filter(pl.col("label") == "monocyte")
    assert monocytes["count"].to_list() == [2, 1, 0, 1]
    assert monocytes["percent"].to_list() == [100, 100, None, 100]


def test_the_summary_says_what_was_done(prediction: Prediction, predictor: Predictor, tmp_path: Path) -> None:
    summary = write_outputs(prediction, predictor.bundle, tmp_path, ["cells", "csv"], predictor.settings)
    assert json.loads((tmp_path / "run.json").read_text(encoding="utf-8")) == summary
    assert summary["bundle"] == {"name": "both", "hash": "abcdef012345"}
    assert (summary["images"], summary["failed"], summary["cells"], summary["referred"]) == (3, 1, 4, 0)
    assert summary["counts"] == {"leukocyte": 2, "monocyte": 2, "erythrocyte": 1, "platelet": 1}
    assert summary["percent_of_leukocytes"] == {"leukocyte": 100, "monocyte": 100}
    assert [(f["kind"], Path(f["where"]).name) for f in summary["failures"]] == [("image-empty", "zero.png")]
    assert [(n["where"], n["severity"]) for n in summary["notes"]] == [("slide <b>1/é.png", "note")]
    assert summary["settings"] == predictor.settings.model_dump(mode="json")
    assert summary["formats"] == ["cells", "csv"]
    assert set(summary["versions"]) >= {"python", "cytolens", "onnxruntime", "numpy"}
    assert set(summary["timings"]) == {"predict_s", "assemble_s", "cells_s", "csv_s"}
    assert summary["ms_per_image"] == pytest.approx(1000 * summary["timings"]["predict_s"] / 3, abs=0.1)


def test_coco_holds_the_counted_cells(prediction: Prediction, predictor: Predictor, tmp_path: Path) -> None:
    write_outputs(prediction, predictor.bundle, tmp_path, ["coco"], predictor.settings)
    data = json.loads((tmp_path / "cells.coco.json").read_text(encoding="utf-8"))
    names = {category["id"]: category["name"] for category in data["categories"]}
    assert sorted(names[a["category_id"]] for a in data["annotations"]) == [
        *("erythrocyte", "monocyte", "monocyte", "platelet")
    ]
    assert len(data["images"]) == 3


def test_nothing_that_could_be_read_is_an_output_too(predictor: Predictor, tmp_path: Path) -> None:
    (tmp_path / "in.png").write_bytes(b"")
    nothing = predict_images(predictor, image_rows([tmp_path / "in.png"]))
    summary = write_outputs(nothing, predictor.bundle, tmp_path / "out", FORMATS, predictor.settings)
    assert (summary["images"], summary["cells"], summary["failed"]) == (0, 0, 1)
    assert summary["ms_per_image"] is None
    assert (tmp_path / "out" / "cells.csv").read_text().startswith("cell_id,image_id,")
    assert "No image could be read" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


# -- pictures -------------------------------------------------------------------------------------


def test_overlays_frame_the_cells_in_place(prediction: Prediction, predictor: Predictor, tmp_path: Path) -> None:
    write_outputs(prediction, predictor.bundle, tmp_path, ["overlay"], predictor.settings)
    plain = painted(SIZE_WH, DISCS)
    drawn = np.asarray(Image.open(tmp_path / "overlays" / "a.png.png"))
    assert drawn.shape == plain.shape
    changed = (drawn != plain).any(axis=2)
    for _, x, y, radius in DISCS:
        for row, column in ((y, x - radius), (y, x + radius - 1), (y + radius - 1, x)):
            around = changed[int(row) - 2 : int(row) + 3, int(column) - 2 : int(column) + 3]
            assert around.any()
    untouched = np.asarray(Image.open(tmp_path / "overlays" / "empty.png.png"))
    assert np.array_equal(untouched, painted(SIZE_WH, []))


def test_large_images_are_shrunk_in_overlays(
    predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also those that are read by regions, with the cells where they belong."""
    large = painted((3000, 1000), [("leukocyte", 1500.0, 500.0, 200.0)])
    tifffile.imwrite(tmp_path / "slide.tif", large, tile=(256, 256), photometric="rgb")
    Image.fromarray(large).save(tmp_path / "plain.png")
    for module in (fields, outputs):
        monkeypatch.setattr(module, "open_regions", lambda path: regions.open_regions(path, least_pixels=1_000_000))
    found = predict_images(predictor, image_rows([tmp_path / "slide.tif", tmp_path / "plain.png"]))
    assert len(found.cells) == 2
    write_outputs(found, predictor.bundle, tmp_path / "out", ["overlay"], predictor.settings)
    slide, plain = (
        np.asarray(Image.open(tmp_path / "out" / "overlays" / name)).astype(int)
        for name in ("slide.tif.png", "plain.png.png")
    )
    assert slide.shape == plain.shape == (533, 1600, 3)
    for drawn in (slide, plain):
        left, row = round(1300 * 1600 / 3000), 267
        violet = drawn[row, left - 6 : left + 7]
        frame = (violet[:, 0] < 215) & (violet[:, 2] < 60)  # monocytes are ochre
        assert frame.any()


def test_an_overlay_never_leaves_its_folder(tmp_path: Path) -> None:
    assert file_of_image(tmp_path, "a/b.tif", ".png") == tmp_path / "a" / "b.tif.png"
    for image_id in ("../../x", "/etc/x", "//x", "a/../../x", "..", "/", "."):
        assert file_of_image(tmp_path, image_id, ".png").resolve().is_relative_to(tmp_path.resolve()), image_id


class Links(HTMLParser):
    """Collects what a page refers to and the names of its tags."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.tags: list[str] = []
        self.words = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]

    def handle_data(self, data: str) -> None:
        self.words += f" {data}"


def test_the_report_is_one_file_that_says_the_main_things(
    prediction: Prediction, predictor: Predictor, tmp_path: Path
) -> None:
    write_outputs(prediction, predictor.bundle, tmp_path, ["report"], predictor.settings)
    page = Links()
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    page.feed(text)
    assert text.rstrip().endswith("</html>")
    assert [link for link in page.links if not link.startswith(("data:", "#"))] == []
    assert "script" not in page.tags
    assert not re.search(r"@import|url\((?!['\"]?(data:|#))", text)
    assert "slide <b>1/é.png" in page.words  # escaped, so that it is read as a name
    assert "zero.png: the file is empty (0 bytes)." in page.words
    assert "monocyte" in page.words
    assert "For research only" in page.words


def test_the_report_shows_referred_cells(predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    connect(monkeypatch, eyes=ColourEyes(), names=FixedNames(UNSURE))
    unsure = Predictor(predictor.bundle, predictor.settings)
    Image.fromarray(painted(SIZE_WH, DISCS)).save(tmp_path / "a.png")
    found = predict_images(unsure, image_rows([tmp_path / "a.png"]))
    summary = write_outputs(found, unsure.bundle, tmp_path / "out", ["report"], unsure.settings)
    assert (summary["referred"], summary["referred_because"]) == (1, {"unsure name": 1})
    text = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "Referred cells" in text
    assert "1 cell referred: unsure name." in text


# -- nothing is left half-written -----------------------------------------------------------------


def half_written(*arguments: Any, **_: Any) -> None:
    """A method that writes to its first argument, on a disk that is full half-way."""
    Path(arguments[1]).write_bytes(b"half")
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    ("where", "file"),
    [
        ("polars.DataFrame.write_parquet", "cells.parquet"),
        ("polars.DataFrame.write_csv", "cells.csv"),
        ("PIL.Image.Image.save", "overlays/a.png.png"),
    ],
)
def test_a_full_disk_leaves_the_old_file_and_no_half_one(
    prediction: Prediction,
    predictor: Predictor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    where: str,
    file: str,
) -> None:
    out = tmp_path / "out"
    write_outputs(prediction, predictor.bundle, out, FORMATS, predictor.settings)
    before, names = (out / file).read_bytes(), written_files(out)
    monkeypatch.setattr(where, half_written)
    with pytest.raises(OSError, match="No space left"):
        write_outputs(prediction, predictor.bundle, out, FORMATS, predictor.settings)
    assert (out / file).read_bytes() == before
    assert written_files(out) == names - {"run.json"}  # without it the folder says that it is unfinished


def assert_whole(path: Path) -> None:
    """A file of its kind can be read to its end."""
    if path.suffix == ".parquet":
        assert len(pl.read_parquet(path)) > 0
    elif path.suffix == ".csv":
        assert path.read_bytes().endswith(b"\n")
        assert len(pl.read_csv(path)) > 0
    elif path.suffix == ".png":
        with Image.open(path) as image:
            image.load()
    elif path.suffix == ".json":
        json.loads(path.read_text(encoding="utf-8"))
    elif path.suffix == ".html":
        assert path.read_text(encoding="utf-8").rstrip().endswith("</html>")
    else:
        raise AssertionError(f"{path} is no output")


@pytest.mark.slow
def test_a_killed_prediction_leaves_whole_files(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for number in range(12):
        Image.fromarray(rendered(100).pixels).save(tmp_path / "in" / f"{number:02}.png")
    command = [sys.executable, "-c", "from cytolens.apps.cli.main import main; main()", "predict", str(tmp_path / "in")]
    sizes = []
    for number, sign in enumerate(("cells.parquet", "overlays/03.png.png")):
        out = tmp_path / f"out{number}"
        process = subprocess.Popen([*command, "--out", str(out), "--jobs", "1", "--json"], stdout=subprocess.DEVNULL)
        until = time.monotonic() + 120
        while not (out / sign).exists() and process.poll() is None and time.monotonic() < until:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        files = [out / name for name in written_files(out) if not Path(name).name.startswith(".")]
        for file in files:
            assert_whole(file)
        assert out / sign in files
        assert out / "run.json" not in files
        sizes.append(len(files))
    # The same command again makes it whole, and leaves none of the first's scraps under a real name.
    done = subprocess.run([*command, "--out", str(tmp_path / "out1"), "--json"], capture_output=True, check=True)
    assert json.loads(done.stdout)["images"] == 12
    after = {name for name in written_files(tmp_path / "out1") if not Path(name).name.startswith(".")}
    assert len(after) == 12 + 6 > max(sizes)
    for name in after:
        assert_whole(tmp_path / "out1" / name)


def test_a_bundle_of_the_package_writes_everything(tmp_path: Path) -> None:
    shipped = Predictor(Bundle.load("smear"), PredictSettings(jobs=1))
    Image.fromarray(rendered(100).pixels).save(tmp_path / "100.png")
    found = predict_images(shipped, image_rows([tmp_path / "100.png"]))
    summary = write_outputs(found, shipped.bundle, tmp_path / "out", FORMATS, shipped.settings)
    assert summary["cells"] >= 5
    table = flat(found.cells)
    assert table.columns[-1] == "source"
    assert len([name for name in table.columns if name.startswith("p(")]) == len(shipped.labels.leaves)


def test_a_second_prediction_leaves_nothing_of_the_first_behind(
    prediction: Prediction, predictor: Predictor, tmp_path: Path
) -> None:
    out, settings = tmp_path / "out", predictor.settings
    write_outputs(prediction, predictor.bundle, out, FORMATS, settings)
    mine = out / "overlays" / "note.txt"
    mine.write_text("by a person")
    write_outputs(prediction, predictor.bundle, out, ("cells", "csv"), settings)
    left = {file.relative_to(out).as_posix() for file in out.rglob("*") if file.is_file()}
    csv = {"cells.csv", "differential.csv"}
    assert left == {"cells.parquet", "images.parquet", "run.json", "overlays/note.txt", *csv}
