"""A Ray cluster finds what this machine finds, in the same order, and says the same of what cannot be read."""

from __future__ import annotations

import os
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from cytolens.bundle import Bundle
from cytolens.predict.fields import Prediction, image_rows, predict_images
from cytolens.predict.on_ray import _BATCH, _predictor, connected, predict_on_ray, settle
from cytolens.predict.pipeline import Predictor, PredictSettings
from cytolens.prepare.synthetic import SyntheticSettings, write_synthetic
from cytolens.problems import BundleError, DatasetError, MissingExtraError, SettingError
from tests.apps.speaking import say

pytest.importorskip("ray", reason="the extra 'ray' is not installed")

_SMALL = SyntheticSettings(
    width_px=256, height_px=256, red_cells=(4, 8), white_cells=(1, 1), platelets=(0, 2),
    red_cell_diameter_px=(26, 34), debris=(0, 1),
)  # fmt: skip
_FIELDS = 12


@pytest.fixture(scope="module")
def smears(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rendered fields as plain images, and between them a file that is no image: more than one task's worth."""
    folder = tmp_path_factory.mktemp("on_ray") / "smears"
    write_synthetic(folder, _FIELDS, 3, _SMALL)
    (folder / "images" / "00004b.png").write_bytes(b"no image")
    assert _FIELDS > _BATCH
    return folder


@pytest.fixture(scope="module")
def here() -> Iterator[Path]:
    """A cluster on this machine; where its files stand."""
    import ray

    with connected(None):
        place = Path(ray.get_runtime_context().worker.node.get_session_dir_path())
        assert place.is_dir()
        yield place
    assert not place.exists()
    assert not ray.is_initialized()


def both(smears: Path, bundle: str, **more: Any) -> tuple[Prediction, Prediction]:
    """What this machine finds, and what the cluster finds."""
    predictor = Predictor(Bundle.load(bundle), PredictSettings(jobs=1))
    rows = image_rows([smears / "images"])
    return predict_images(predictor, rows, **more), predict_on_ray(predictor, rows, **more)


def test_the_same_as_here_in_the_same_order(smears: Path, here: Path) -> None:
    told: list[tuple[int, int]] = []
    local, far = both(smears, "smear", progress=lambda done, total: told.append((done, total)))
    assert len(local.cells) > 5 * _FIELDS
    assert far.cells.frame.equals(local.cells.frame)
    assert far.images.frame.equals(local.images.frame)
    assert far.images.ids == sorted(far.images.ids)
    assert [str(one) for one in far.problems] == [str(one) for one in local.problems]
    assert [one.where for one in far.failed] == [one.where for one in local.failed]
    assert len(far.failed) == 1
    assert (far.remarks, far.reasons) == (local.remarks, local.reasons)
    by_cluster = told[_FIELDS + 1 :]  # this machine tells of each image, and came first
    assert by_cluster[-1] == (_FIELDS + 1, _FIELDS + 1)
    assert [done for done, _ in by_cluster] == sorted(done for done, _ in by_cluster)


def test_given_boxes_are_named_there(smears: Path, here: Path) -> None:
    found = predict_images(
        Predictor(Bundle.load("smear-detector"), PredictSettings(jobs=1)), image_rows([smears / "images"])
    ).cells
    # An image of which nothing is known has no cells to name.
    some = found.filter(pl.col("label").cast(pl.String) == "leukocyte").filter(pl.col("image_id") != "00003.png")
    local, far = both(smears, "wbc-classifier", boxes=some)
    assert len(local.cells) == len(some) > _FIELDS / 2
    assert local.cells.frame["probabilities"].null_count() < len(some)
    assert far.cells.frame.equals(local.cells.frame)
    assert far.images.ids == local.images.ids
    assert len(far.images) == _FIELDS


def test_images_whose_actor_is_killed_are_looked_at_again(smears: Path, here: Path) -> None:
    predictor = Predictor(Bundle.load("smear-detector"), PredictSettings(jobs=1))
    rows = image_rows([smears / "images"])
    killed: list[int] = []

    def kill_the_first() -> None:
        last = time.monotonic() + 120
        while not killed and time.monotonic() < last:
            time.sleep(0.05)
            for process in actors():
                os.kill(process, signal.SIGKILL)
                killed.append(process)

    killer = threading.Thread(target=kill_the_first)
    killer.start()
    far = predict_on_ray(predictor, rows)
    killer.join()
    assert killed
    assert far.cells.frame.equals(predict_images(predictor, rows).cells.frame)


def actors() -> list[int]:
    """Processes of the pool on this machine."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if b"_Looker" in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
        except OSError:
            continue  # it has ended meanwhile
    return found


def test_what_an_actor_refuses_is_raised_as_it_is(smears: Path, here: Path) -> None:
    predictor = Predictor(replace(Bundle.load("smear-detector"), hash="000000000000"), PredictSettings(jobs=1))
    with pytest.raises(BundleError, match="not 000000000000; install the same version everywhere") as raised:
        predict_on_ray(predictor, image_rows([smears / "images"])[:1])
    assert type(raised.value) is BundleError


def test_boxes_of_other_images_are_refused(smears: Path) -> None:
    found = predict_images(
        Predictor(Bundle.load("smear-detector"), PredictSettings(jobs=1)), image_rows([smears / "images"])[:1]
    ).cells
    other = image_rows([smears / "images"])[1:]
    with pytest.raises(DatasetError, match="of other images"):
        predict_on_ray(Predictor(Bundle.load("smear")), other, boxes=found)


def test_the_command(smears: Path, here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(smears)  # relative paths mean the same to the cluster
    words = ("predict", "images", "--bundle", "smear-detector", "--format", "cells", "--json")
    local = say(*words, "--out", tmp_path / "local")
    far = say(*words, "--out", tmp_path / "far", "--engine", "ray")
    assert (local.code, far.code) == (1, 1), far.err  # one file is no image
    assert far.json["counts"] == local.json["counts"]
    assert far.json["failures"] == local.json["failures"]
    for name in ("cells.parquet", "images.parquet"):
        assert (tmp_path / "far" / name).read_bytes() == (tmp_path / "local" / name).read_bytes()
    assert not here.is_relative_to(tmp_path)
    assert here.is_relative_to(tempfile.gettempdir()) or here.is_relative_to("/tmp")


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("--engine", "rey"), 'no engine "rey"; allowed: local, ray'),
        (("--address", "10.0.0.1:6379"), "--address names a Ray cluster; it goes with --engine ray"),
    ],
)
def test_what_cannot_be_meant_is_refused(smears: Path, tmp_path: Path, words: tuple[str, ...], complaint: str) -> None:
    answer = say("predict", smears, "--out", tmp_path / "out", *words)
    assert answer.complaint == complaint
    assert not (tmp_path / "out").exists()


def test_a_device_that_no_machine_has_is_refused(smears: Path, here: Path) -> None:
    predictor = Predictor(Bundle.load("smear-detector"))
    predictor.settings = PredictSettings(device="cuda")
    with pytest.raises(SettingError, match=r"device cuda asks for 1 cpus and 1 gpus on one machine; the cluster has: "):
        predict_on_ray(predictor, image_rows([smears / "images"]))


def test_who_is_part_of_a_cluster_cannot_join_another(here: Path) -> None:
    import ray

    with pytest.raises(SettingError, match="part of a Ray cluster already; leave the address out"), connected("auto"):
        pass
    assert ray.is_initialized()
    with connected(None):
        assert here.is_dir()
    assert ray.is_initialized()  # whoever started it ends it


def test_an_address_where_nobody_answers_is_refused_at_once(
    smears: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    with socket.socket() as taken:  # bound, but nobody listens
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        words = ("predict", smears, "--out", tmp_path / "out", "--engine", "ray", "--address", address)
        started = time.monotonic()
        assert f"--address {address}: no Ray cluster answers there" in say(*words).complaint
        assert time.monotonic() - started < 30


def test_without_ray_the_extra_is_named(smears: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r'pip install "cytolens\[ray\]"'), connected(None):
        pass
    answer = say("predict", smears, "--out", tmp_path / "out", "--engine", "ray")
    assert 'pip install "cytolens[ray]"' in answer.complaint


def test_another_bundle_of_that_name_is_refused() -> None:
    with pytest.raises(BundleError, match="not 000000000000; install the same version everywhere"):
        _predictor("smear-detector", "000000000000", PredictSettings().model_dump_json())


def test_a_task_stands_where_the_driver_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # both are put back in the end
    monkeypatch.setattr(os, "cpu_count", os.cpu_count)
    with pytest.raises(SettingError, match="start from a folder that all machines share"):
        settle(str(tmp_path / "nowhere"), 3)
    settle(str(tmp_path), 3)
    assert os.cpu_count() == 3
    assert Path.cwd() == tmp_path
