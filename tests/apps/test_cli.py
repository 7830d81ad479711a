"""The command line from end to end, on rendered smears."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import typer
from PIL import Image

from cytolens.apps.cli.main import app
from cytolens.bundle import Bundle, shipped
from cytolens.cells import Cells
from cytolens.dataset import Dataset
from cytolens.labels import LabelSet
from cytolens.prepare.synthetic import SyntheticSettings, write_synthetic
from tests.apps.speaking import COMMAND, listing, python, run, say, surroundings

_FIELDS = 3
_SETTINGS = SyntheticSettings(width_px=480, height_px=360, white_cells=(2, 3))


@pytest.fixture(scope="module")
def smears(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of rendered fields."""
    folder = tmp_path_factory.mktemp("cli") / "smears"
    write_synthetic(folder, _FIELDS, 3, _SETTINGS, fields_per_slide=1)
    return folder


@pytest.fixture(scope="module")
def found(smears: Path) -> Path:
    """What the shipped pipeline finds in them."""
    folder = smears.parent / "found"
    assert say("predict", smears, "--out", folder).code == 0
    return folder


def picture(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (64, 80, 3), np.uint8)).save(path)
    return path


# -- the whole way ----------------------------------------------------------------------------------


def test_from_foreign_annotations_to_scores_and_back(smears: Path, tmp_path: Path) -> None:
    voc, data, out = tmp_path / "voc", tmp_path / "data", tmp_path / "found"
    exported = run("export", smears, "--format", "voc", "--out", voc, "--copy-images", "--json")
    assert exported.code == 0
    assert {problem["severity"] for problem in exported.json["problems"]} <= {"note", "warning"}  # VOC has no masks
    imported = run("import", voc, "--out", data, "--licence", "Apache-2.0", "--json")
    truth = Dataset.read(smears)
    assert imported.code == 0
    assert imported.json["images"] == _FIELDS
    assert imported.json["cells"] == len(truth.cells)
    assert Dataset.read(data).licence == "Apache-2.0"

    predicted = run("predict", data, "--out", out, "--format", "csv,coco,overlay,report", "--json")
    assert predicted.code == 0
    summary = predicted.json
    assert summary == json.loads((out / "run.json").read_text(encoding="utf-8"))
    assert (summary["images"], summary["failed"]) == (_FIELDS, 0)
    assert summary["bundle"] == {"name": "smear", "hash": Bundle.load("smear").hash}
    cells = Cells.read_parquet(out / "cells.parquet")
    assert summary["cells"] == int(cells.frame["counted"].sum()) == len(pl.read_csv(out / "cells.csv"))
    assert (out / "report.html").read_text(encoding="utf-8").lower().startswith("<!doctype html>")
    overlays = [name for name in listing(out) if name.startswith("overlays/")]
    assert len(overlays) == _FIELDS
    assert not any(part in name for name in listing(out) for part in (".part", ".before"))

    scored = run(
        "evaluate", "--truth", data, "--found", out, "--level", "leukocyte,erythrocyte,platelet",
        "--bootstrap", "20", "--report", tmp_path / "scores.html", "--json",
    )  # fmt: skip
    figures = scored.json
    assert scored.code == 0
    assert figures["images"] == _FIELDS
    assert figures["map50"] > 0.4
    assert figures["map50_interval"][0] <= figures["map50"] <= figures["map50_interval"][1]
    assert figures["per_label"]["leukocyte"]["recall"] >= 0.5
    assert (tmp_path / "scores.html").exists()

    back = run("export", out, "--format", "coco", "--out", tmp_path / "found.json", "--json")
    assert back.code in (0, 1)
    coco = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
    assert len(coco["annotations"]) == summary["cells"]


def test_a_model_that_finds_the_truth_scores_one(smears: Path) -> None:
    scored = say("evaluate", "--truth", smears, "--found", smears, "--bootstrap", "0", "--json")
    assert scored.code == 0
    assert scored.json["map50_95"] == pytest.approx(1)
    assert scored.json["f1"] == 1
    assert not any(key.endswith("_interval") for key in scored.json)


def test_people_and_machines_are_told_the_same(smears: Path, found: Path) -> None:
    words = ("evaluate", "--truth", smears, "--found", found, "--level", "leukocyte,erythrocyte,platelet")
    words += ("--bootstrap", "0")
    spoken, given = say(*words), say(*words, "--json").json
    for name in ("map50", "precision", "recall"):
        assert f"{name}: {given[name]:.4f}" in spoken.out.splitlines()
    assert spoken.err == ""


