"""Which members are worth their time: sets judged as a blend judges them, times added up, the best one packed."""

from __future__ import annotations

import copy
import csv
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sklearn import metrics

from cytolens import bundle as bundles
from cytolens.bundle import Bundle
from cytolens.cells import Cells
from cytolens.dataset import Dataset
from cytolens.evaluate import plots
from cytolens.images import Images
from cytolens.labels import LabelSet
from cytolens.predict.blend import Nested, TuneSettings
from cytolens.problems import DatasetError, SettingError
from cytolens.run import latency, tune
from cytolens.run.steps_ensemble import BlendStep, CompareStep
from cytolens.run.tunable import read_tunable
from cytolens.run.tune import Choice, with_front
from tests.apps.speaking import say
from tests.predict.doubles import ColourEyes, FixedNames, connect, detecting, naming, painted

LABELS = LabelSet.of(["leukocyte", "neutrophil", "lymphocyte", "monocyte", "eosinophil"])
LEAVES = LABELS.leaves
IMAGES, PER_IMAGE, FOLDS = 16, 3, 2
# How well each family names: the share of cells whose right name it believes in.
SKILL = {"large": 0.9, "middle": 0.75, "small": 0.6}
MS_PER_CELL = {"large": 30.0, "middle": 8.0, "small": 2.0}
MS_PER_IMAGE = {"eyes": 10.0, "far": 20.0}


class MadeRun:
    """A run as `cytolens run` leaves it, made without training: networks are doubles, predictions are drawn."""

    def __init__(self, root: Path, families: Sequence[str] = tuple(SKILL), seed: int = 0) -> None:
        self.root, self.stages, self.random = root, [], np.random.default_rng(seed)
        self.truth = self._truth()
        self.families = list(families)
        for name in MS_PER_IMAGE:
            for fold in range(FOLDS):
                info = detecting(root).info.model_copy(update={"name": f"{name}-{fold}"})
                bundles.write(self.add(f"{name} fold={fold}", "train") / "bundle", info, {})
        for family in families:
            self._family(family)
        members = {family: [self.key(f"named-{family} fold={fold}") for fold in range(FOLDS)] for family in families}
        self.blend("blend", members)
        threshold = self.add("threshold", "threshold", found=self.key("blend"))
        (threshold / "threshold.json").write_text('{"threshold": 0.35}')
        detectors = [self.key(f"{name} fold={fold}") for name in MS_PER_IMAGE for fold in range(FOLDS)]
        classifiers = {family: [self.key(f"{family} fold={fold}") for fold in range(FOLDS)] for family in families}
        self.add(
            "ensemble",
            "pack",
            detectors=detectors,
            classifiers=classifiers,
            blend=self.key("blend"),
            threshold=self.key("threshold"),
            fusion={"iou": 0.6},
            name="both",
        )
        self.write()

    def _truth(self) -> Dataset:
        rows = [
            {"image_id": f"{i:02}.png", "width_px": 200, "height_px": 100, "fold": i % FOLDS} for i in range(IMAGES)
        ]
        names = [str(name) for name in self.random.choice(LEAVES, IMAGES * PER_IMAGE, p=[0.4, 0.3, 0.2, 0.1])]
        cells = Cells.of(
            LABELS,
            image_id=[row["image_id"] for row in rows for _ in range(PER_IMAGE)],
            boxes=np.tile([[5, 10, 45, 50], [60, 10, 100, 50], [120, 10, 170, 60]], (IMAGES, 1)),
            label=names,
            source="human:test",
        )
        dataset = Dataset(Images.of(rows), cells, "made")
        dataset.write(self.add("folds", "split"))
        return dataset

    def _family(self, family: str) -> None:
        for fold in range(FOLDS):
            info = naming(self.root, names=LABELS.names).info.model_copy(update={"name": f"{family}-{fold}"})
            bundles.write(self.add(f"{family} fold={fold}", "train") / "bundle", info, {})
            place = self.add(
                f"named-{family} fold={fold}",
                "predict",
                bundle=self.key(f"{family} fold={fold}"),
                where=f"fold = {fold}",
            )
            part = self.truth.where(fold=fold)
            self.drawn(part.cells, SKILL.get(family, 0.5)).write_parquet(place / "cells.parquet")
            part.images.frame.write_parquet(place / "images.parquet")

    def drawn(self, truth: Cells, skill: float) -> Cells:
        """What a classifier says of the truth's boxes; one box in each third image was found and does not count."""
        right = np.array([LEAVES.index(str(name)) for name in truth.label_names()])
        believed = np.where(self.random.random(len(right)) < skill, right, self.random.integers(0, 4, len(right)))
        table = self.random.dirichlet(np.ones(4), len(right)) + 1.2 * np.eye(4)[believed]
        table /= table.sum(axis=1, keepdims=True)
        known = np.arange(len(right)) % 9 != 8
        return Cells.of(
            LABELS,
            image_id=truth.frame["image_id"].to_list(),
            boxes=truth.boxes(),
            label=[LEAVES[i] if ok else None for i, ok in zip(table.argmax(axis=1), known, strict=True)],
            probabilities=table,
            known=known,
            score=np.full(len(right), 0.9),
            counted=known,
            source="bundle:test@0",
        )

    def copied(self, root: Path) -> MadeRun:
        """The same run in a folder of its own."""
        other = copy.copy(self)
        shutil.copytree(self.root, root)
        other.root, other.stages = root, copy.deepcopy(self.stages)
        return other

    def add(self, name: str, do: str, /, **settings: Any) -> Path:
        """One stage more, and the folder of its result."""
        key = f"key-of-{name}"
        folder = Path("steps") / name.replace(" ", ".") / "0"
        (self.root / folder).mkdir(parents=True)
        self.stages.append({"name": name, "do": do, "key": key, "folder": folder.as_posix(), "settings": settings})
        return self.root / folder

    def key(self, name: str) -> dict[str, str]:
        return {"result": f"key-of-{name}"}

    def folder(self, name: str) -> Path:
        return self.root / "steps" / name.replace(" ", ".") / "0"

    def blend(self, name: str, members: Mapping[str, Any], **settings: Any) -> dict[str, Any]:
        """A blend as the step makes it."""
        place = self.add(name, "blend", truth=self.key("folds"), members=members, **settings)
        given = {family: [self.folder(r["result"].removeprefix("key-of-")) for r in m] for family, m in members.items()}
        step = BlendStep.model_validate({"truth": self.folder("folds"), "members": given, **settings})
        return step.run(place, print)

    def write(self) -> None:
        (self.root / "run.json").write_text(json.dumps({"recipe": "made", "stages": self.stages}))

    def without(self, do: str) -> None:
        self.stages = [stage for stage in self.stages if stage["do"] != do]
        self.write()


