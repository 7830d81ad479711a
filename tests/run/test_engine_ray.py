"""The Ray engine makes what the local engine makes, also where a machine of the cluster is lost on the way.

The cluster is three real nodes: processes of this machine, each with its own scheduler and workers. The driver's has no
cores to work with; the other two have one each.
"""

from __future__ import annotations

import fcntl
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from cytolens import formats
from cytolens.predict import on_ray
from cytolens.prepare.synthetic import SyntheticSettings, write_synthetic
from cytolens.problems import DatasetError, MissingExtraError, SettingError
from cytolens.run import engine_ray
from cytolens.run.plan import plan
from cytolens.run.recipe import load
from cytolens.run.running import run
from cytolens.run.step_kinds import STEPS
from cytolens.run.steps import Notify, Step
from cytolens.run.store import Store
from tests.apps.speaking import say

pytest.importorskip("ray", reason="the extra 'ray' is not installed")

_REPOSITORY = Path(__file__).resolve().parents[2]
_SMALL = SyntheticSettings(
    width_px=256, height_px=256, red_cells=(4, 8), white_cells=(1, 1), platelets=(0, 2),
    red_cell_diameter_px=(26, 34), debris=(0, 1),
)  # fmt: skip
_TOY = """
name = "toy"
[steps.raw]
do = "import"
source = "{folder}/truth.json"
format = "coco"
images = "{folder}"
[steps.mended]
do = "repair"
dataset = "@raw"
[steps.folds]
do = "split"
dataset = "@mended"
folds = 2
[steps.found]
do = "predict"
each = {{ fold = [0, 1] }}
dataset = "@folds"
bundle = "smear-detector"
where = "fold = ${{fold}}"
"""
_SURVIVOR = """
[steps.survivor]
do = "survive"
dataset = "@mended"
"""


# -- steps that do what a test needs --------------------------------------------------------------


def waits_for(there: Callable[[], bool], seconds: float = 120) -> None:
    """Until something is there."""
    last = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < last, "it never came"
        time.sleep(0.05)


class SurviveStep(Step):
    """On a cluster, the first attempt never ends; the next goes on with what it left."""

    resumes = True
    dataset: Path

    def run(self, folder: Path, notify: Notify) -> dict[str, Any]:
        import ray

        begun = folder / "nodes.txt"
        earlier = begun.read_text().split() if begun.exists() else []
        if ray.is_initialized():
            begun.write_text(" ".join([*earlier, ray.get_runtime_context().get_node_id()]))
            if not earlier:
                notify("hangs")
                time.sleep(600)
        (folder / "result.txt").write_text("whole")
        return {}


class ReportStep(Step):
    """Say what a task may use."""

    def run(self, folder: Path, notify: Notify) -> dict[str, Any]:
        names = ("OMP_NUM_THREADS", "POLARS_MAX_THREADS", "CUDA_VISIBLE_DEVICES")
        seen = {"cores": os.cpu_count(), "polars": pl.thread_pool_size(), "home": str(Path.cwd())}
        notify("notes are passed on")
        return {name: os.environ.get(name) for name in names} | seen


class SlowStep(Step):
    """Begins, and ends when it may."""

    board: Path

    def run(self, folder: Path, notify: Notify) -> dict[str, Any]:
        (self.board / "slow has begun").touch()
        waits_for((self.board / "the other has failed").exists)
        return {}


class FailStep(Step):
    """Fails once the slow one is under way."""

    board: Path

    def run(self, folder: Path, notify: Notify) -> dict[str, Any]:
        waits_for((self.board / "slow has begun").exists)
        raise DatasetError("the plate is broken; use another")