def test_naming_is_scored_too(smears: Path, found: Path) -> None:
    scored = say("evaluate", "--truth", smears, "--found", found, "--task", "classification", "--bootstrap", "0")
    assert scored.code == 0
    assert re.search(r"^accuracy: 0\.\d{4}$|^accuracy: 1\.0000$", scored.out, re.MULTILINE)


def test_every_command_gives_exactly_one_json_object(smears: Path, found: Path, tmp_path: Path) -> None:
    kinds = picture(tmp_path / "kinds" / "lymphocyte" / "1.png").parents[1]
    said = {
        "demo": say("demo", "--fields", "1", "--out", tmp_path / "demo", "--json"),
        "import": say("import", kinds, "--format", "image_folder", "--out", tmp_path / "d", "--json"),
        "export": say("export", smears, "--format", "csv_boxes", "--out", tmp_path / "boxes.csv", "--json"),
        "predict": say("predict", smears, "--out", tmp_path / "p", "--format", "cells", "--json"),
        "evaluate": say("evaluate", "--truth", smears, "--found", found, "--bootstrap", "0", "--json"),
        "list": say("bundles", "list", "--json"),
        "show": say("bundles", "show", "smear", "--json"),
        "verify": say("bundles", "verify", "wbc-classifier", "--json"),
        "bundle export": say("bundles", "export", "smear", "--out", tmp_path / "onnx", "--json"),
    }
    keys = {
        "demo": "white_cells_found", "import": "cells", "export": "problems", "predict": "percent_of_leukocytes",
        "evaluate": "map50", "list": "bundles", "show": "hash", "verify": "passed", "bundle export": "files",
    }  # fmt: skip
    for name, answer in said.items():
        assert keys[name] in answer.json, name
        assert answer.err == "", name
    assert said["list"].json["bundles"][0].keys() == {"name", "task", "hash", "megabytes", "description"}
    assert (tmp_path / "demo" / "index.html").exists()


def test_the_demonstration_finds_its_white_cells(tmp_path: Path) -> None:
    answer = say("demo", "--fields", "3", "--seed", "5", "--out", tmp_path / "demo")
    assert answer.code == 0
    known = re.match(r"3 rendered fields: (\d+) of (\d+) white cells found, (\d+) of (\d+) named right", answer.out)
    assert known
    hits, white, right, named = map(int, known.groups())
    assert hits >= 0.5 * white
    assert right <= named <= white
    assert "rendering 3 fields" in answer.err  # what happens is said where it does not mix with the result
    for name in ("index.html", "detection.html", "names.html", "found/report.html"):
        page = (tmp_path / "demo" / name).read_text(encoding="utf-8")
        assert not re.search(r'(src|href)="https?:', page)  # a page needs no network
    assert f"{hits} of {white}" in (tmp_path / "demo" / "index.html").read_text(encoding="utf-8")


# -- exit codes -------------------------------------------------------------------------------------


def test_an_image_that_cannot_be_read_does_not_stop_the_others(tmp_path: Path) -> None:
    picture(tmp_path / "in" / "good.png")
    (tmp_path / "in" / "bad.png").write_bytes(b"not a picture")
    (tmp_path / "in" / "empty.jpg").touch()
    answer = say("predict", tmp_path / "in", "--out", tmp_path / "out", "--json")
    assert answer.code == 1
    assert (answer.json["images"], answer.json["failed"]) == (1, 2)
    assert {Path(failure["where"]).name for failure in answer.json["failures"]} == {"bad.png", "empty.jpg"}
    spoken = say("predict", tmp_path / "in" / "bad.png", "--out", tmp_path / "out")
    assert spoken.code == 1
    assert "bad.png" in spoken.out
    assert "Traceback" not in spoken.out + spoken.err


@pytest.mark.skipif(os.name == "nt", reason="file names there are always text")
def test_a_file_name_that_is_no_text_does_not_stop_the_others(tmp_path: Path) -> None:
    folder = picture(tmp_path / "in" / "Färbung 1 — 細胞.png").parent
    try:
        (folder / "good.png").write_bytes((folder / "Färbung 1 — 細胞.png").read_bytes())
        os.rename(os.fsencode(folder / "good.png"), os.fsencode(folder) + b"/caf\xe9.png")  # noqa: PTH104
    except OSError:
        pytest.skip("this file system takes no such names")
    answer = run("predict", folder, "--out", tmp_path / "out", "--json")
    assert answer.code == 1
    assert answer.json["failures"][0]["where"] == "caf?.png"
    assert "not valid UTF-8" in answer.json["failures"][0]["what"]
    images = pl.read_parquet(tmp_path / "out" / "images.parquet")
    assert images["image_id"].to_list() == ["Färbung 1 — 細胞.png"]