class Coarse(TuneSettings):
    """A coarse grid, so that tests are quick."""

    candidates: int = 60


DRAWN = plots.score_against_cost


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> MadeRun:
    """The run, made once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cytolens.predict.blend.TuneSettings", Coarse)
        return MadeRun(tmp_path_factory.mktemp("made") / "run")


@pytest.fixture
def made(template: MadeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MadeRun:
    """A run, and a machine on which every member takes a known time."""
    monkeypatch.setattr("cytolens.predict.blend.TuneSettings", Coarse)
    monkeypatch.setattr(tune, "TuneSettings", Coarse)
    monkeypatch.setattr(latency, "detector_ms", lambda bundle, pictures: MS_PER_IMAGE[family_of(bundle)])
    monkeypatch.setattr(
        latency, "classifier_ms", lambda bundle, pictures, cells, side_px: MS_PER_CELL[family_of(bundle)]
    )
    monkeypatch.setattr(latency, "rendered_pictures", lambda: [painted((64, 48), [])])
    monkeypatch.setattr(plots, "score_against_cost", lambda *given, **more: b"\x89PNG")
    shares = [0.1, 0.2, 0.3, 0.4]
    names = {f"{family}-{fold}": FixedNames(shares) for family in SKILL for fold in range(FOLDS)}
    eyes = {f"{name}-{fold}": ColourEyes() for name in MS_PER_IMAGE for fold in range(FOLDS)}
    connect(monkeypatch, **names, **eyes)
    return template.copied(tmp_path / "run")


def family_of(bundle: Bundle) -> str:
    return bundle.name.partition("-")[0]


def by_name(result: tune.Tuned) -> dict[str, Choice]:
    return {one.name: one for one in result.choices}


# -- judging --------------------------------------------------------------------------------------------


def test_every_set_is_judged_as_a_blend_judges_it(made: MadeRun, tmp_path: Path) -> None:
    result = tune.tune(made.root, tmp_path / "out")
    sets = by_name(result)
    assert set(sets) == {
        "large", "middle", "small", "large + middle", "large + small", "middle + small", "large + middle + small",
    }  # fmt: skip
    said = json.loads((made.folder("blend") / "blend.json").read_text())
    everyone = sets["large + middle + small"]
    assert everyone.macro_f1 == said["macro_f1_nested"]
    assert everyone.in_sample == said["macro_f1_in_sample"]
    assert {family: round(weight, 6) for family, weight in everyone.weights.items()} == said["weights"]
    assert result.cells == said["cells"]


def test_a_family_alone_has_its_own_figure(made: MadeRun, tmp_path: Path) -> None:
    """scikit-learn's macro-F1 of the likeliest names, where the family was asked."""
    sets = by_name(tune.tune(made.root, tmp_path / "out"))
    names = dict(zip(_places(made.truth.cells), made.truth.cells.label_names(), strict=True))
    for family in SKILL:
        parts = [Cells.read_parquet(made.folder(f"named-{family} fold={f}") / "cells.parquet") for f in range(FOLDS)]
        cells = parts[0].concat(parts[1]).filter(pl.col("probabilities").is_not_null())
        said = [LEAVES[i] for i in cells.probabilities().argmax(axis=1)]
        right = [str(names[place]) for place in _places(cells)]
        expected = metrics.f1_score(right, said, average="macro", labels=sorted(set(right)))
        assert sets[family].macro_f1 == pytest.approx(expected)
        assert sets[family].in_sample == sets[family].macro_f1
        assert dict(sets[family].weights) == {family: 1.0}