# -- the cluster ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Three nodes."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(_REPOSITORY))  # the steps above are found by the nodes' processes
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        for _ in range(2):
            made.add_node(num_cpus=1)
        yield made
        made.shutdown()


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """The steps above under their names in a recipe."""
    more = {"survive": SurviveStep, "report": ReportStep, "slow": SlowStep, "fail": FailStep}
    for name, kind in more.items():
        monkeypatch.setitem(STEPS, name, kind)


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe over a few rendered fields."""
    folder = tmp_path_factory.mktemp("toy")
    dataset = write_synthetic(folder / "smears", 6, 3, _SMALL, fields_per_slide=1)
    formats.write(dataset, folder / "smears" / "truth.json", "coco")
    (folder / "toy.toml").write_text(_TOY.format(folder=folder / "smears"))
    return folder / "toy.toml"


def recipe(folder: Path, text: str) -> Path:
    file = folder / "recipe.toml"
    file.write_text(text)
    return file


def stages(out: Path) -> dict[str, tuple[str, Path]]:
    """Stage → its key and its folder."""
    said = json.loads((out / "run.json").read_text())
    return {one["name"]: (one["key"], out / one["folder"]) for one in said["stages"]}


def assert_equal(far: Path, local: Path) -> None:
    """Both runs made the same things of the same things."""
    assert stages(far).keys() == stages(local).keys()
    cells = 0
    for name, (key, folder) in stages(far).items():
        here = stages(local)[name]
        assert key == here[0]
        for file in here[1].glob("*.parquet"):
            assert pl.read_parquet(folder / file.name).equals(pl.read_parquet(file)), f"{name}: {file.name}"
            cells += len(pl.read_parquet(file)) if file.name == "cells.parquet" else 0
    assert cells > 100


# -- tests ----------------------------------------------------------------------------------------


def test_a_task_gets_what_it_asked_for_and_its_notes_are_heard(cluster: Any, steps: None, tmp_path: Path) -> None:
    told: list[tuple[str, str, dict[str, Any]]] = []
    file = recipe(tmp_path, '[steps.seen]\ndo = "report"\n')
    done = run(file, tmp_path / "out", engine="ray", address=cluster.address, told=lambda *said: told.append(said))
    assert done.summaries["seen"] == {
        "OMP_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1", "CUDA_VISIBLE_DEVICES": "",
        "cores": 1, "polars": 1, "home": str(Path.cwd()),
    }  # fmt: skip
    assert [(name, what) for name, what, _ in told] == [("seen", "start"), ("seen", "note"), ("seen", "done")]
    assert told[1][2] == {"text": "notes are passed on"}
    assert told[2][2]["summary"] == done.summaries["seen"]


def test_more_than_any_machine_has_is_refused_before_anything_is_done(
    cluster: Any, steps: None, tmp_path: Path
) -> None:
    small = '[steps.seen]\ndo = "report"\n'
    file = recipe(tmp_path, f'{small}[steps.large]\ndo = "report"\ncpus = 2\n')
    with pytest.raises(SettingError, match=r"steps\.large asks for 2 cpus and 0 gpus on one machine; .*1 cpus, 0 gpus"):
        run(file, tmp_path / "out", engine="ray", address=cluster.address)
    assert not list((tmp_path / "out").glob("steps/*/*/done.json"))


def test_after_a_failure_nothing_begins_and_what_is_under_way_is_kept(
    cluster: Any, steps: None, tmp_path: Path
) -> None:
    told: list[tuple[str, str]] = []

    def tell(name: str, what: str, more: dict[str, Any]) -> None:
        told.append((name, what))
        if what == "failed":
            assert more["text"] == "the plate is broken; use another"
            (tmp_path / "the other has failed").touch()

    board = f'board = "{tmp_path}"\n'
    file = recipe(
        tmp_path,
        f'[steps.slow]\ndo = "slow"\n{board}[steps.bad]\ndo = "fail"\n{board}[steps.queued]\ndo = "report"\n'
        f'[steps.after]\ndo = "survive"\ndataset = "@bad"\n',
    )
    with pytest.raises(DatasetError) as raised:
        run(file, tmp_path / "out", engine="ray", address=cluster.address, told=tell)
    assert type(raised.value) is DatasetError
    assert str(raised.value) == "the plate is broken; use another"
    assert set(told) == {("slow", "start"), ("bad", "start"), ("bad", "failed"), ("slow", "done")}
    states = {one.name: one.state for one in plan(load(file), Store(tmp_path / "out"))}
    assert states == {"slow": "done", "bad": "to do", "queued": "to do", "after": "to do"}


def test_ctrl_c_ends_what_is_under_way(
    cluster: Any, steps: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(on_ray, "_PATIENCE_S", 1.0)

    def interrupt(name: str, what: str, more: dict[str, Any]) -> None:
        if what == "note":
            raise KeyboardInterrupt

    file = recipe(tmp_path, f'[steps.survivor]\ndo = "survive"\ndataset = "{tmp_path}"\n')
    with pytest.raises(KeyboardInterrupt):
        run(file, tmp_path / "out", engine="ray", address=cluster.address, told=interrupt)
    (lock,) = (tmp_path / "out" / "steps" / "survivor").glob(".*.lock")
    waits_for(lambda: is_free(lock), 30)


def is_free(lock: Path) -> bool:
    with lock.open() as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def test_the_command_says_in_one_line_what_a_step_refuses(cluster: Any, toy: Path, tmp_path: Path) -> None:
    words = ("run", toy, "--out", tmp_path / "out", "--engine", "ray", "--address", cluster.address)
    answer = say(*words, "--json", "--set", "steps.found.where=fold = 9")
    assert answer.json["error"] == 'no image of "truth" meets "fold = 9"'
    assert answer.complaint == 'no image of "truth" meets "fold = 9"'


def test_the_same_as_the_local_engine_though_a_machine_is_lost(
    cluster: Any, steps: None, toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = recipe(tmp_path, toy.read_text() + _SURVIVOR)
    run(file, tmp_path / "local")
    notes: list[str] = []
    lost: list[str] = []

    def tell(name: str, what: str, more: dict[str, Any]) -> None:
        if name == "survivor" and what == "note":
            notes.append(more["text"])
        if notes == ["hangs"] and not lost:
            (begun,) = (tmp_path / "far" / "steps" / "survivor").glob("*/nodes.txt")
            lost.append(begun.read_text())
            node = next(one for one in cluster.worker_nodes if one.node_id == lost[0])
            cluster.remove_node(node, allow_graceful=False)  # SIGKILL to all its processes

    done = run(file, tmp_path / "far", engine="ray", address=cluster.address, told=tell)
    assert len(done.made) == 6
    assert_equal(tmp_path / "far", tmp_path / "local")
    folder = done.folders["survivor"]
    assert (folder / "result.txt").read_text() == "whole"
    first, *_, last = (folder / "nodes.txt").read_text().split()
    assert first == lost[0] != last
    assert notes[0] == "hangs"
    assert any(note.startswith("begun again on ") for note in notes)
    assert capsys.readouterr().out == ""  # standard output is for results
    again = run(file, tmp_path / "far", engine="ray", address=cluster.address)
    assert again.made == ()


# -- without a cluster ----------------------------------------------------------------------------


def test_two_attempts_are_never_in_one_folder(steps: None, tmp_path: Path) -> None:
    store = Store(tmp_path / "out")
    (one,) = plan(load(recipe(tmp_path, '[steps.seen]\ndo = "report"\n')), store)
    said: list[str] = []
    entered = threading.Event()

    def second() -> None:
        with engine_ray._alone(one, store, lambda what, text: said.append(text)):
            entered.set()

    with engine_ray._alone(one, store, lambda *_: None):
        thread = threading.Thread(target=second)
        thread.start()
        waits_for(lambda: bool(said), 10)
        assert not entered.wait(1.2)
        assert store.begin(one.name, one.key, keep=False).is_dir()  # clearing the folder does not break the lock
        assert not entered.is_set()
    assert entered.wait(10)
    thread.join()
    assert said == ["waits for an earlier attempt to end"]


def test_a_result_that_is_never_seen_here_is_an_error(
    steps: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_ray, "_APPEAR_S", 0.1)
    store = Store(tmp_path / "out")
    (one,) = plan(load(recipe(tmp_path, '[steps.seen]\ndo = "report"\n')), store)
    with pytest.raises(Exception, match="must share the folder"):
        engine_ray._appeared(one, store)
    store.begin(one.name, one.key, keep=False)
    store.finish(one.name, one.key, {})
    engine_ray._appeared(one, store)


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r'the engine ray needs the package "ray".*cytolens\[ray\]'):
        engine_ray.engine(None)