def test_a_terminal_that_lacks_letters_gets_the_result_all_the_same(tmp_path: Path) -> None:
    path = picture(tmp_path / "Färbung.png")
    words = ("predict", path, "--out", tmp_path / "für", "--format", "cells")
    spoken = run(*words, PYTHONIOENCODING="ascii")
    assert spoken.code == 0
    assert spoken.out.startswith("1 images, ")
    assert spoken.out.splitlines()[0].endswith("f?r")
    given = run(*words, "--json", PYTHONIOENCODING="ascii")
    assert given.code == 0
    assert given.json["images"] == 1


def test_a_damaged_annotation_is_reported_and_the_rest_imported(smears: Path, tmp_path: Path) -> None:
    say("export", smears, "--format", "voc", "--out", tmp_path / "voc", "--copy-images")
    first = next(iter(sorted((tmp_path / "voc").rglob("*.xml"))))
    first.write_text("<annotation><object>")
    answer = say("import", tmp_path / "voc", "--format", "voc", "--out", tmp_path / "data", "--json")
    assert answer.code == 1
    assert any(problem["severity"] == "error" for problem in answer.json["problems"])
    assert 0 < answer.json["cells"] < len(Dataset.read(smears).cells)


def test_an_exam_that_is_failed_is_bad(tmp_path: Path) -> None:
    from cytolens.bundle import rewrite, write

    source = Bundle.load("wbc-classifier")
    bundle = write(tmp_path / "b", source.info, {name: source.folder / name for name in source.info.files})
    exam = pl.read_parquet(bundle.folder / "exam" / "expected.parquet")
    other = exam.with_columns(score=pl.lit(0.6, pl.Float32))
    other.write_parquet(tmp_path / "expected.parquet")
    rewrite(bundle, bundle.info, {"exam/expected.parquet": tmp_path / "expected.parquet"})
    answer = say("bundles", "verify", "wbc-classifier", tmp_path / "b", "--json")
    assert answer.code == 1
    assert answer.json["passed"] is False
    assert [entry["passed"] for entry in answer.json["bundles"]] == [True, False]
    assert answer.json["bundles"][1]["mistakes"]
    spoken = say("bundles", "verify", tmp_path / "b")
    assert spoken.code == 1
    assert "FAILED (4 pictures, 4 cells)" in spoken.out