def _places(cells: Cells) -> list[tuple[str, float]]:
    return list(zip(cells.frame["image_id"].to_list(), cells.boxes()[:, 0].tolist(), strict=True))


def test_of_many_families_sets_are_grown(made: MadeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    every = by_name(tune.tune(made.root, tmp_path / "all"))
    monkeypatch.setattr(tune, "ALL_SETS_UP_TO", 2)
    grown = by_name(tune.tune(made.root, tmp_path / "grown"))
    singles = [name for name in grown if "+" not in name]
    assert sorted(singles) == sorted(SKILL)
    best = max(singles, key=lambda name: grown[name].macro_f1)
    pairs = [name for name in grown if name.count("+") == 1]
    assert len(pairs) == 2
    assert all(best in name.split(" + ") for name in pairs)
    assert [name for name in grown if name.count("+") == 2] == ["large + middle + small"]
    assert all(grown[name].macro_f1 == every[name].macro_f1 for name in grown)


def test_equal_weights_are_judged_as_equal_weights(made: MadeRun) -> None:
    members = {family: [made.key(f"named-{family} fold={fold}") for fold in range(FOLDS)] for family in SKILL}
    said = made.blend("even", members, method="equal")
    assert list(said["weights"].values()) == pytest.approx([1 / 3] * 3, abs=1e-6)
    cells = Cells.read_parquet(made.folder("even") / "cells.parquet")
    asked = cells.filter(pl.col("probabilities").is_not_null())
    names = dict(zip(_places(made.truth.cells), made.truth.cells.label_names(), strict=True))
    right = [str(names[place]) for place in _places(asked)]
    said_names = [LEAVES[i] for i in asked.probabilities().argmax(axis=1)]
    expected = metrics.f1_score(right, said_names, average="macro", labels=sorted(set(right)))
    assert said["macro_f1_nested"] == said["macro_f1_in_sample"] == pytest.approx(expected)


def test_a_blend_leaves_cells_alone_that_nobody_named(made: MadeRun) -> None:
    cells = Cells.read_parquet(made.folder("blend") / "cells.parquet")
    unasked = cells.filter(~pl.col("counted"))
    assert 0 < len(unasked) < len(cells)
    assert unasked.frame["probabilities"].null_count() == len(unasked)
    assert unasked.label_names() == [None] * len(unasked)
    assert not unasked.frame["refer"].any()
    asked = cells.filter(pl.col("counted"))
    assert asked.frame["probabilities"].null_count() == 0
    assert asked.probabilities().sum(axis=1) == pytest.approx(1, abs=1e-5)


# -- time -------------------------------------------------------------------------------------------------


def test_times_add_up(made: MadeRun, tmp_path: Path) -> None:
    result = tune.tune(made.root, tmp_path / "out")
    asked = int(Cells.read_parquet(made.folder("blend") / "cells.parquet").frame["counted"].sum())
    per_image = asked / IMAGES
    assert result.timing.cells_per_image == pytest.approx(per_image)
    assert dict(result.timing.detectors) == {"eyes": 20.0, "far": 40.0}  # both folds are asked
    for one in result.choices:
        used = [family for family in one.families if one.weights[family] > 0]
        assert one.ms == pytest.approx(60 + 2 * per_image * sum(MS_PER_CELL[family] for family in used))
        assert one.models == 2 * len(used)
    fast = tune.tune(made.root, tmp_path / "fast", one_fold=True)
    assert dict(fast.timing.detectors) == {"eyes": 10.0, "far": 20.0}
    for name, one in by_name(fast).items():
        assert one.ms == pytest.approx(by_name(result)[name].ms / 2)
        assert one.macro_f1 == by_name(result)[name].macro_f1


class Clock:
    """A clock that only goes on when somebody works."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


class Slow:
    """A session that takes a known time for each picture, and twice as long for the first ones."""

    def __init__(self, clock: Clock, session: Any, ms: float) -> None:
        self.clock, self.session, self.ms, self.batches = clock, session, ms, []

    def run(self, outputs: Sequence[str], feeds: Mapping[str, Any]) -> list[Any]:
        pictures = len(feeds["images"])
        self.clock.now += self.ms / 1000 * pictures * (1 if self.batches else 2)
        self.batches.append(pictures)
        return self.session.run(outputs, feeds)


def test_members_are_timed_as_they_work(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    clock = Clock()
    monkeypatch.setattr(latency, "time", clock)
    eyes, names = Slow(clock, ColourEyes(), 20), Slow(clock, FixedNames([0.1, 0.2, 0.3, 0.4]), 10)
    connect(monkeypatch, eyes=eyes, names=names)
    pictures = [painted((416, 320), []), painted((320, 416), [])]
    assert latency.detector_ms(detecting(tmp_path), pictures) == pytest.approx(20)
    assert latency.detector_ms(detecting(tmp_path, views=4), pictures) == pytest.approx(80)  # views are paid for
    assert latency.classifier_ms(naming(tmp_path), pictures, 5, 60.0) == pytest.approx(10)  # for one cell
    assert set(names.batches) == {5}
    names.batches.clear()
    tiny = [painted((20, 20), [])]  # cells larger than the field
    assert latency.classifier_ms(naming(tmp_path, views=8), tiny, 1, 60.0) == pytest.approx(80)
    assert set(names.batches) == {1}


def test_the_middle_of_several_rounds_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(latency, "time", clock)
    takes = iter([9.0, 0.030, 5.0, 0.040])  # the first is not counted, and one hiccup does not matter

    def work() -> None:
        clock.now += next(takes)

    assert latency._median_ms(work) == pytest.approx(40)


def test_images_to_measure_with_are_read(tmp_path: Path) -> None:
    for number in range(7):
        Image.fromarray(np.full((8, 10 + number, 3), number, np.uint8)).save(tmp_path / f"{number}.png")
    (tmp_path / "0.png").write_bytes(b"no picture")
    assert [one.shape for one in latency.pictures_of(tmp_path, 3)] == [(8, 13, 3), (8, 16, 3), (8, 11, 3)]
    assert len(latency.pictures_of(tmp_path, 20)) == 6
    for file in tmp_path.iterdir():
        file.write_bytes(b"no picture")
    with pytest.raises(DatasetError, match="none of its 7 images can be read"):
        latency.pictures_of(tmp_path)


def test_rendered_fields_are_always_the_same() -> None:
    one, other = latency.rendered_pictures(2), latency.rendered_pictures(1)
    assert np.array_equal(one[0], other[0])
    assert not np.array_equal(one[0], one[1])


# -- the front and the budget -----------------------------------------------------------------------------

NOTHING = Nested(0.0, 0.0, np.ones(1), {})


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), min_size=1, max_size=12), st.integers(1, 9))
def test_the_best_under_any_budget_is_on_the_front(points: list[tuple[int, int]], budget: int) -> None:
    choices = with_front(
        [Choice((str(i),), {}, score / 10, 0.0, 1, float(ms), False, NOTHING) for i, (ms, score) in enumerate(points)]
    )
    assert [one.ms for one in choices] == sorted(ms for ms, _ in points)
    fitting = [one for one in choices if one.ms <= budget]
    if fitting:
        best = max(fitting, key=lambda one: (one.macro_f1, -one.ms))
        assert best.on_front
    for one in choices:
        under = [other for other in choices if other.ms <= one.ms]
        is_best = one.macro_f1 == max(other.macro_f1 for other in under)
        is_cheapest = one.ms == min(other.ms for other in under if other.macro_f1 >= one.macro_f1)
        assert one.on_front == (is_best and is_cheapest)


def test_the_best_under_the_budget_is_packed(made: MadeRun, tmp_path: Path) -> None:
    every = by_name(tune.tune(made.root, tmp_path / "front"))
    budget = every["middle + small"].ms + 1e-6
    assert budget < every["large"].ms
    result = tune.tune(made.root, tmp_path / "out", budget_ms=budget)
    fitting = [every[name] for name in ("middle", "small", "middle + small")]
    assert result.chosen is not None
    assert result.chosen.macro_f1 == max(one.macro_f1 for one in fitting)
    packed = Bundle.load(tmp_path / "out")
    used = [family for family in result.chosen.families if result.chosen.weights[family] > 0]
    named = {f"{family}-{fold}" for family in used for fold in range(FOLDS)}
    assert set(packed.members) == {"eyes-0", "eyes-1", "far-0", "far-1"} | named
    for family in used:
        for fold in range(FOLDS):
            assert packed.info.weights[f"{family}-{fold}"] == pytest.approx(result.chosen.weights[family] / FOLDS)
    assert packed.info.fusion is not None
    assert packed.info.fusion.iou == 0.6
    assert packed.info.detect_output is not None
    assert set(packed.info.detect_output.thresholds.values()) == {0.35}
    assert packed.name == "both-tuned"
    assert packed.self_test().passed


def test_all_of_it_is_packed_as_the_run_packs_it(
    made: MadeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the budget allows everything: weights, temperature and sureness are those of the run's blend."""
    whole = ("large", "middle", "small")
    real = tune.judged_sets
    monkeypatch.setattr(tune, "judged_sets", lambda *given: [one for one in real(*given) if one.families == whole])
    result = tune.tune(made.root, tmp_path / "out", budget_ms=1e9)
    assert result.bundle is not None
    said = json.loads((made.folder("blend") / "blend.json").read_text())
    output = result.bundle.info.classify_output
    assert output is not None
    assert output.temperature == pytest.approx(said["temperature"], abs=1e-4)
    assert output.sure == said["sure"]
    for family in (family for family in whole if said["weights"][family] > 0):
        assert result.bundle.info.weights[f"{family}-1"] == pytest.approx(said["weights"][family] / 2, abs=1e-6)


def test_one_fold_of_each_family_is_the_fast_choice(made: MadeRun, tmp_path: Path) -> None:
    result = tune.tune(made.root, tmp_path / "out", budget_ms=1e9, one_fold=True)
    assert result.bundle is not None
    assert result.chosen is not None
    used = [family for family in result.chosen.families if result.chosen.weights[family] > 0]
    assert set(result.bundle.members) == {"eyes-0", "far-0", *(f"{family}-0" for family in used)}


def test_nothing_fits_and_the_cheapest_is_named(made: MadeRun, tmp_path: Path) -> None:
    with pytest.raises(SettingError) as said:
        tune.tune(made.root, tmp_path / "out", budget_ms=40)
    small = by_name(tune.tune(made.root, tmp_path / "front"))["small"].ms
    assert f"the cheapest, small, takes {small:.1f} ms" in str(said.value)
    assert "--one-fold keeps one fold's model" in str(said.value)
    assert (tmp_path / "out" / "front.html").exists()  # what was measured is shown all the same
    assert not (tmp_path / "out" / "bundle").exists()
    assert json.loads((tmp_path / "out" / "tune.json").read_text())["chosen"] is None
    with pytest.raises(SettingError) as again:
        tune.tune(made.root, tmp_path / "fast", budget_ms=30, one_fold=True)
    assert "--one-fold" not in str(again.value)


# -- what is left -----------------------------------------------------------------------------------------


def test_files_tell_the_same(made: MadeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots, "score_against_cost", DRAWN)
    result = tune.tune(made.root, tmp_path / "out", budget_ms=1e9)
    with (tmp_path / "out" / "front.csv").open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["families"] for row in rows] == [one.name for one in result.choices]
    assert [float(row["ms_per_image"]) for row in rows] == pytest.approx([one.ms for one in result.choices], abs=1e-4)
    assert [row["families"] for row in rows if row["chosen"] == "true"] == [result.chosen.name if result.chosen else ""]
    said = json.loads((tmp_path / "out" / "tune.json").read_text())
    assert said["chosen"]["families"] == list(result.chosen.families if result.chosen else ())
    assert [row["families"] for row in rows if row["on_front"] == "true"] == [
        " + ".join(one["families"]) for one in said["front"]
    ]
    page = (tmp_path / "out" / "front.html").read_text(encoding="utf-8")
    assert all(f">{one.ms:.1f}<" in page for one in result.choices)
    assert "data:image/png;base64," in page
    assert (tmp_path / "out" / "front.png").read_bytes().startswith(b"\x89PNG")


def test_the_picture_marks_the_choice_and_the_limit() -> None:
    given = (["a", "$b$", "c"], [1.0, 2.0, 3.0], [0.5, 0.7, 0.6], [True, True, False], ("ms", "macro-F1"))

    def drawn(**more: Any) -> bytes:
        # What SVG calls its clipping paths by is drawn anew each time.
        return re.sub(rb"(id=|#|clip-path=)[^ )]*", b"", plots.score_against_cost(*given, kind="svg", **more))

    plain = drawn()
    assert b"<svg" in plain
    assert plain != drawn(chosen=1)
    assert plain != drawn(limit=2.5)
    assert plain == drawn(limit=1e9)  # far beyond all: it would only squeeze them


# -- runs that are something else -------------------------------------------------------------------------


def test_a_blend_is_named_by_its_folder(made: MadeRun, tmp_path: Path) -> None:
    members = {
        family: [made.key(f"named-{family} fold={fold}") for fold in range(FOLDS)] for family in ("large", "small")
    }
    made.blend("two", members)
    made.write()
    assert set(read_tunable(made.root).classifiers) == set(SKILL)  # the one that is packed
    two = read_tunable(made.folder("two"))
    assert set(two.classifiers) == {"large", "small"}
    assert two.pack is None
    assert [place.parent.name for place in two.classifiers["small"]] == ["small.fold=0", "small.fold=1"]
    assert "its detectors are not known" in two.notes[0]
    result = tune.tune(made.folder("two"), tmp_path / "out")
    assert by_name(result)["small"].ms == pytest.approx(2 * 2 * result.timing.cells_per_image)
    with pytest.raises(SettingError, match=r'no step do = "pack"'):
        tune.tune(made.folder("two"), tmp_path / "out", budget_ms=100)
    made.without("pack")
    with pytest.raises(SettingError, match="several blends; name the folder of one"):
        read_tunable(made.root)
    made.without("blend")
    with pytest.raises(SettingError, match='has no step do = "blend"'):
        read_tunable(made.root)