@pytest.mark.skipif(os.name == "nt", reason="Ctrl-C is another thing there")
@pytest.mark.parametrize("phase", ["rendering", "looking"])
def test_ctrl_c_is_130_and_leaves_nothing_half_written(tmp_path: Path, phase: str) -> None:
    fields = 400 if phase == "rendering" else 6
    with subprocess.Popen(
        [COMMAND, "demo", "--out", tmp_path / "demo", "--fields", str(fields)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=surroundings(),
    ) as process:  # fmt: skip
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith(phase):
                process.send_signal(signal.SIGINT)
                break
        out, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert err.strip().startswith("interrupted; what is on disk is whole")
    assert out == ""
    assert not any(".part" in name for name in listing(tmp_path))


@pytest.mark.skipif(os.name == "nt", reason="pipes break otherwise there")
def test_a_reader_that_has_gone_is_no_error() -> None:
    with subprocess.Popen(
        [COMMAND, "bundles", "show", "smear"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=surroundings()
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        err = process.stderr.read()
    assert process.returncode == 0
    assert err == b""


# -- requests that cannot be carried out --------------------------------------------------------------

_REFUSED: list[tuple[list[str], str]] = [
    (["predict", "nowhere.png", "--out", "o"], r'"nowhere.png" names no image'),
    (["predict", "{smears}", "--out", "o", "--bundle", "smaer"], 'no bundle "smaer".*Did you mean "smear"'),
    (["predict", "{smears}", "--out", "o", "--format", "csvv"], 'no output format "csvv".*Did you mean "csv"'),
    (["predict", "{smears}", "--out", "o", "--tile-px", "3"], "tile_px = 3: .*greater than or equal to 64"),
    (["predict", "{smears}", "--out", "o", "--max-pixels", "0"], "max_pixels = 0"),
    (["predict", "{smears}", "--out", "o", "--jobs", "-1"], "jobs = -1"),
    (["predict", "{smears}", "--out", "o", "--device", "tpu"], 'device "tpu" is not known; allowed: cpu'),
    (["predict", "{smears}", "--out", "{file}"], "File exists|Not a directory"),
    (["evaluate", "--truth", "nowhere", "--found", "{smears}"], '"nowhere" is not a dataset.*cytolens import'),
    (["evaluate", "--truth", "{smears}", "--found", "nowhere"], "nowhere"),
    (["evaluate", "--truth", "{smears}", "--found", "{smears}", "--task", "detecton"], "detecton.*detection"),
    (["evaluate", "--truth", "{smears}", "--found", "{smears}", "--iou-min", "2"], "iou_min = 2"),
    (["evaluate", "--truth", "{smears}", "--found", "{smears}", "--missing", "maybe"], "missing = 'maybe'"),
    (["evaluate", "--truth", "{smears}", "--found", "{smears}", "--level", "dragon"], "dragon"),
    (["evaluate", "--truth", "{smears}", "--found", "{smears}", "--split", "test"], 'no part "test"; its parts: none'),
    (["evaluate", "--truth", "{smears}", "--found", "{smears}", "--where", "widht > 3"], "widht.*Columns: image_id"),
    (["import", "{smears}", "--format", "vok", "--out", "o"], '"vok".*voc'),
    (["import", "nowhere", "--out", "o"], "nowhere"),
    (["import", "{smears}", "--format", "csv_boxes", "--columns", "x", "--out", "o"], "OURS=THEIRS"),
    (["import", "{smears}", "--labels", "nosuch", "--out", "o"], "nosuch"),
    (["import", "{smears}", "--labels", "{file}", "--out", "o"], "not valid TOML"),
    (["export", "{smears}", "--format", "vok", "--out", "o"], '"vok".*voc'),
    (["export", "nowhere", "--format", "voc", "--out", "o"], "nowhere"),
    (["export", "{smears}", "--format", "voc", "--results", "--out", "o"], "results"),
    (["bundles", "show", "nothing"], 'no bundle "nothing".*Shipped: nuclei, smear'),
    (["bundles", "verify", "smear", "{smears}"], "no bundle"),
    (["bundles", "export", "nothing", "--out", "o"], "no bundle"),
    (["bundles", "pack", "smear", "smear", "smear", "--out", "o"], "a pipeline needs a detector and a classifier"),
    (["bundles", "pack", "smear-detector", "smear-detector", "--out", "o"], "needs a detector and a classifier"),
    (["bundles", "pack", "smear-detector", "--out", "o", "--scores", "bccd"], "takes DOMAIN=FILE"),
    (["bundles", "pack", "smear-detector", "--out", "o", "--card", "nowhere.md"], "nowhere.md: No such file"),
    (["bundles", "pack", "smear-detector", "--out", "o", "--name", "../up"], '"../up" cannot be the name of a bundle'),
    (["demo", "--bundle", "nothing", "--fields", "1", "--out", "o"], "no bundle"),
]


@pytest.mark.parametrize(("words", "message"), _REFUSED, ids=[" ".join(words)[:60] for words, _ in _REFUSED])
def test_a_request_that_cannot_be_carried_out_is_one_clear_line(
    smears: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("[")
    given = [word.format(smears=smears, file=tmp_path / "file") for word in words]
    answer = say(*given)
    assert re.search(message, answer.complaint)
    assert answer.out == ""
    for_machines = say(*given, "--json")
    assert for_machines.code == 2
    assert re.search(message, " ".join(for_machines.json["error"].split()))
    assert listing(tmp_path) == ["file"]


def test_debug_shows_where_an_error_came_from(tmp_path: Path) -> None:
    plain = run("predict", "nowhere.png", "--out", tmp_path / "o")
    assert "names no image" in plain.complaint
    shown = run("predict", "nowhere.png", "--out", tmp_path / "o", "--debug")
    assert shown.code == 2
    assert shown.err.startswith("Traceback (most recent call last)")
    assert shown.err.splitlines()[-1] == plain.err.strip()


@pytest.mark.parametrize(
    "words",
    [
        ["predict", "x.png"],
        ["predict", "x.png", "--out", "o", "--jobs", "many"],
        ["predict", "x.png", "--out", "o", "--blue"],
        ["predict"],
        ["evaluate", "--truth", "t", "--found", "f", "--bootstrap", "-1"],
        ["demo", "--fields", "0"],
        ["bundles", "bake"],
        ["paint"],
    ],
    ids=" ".join,
)
def test_a_command_that_is_mistyped_is_explained(words: list[str]) -> None:
    answer = say(*words)
    assert answer.code == 2
    assert answer.out == ""
    assert "Usage:" in answer.err
    assert "Error" in answer.err
    assert "Traceback" not in answer.err


# -- help -------------------------------------------------------------------------------------------


def commands() -> Iterator[tuple[str, Any]]:
    def below(group: Any, name: str) -> Iterator[tuple[str, Any]]:
        for word, command in group.commands.items():
            full = f"{name} {word}".strip()
            yield from below(command, full) if hasattr(command, "commands") else [(full, command)]

    yield from below(typer.main.get_command(app), "")


def test_the_commands_are_those_that_are_promised() -> None:
    assert {name for name, _ in commands()} >= {
        "demo", "import", "export", "train", "predict", "evaluate",
        "bundles list", "bundles show", "bundles verify", "bundles export", "bundles pack",
    }  # fmt: skip


@pytest.mark.parametrize("name", [name for name, _ in commands()])
def test_every_command_explains_itself_with_an_example(name: str) -> None:
    answer = say(*name.split(), "--help")
    assert answer.code == 0
    text = " ".join(answer.out.split())
    example = re.search(r"Example: (cytolens [^\n]*?) Options:|Example: (cytolens .*?) Arguments:", text)
    assert example, answer.out
    assert (example[1] or example[2]).startswith(f"cytolens {name}")
    assert "--json" in text
    assert "--debug" in text
    described = re.findall(r"^  (--?[\w-]+)", answer.out, re.MULTILINE)
    parameters = dict(commands())[name].params
    assert len(described) >= sum(parameter.param_type_name == "option" for parameter in parameters)
    assert all(getattr(parameter, "help", "") for parameter in parameters)


def test_the_example_of_help_is_a_command_that_is_understood() -> None:
    for name, command in commands():
        example = " ".join((command.help or "").split()).partition("Example: cytolens ")[2]
        words = example.removeprefix(name).split()
        context = command.make_context(name, words, resilient_parsing=False)
        assert context.params


def test_the_version_is_that_of_the_package() -> None:
    from cytolens import __version__

    assert run("--version").out == f"cytolens {__version__}\n"


# -- what is imported -------------------------------------------------------------------------------


def test_importing_costs_next_to_nothing() -> None:
    script = "import sys, cytolens; cytolens.__version__; dir(cytolens); print(*sys.modules)"
    loaded = {name.partition(".")[0] for name in python(script).out.split()}
    assert "cytolens" in loaded
    assert not loaded & {"torch", "polars", "cv2", "numpy", "onnxruntime", "PIL", "pydantic", "typer", "matplotlib"}


@pytest.mark.parametrize("words", ["--help", "predict --help", "train --help", "bundles --help"])
def test_help_loads_no_heavy_module(words: str) -> None:
    script = (
        "import sys\nfrom cytolens.apps.cli.main import main\nsys.argv = ['cytolens', *sys.argv[1:]]\n"
        "try: main()\nexcept SystemExit as end: assert not end.code\nprint(*sys.modules, file=sys.stderr)"
    )
    answer = python(script, *words.split())
    loaded = {name.partition(".")[0] for name in answer.err.split()}
    assert "Usage: cytolens" in answer.out
    assert "typer" in loaded
    assert not loaded & {"torch", "onnxruntime", "cv2", "matplotlib", "scipy", "polars", "numpy"}


def test_a_package_is_called_like_its_function(smears: Path) -> None:
    script = """
import sys
import cytolens
from cytolens import predict as taken
picture = sys.argv[1]
first = cytolens.predict(picture)
import cytolens.predict.fields
import cytolens.evaluate.scores
second = cytolens.predict(picture)
assert first.frame.equals(second.frame) and len(first), first
assert taken(picture).frame.equals(first.frame)
assert cytolens.predict.fields.predict_images
data = cytolens.Dataset.read(sys.argv[2])
assert cytolens.evaluate(truth=data, found=data).figures["f1"] == 1
from cytolens.predict import tiles
assert tiles.OVERLAP < 1
try: cytolens.paint
except AttributeError as error: print(error)
"""
    answer = python(script, smears / "images" / "00000.png", smears)
    assert answer.err == ""
    assert answer.out == "module 'cytolens' has no attribute 'paint'\n"


def test_pixels_are_predicted_like_their_file(smears: Path) -> None:
    import cytolens

    path = smears / "images" / "00001.png"
    pixels = np.asarray(Image.open(path).convert("RGB"))
    named = ("label", "score", "x_min", "y_min", "x_max", "y_max", "counted", "refer")
    from_file, from_pixels = cytolens.predict(path).frame, cytolens.predict(pixels).frame
    assert from_file.select(named).equals(from_pixels.select(named))
    for wrong in (pixels[:, :, 0], pixels.astype(float), pixels[:0], np.zeros((4, 4, 4), np.uint8)):
        with pytest.raises(cytolens.problems.SettingError, match="pixels are uint8 RGB"):
            cytolens.predict(wrong)


_WITHOUT_TORCH = """
import json, sys
for name in ("torch", "torchvision", "lightning", "timm", "safetensors", "onnx"):
    sys.modules[name] = None
from cytolens.apps.cli.main import app
codes = []
for words in json.loads(sys.argv[1]):
    try:
        app(words)
    except SystemExit as end:
        codes.append(end.code)
print(codes)
"""


def test_everything_but_training_works_without_torch(smears: Path, found: Path, tmp_path: Path) -> None:
    words = [
        ["predict", smears / "images" / "00000.png", "--out", tmp_path / "p", "--json"],
        ["evaluate", "--truth", smears, "--found", found, "--bootstrap", "0", "--json"],
        ["bundles", "verify", "--json"],
        ["bundles", "list", "--json"],
        ["bundles", "pack", "smear-detector", "--out", tmp_path / "packed", "--json"],
        ["demo", "--fields", "1", "--out", tmp_path / "demo", "--json"],
        ["train", "detect", "--data", smears, "--out", tmp_path / "run", "--json"],
    ]
    answer = python(_WITHOUT_TORCH, json.dumps([[str(word) for word in line] for line in words]))
    *results, codes = answer.out.splitlines()
    assert json.loads(codes) == [0, 0, 0, 0, 0, 0, 2]
    said = [json.loads(line) for line in results]
    assert said[0]["images"] == 1
    assert [bundle["name"] for bundle in said[2]["bundles"]] == shipped()
    assert 'pip install "cytolens[train]"' in said[-1]["error"]
    assert answer.err.count("\n") == 1  # of train


# -- bundles ----------------------------------------------------------------------------------------


def test_exported_networks_answer_in_other_programs(tmp_path: Path) -> None:
    import onnxruntime

    assert say("bundles", "export", "smear", "--out", tmp_path / "onnx").code == 0
    assert listing(tmp_path / "onnx") == sorted(
        f"{name}.{kind}" for name in ("smear-detector", "wbc-classifier") for kind in ("onnx", "json")
    )
    for name in ("smear-detector", "wbc-classifier"):
        about = json.loads((tmp_path / "onnx" / f"{name}.json").read_text(encoding="utf-8"))
        network = onnxruntime.InferenceSession(tmp_path / "onnx" / f"{name}.onnx", providers=["CPUExecutionProvider"])
        side = about["detect_input" if about["task"] == "detect" else "classify_input"]["side_px"]
        answers = network.run(None, {"images": np.full((1, side, side, 3), 200, np.uint8)})
        scores = np.asarray(answers[1] if about["task"] == "detect" else answers[0])
        assert scores.shape[-1] == len(about["output_labels"])
        assert about["bundle_hash"] == Bundle.load(name).hash


def test_a_pipeline_is_packed_beside_copies_of_its_members(tmp_path: Path, smears: Path) -> None:
    figures = tmp_path / "scores.json"
    scored = say("evaluate", "--truth", smears, "--found", smears, "--bootstrap", "0", "--json")
    figures.write_text(scored.out)
    answer = say(
        "bundles", "pack", "wbc-classifier", "smear-detector", "--out", tmp_path / "to go" / "mine",
        "--description", "For a test.", "--scores", f"rendered={figures}", "--json",
    )  # fmt: skip
    assert answer.code == 0
    bundle = Bundle.load(tmp_path / "to go" / "mine")
    assert answer.json["hash"] == bundle.hash
    assert sorted(path.name for path in (tmp_path / "to go").iterdir()) == ["mine", "smear-detector", "wbc-classifier"]
    assert {name: one.hash for name, one in bundle.members.items()} == {
        name: Bundle.load(name).hash for name in ("smear-detector", "wbc-classifier")
    }
    assert bundle.labels == Bundle.load("smear").labels
    assert bundle.info.scores["rendered"]["map50"] == pytest.approx(1)
    card = (bundle.folder / "card.md").read_text(encoding="utf-8")
    assert "For a test." in card
    assert "## Scores: rendered" in card
    shown = say("bundles", "show", bundle.folder)
    assert card.strip() in shown.out
    assert say("bundles", "verify", bundle.folder).code == 0


def test_a_run_is_packed_under_another_name(tmp_path: Path) -> None:
    (tmp_path / "card.md").write_text("It is for **smears**.", encoding="utf-8")
    words = ("bundles", "pack", "smear-detector", "--out", tmp_path / "b", "--name", "mine", "--licence", "CC0-1.0")
    assert say(*words, "--card", tmp_path / "card.md").code == 0
    bundle = Bundle.load(tmp_path / "b")
    assert (bundle.name, bundle.info.licence) == ("mine", "CC0-1.0")
    assert "It is for **smears**." in (bundle.folder / "card.md").read_text(encoding="utf-8")
    assert bundle.info.files["model.onnx"] == Bundle.load("smear-detector").info.files["model.onnx"]
    assert bundle.self_test().passed


def test_packing_does_not_write_over_a_member(tmp_path: Path) -> None:
    for name in ("smear-detector", "wbc-classifier"):
        assert say("bundles", "pack", name, "--out", tmp_path / name).code == 0
    before = {name: Bundle.load(tmp_path / name).hash for name in ("smear-detector", "wbc-classifier")}
    members = (tmp_path / "smear-detector", tmp_path / "wbc-classifier")
    answer = say("bundles", "pack", *members, "--out", tmp_path / "smear-detector")
    assert "all need other names" in answer.complaint
    assert {name: Bundle.load(tmp_path / name).hash for name in before} == before
    say("bundles", "pack", "wbc-classifier", "--out", tmp_path / "twin", "--name", "smear-detector")
    answer = say("bundles", "pack", tmp_path / "smear-detector", tmp_path / "twin", "--out", tmp_path / "both")
    assert "all need other names" in answer.complaint
    assert not (tmp_path / "both").exists()


def test_a_member_does_not_replace_something_else(tmp_path: Path) -> None:
    (tmp_path / "wbc-classifier").mkdir()
    (tmp_path / "wbc-classifier" / "thesis.tex").write_text("years of work")
    answer = say("bundles", "pack", "smear-detector", "wbc-classifier", "--out", tmp_path / "both")
    assert "holds something else than a bundle" in answer.complaint
    assert (tmp_path / "wbc-classifier" / "thesis.tex").read_text() == "years of work"


@pytest.mark.parametrize("text", ["", 'names = "abc"', "names = [1, 2]", 'label = "abc"', "label = [3]", "label = []"])
def test_a_label_file_that_lists_no_labels_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "labels.toml").write_text(text)
    path = picture(tmp_path / "in" / "lymphocyte" / "1.png").parents[1]
    answer = say("import", path, "--labels", tmp_path / "labels.toml", "--out", tmp_path / "data")
    assert "has neither names" in answer.complaint


def test_labels_come_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "labels.toml").write_text('names = ["Lymphozyt", "lymphocyte"]', encoding="utf-8")
    path = picture(tmp_path / "in" / "lymphocyte" / "1.png").parents[1]
    words = ("import", path, "--format", "image_folder", "--labels", tmp_path / "labels.toml", "--out", tmp_path / "d")
    assert say(*words).code == 0
    assert Dataset.read(tmp_path / "d").labels.names == ("Lymphozyt", "lymphocyte")


def test_a_folder_called_like_a_label_set_is_not_taken_for_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    picture(tmp_path / "pbc" / "lymphocyte" / "1.png")
    answer = say("import", "pbc", "--format", "image_folder", "--labels", "pbc", "--out", "data")
    assert answer.code == 0
    assert Dataset.read("data").labels == LabelSet.shipped("pbc")