def test_a_pack_may_take_its_blend_through_another_step(made: MadeRun) -> None:
    """A blend with classifiers of whole images stands between; those are left out, and a note says so."""
    made.add("image-blend", "image-blend", blend=made.key("blend"))
    pack = next(stage for stage in made.stages if stage["do"] == "pack")
    pack["settings"] |= {"blend": made.key("image-blend"), "of_images": [made.key("large fold=0")]}
    made.write()
    given = read_tunable(made.root)
    assert given.pack is not None
    assert set(given.classifiers) == set(SKILL)
    assert given.notes == ("Classifiers of whole images are left out.",)


def test_views_that_a_member_was_judged_with_are_told(made: MadeRun) -> None:
    for stage in made.stages:
        if stage["name"].startswith("named-large"):
            stage["settings"]["tta"] = "flips"
    made.write()
    assert read_tunable(made.root).notes[0].startswith("large was judged with the views flips")


def test_a_moved_run_is_read_where_it_is(made: MadeRun, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere"
    made.root.rename(moved)
    assert read_tunable(moved).blend.truth == moved / "steps" / "folds" / "0"


def test_predictions_from_elsewhere_have_no_known_bundle(made: MadeRun) -> None:
    for stage in made.stages:
        if stage["name"].startswith("named-large"):
            stage["settings"]["bundle"] = {"outside": "0123"}
    made.write()
    assert set(read_tunable(made.root).classifiers) == set(SKILL)  # the pack step names them
    made.without("pack")
    with pytest.raises(SettingError, match='"large" was not trained in this run'):
        read_tunable(made.root)


@pytest.mark.parametrize("content", [None, "{}", "no json", "[1]"])
def test_what_is_no_run_is_refused(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "run.json").write_text(content)
    with pytest.raises(SettingError, match="is neither a folder that cytolens run left"):
        read_tunable(tmp_path)


def test_a_dataset_without_folds_cannot_be_nested(made: MadeRun, tmp_path: Path) -> None:
    Dataset(made.truth.images.with_columns(fold=None), made.truth.cells, "made").write(made.folder("folds"))
    with pytest.raises(DatasetError, match="images without a fold; make folds with: cytolens split"):
        tune.tune(made.root, tmp_path / "out")


# -- the command --------------------------------------------------------------------------------------------


def test_the_command_says_what_it_packed(made: MadeRun, tmp_path: Path) -> None:
    answer = say("tune", made.root, "--budget-ms", "1000", "--one-fold", "--out", tmp_path / "out", "--json")
    assert answer.code == 0
    assert answer.json["sets"] == 7
    assert answer.json["bundle"]["hash"] == Bundle.load(tmp_path / "out").hash
    assert answer.json["budget_ms"] == 1000
    plain = say("tune", made.root, "--out", tmp_path / "plain")
    assert plain.code == 0
    assert plain.out.startswith("7 sets of classifiers")
    assert "small" in plain.out
    assert not (tmp_path / "plain" / "bundle").exists()


def test_the_command_refuses_in_one_line(made: MadeRun, tmp_path: Path) -> None:
    nothing = say("tune", made.root, "--budget-ms", "1", "--out", tmp_path / "out", "--json")
    assert nothing.code == 2
    assert "the cheapest, small" in nothing.json["error"]
    assert "is neither a folder" in say("tune", tmp_path / "no", "--json").err


# -- a comparison of answers of one fold ----------------------------------------------------------------------


def test_answers_of_one_fold_are_compared_on_that_fold(made: MadeRun, tmp_path: Path) -> None:
    one = {family: (made.folder(f"named-{family} fold=0"),) for family in SKILL}
    step = CompareStep(truth=made.folder("folds"), answers=one, baseline="small")
    said = step.run(tmp_path, print)
    asked = Cells.read_parquet(made.folder("named-small fold=0") / "cells.parquet").frame["counted"].sum()
    assert said["cells"] == asked
    mixed = {"small": one["small"], "large": (made.folder("named-large fold=1"),)}
    with pytest.raises(DatasetError):
        CompareStep(truth=made.folder("folds"), answers=mixed, baseline="small").run(tmp_path, print)
