"""Ray: how this process joins a cluster, and many images looked at there.

Images are looked at by tasks of a few rows each. A worker process keeps the predictor for the tasks that follow, and a
task whose machine is lost is run again elsewhere; so it does not matter which process looks at which image.
"""

from __future__ import annotations

import os
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from cytolens.bundle import Bundle, find, shipped
from cytolens.cells import Cells
from cytolens.predict.fields import ImageResult, Prediction, Progress, _name_in, assembled, look_at
from cytolens.predict.pipeline import Predictor, PredictSettings
from cytolens.problems import BundleError, CytolensError, DatasetError, SettingError, require

RETRIES = 5  # times that a task is run again because its process or machine was lost
_BATCH = 8  # images per task: enough to be worth the way, few enough to spread evenly and to lose
_IN_FLIGHT = 3  # tasks handed out per core: none waits for the driver, and memory stays flat
_STORE_BYTES = 256 << 20  # memory for results on their way; tables of cells are small
_PATIENCE_S = 5.0  # that cancelled tasks get to tidy up
_KNOCK_S = 10.0  # that a cluster may take to answer
# What the libraries below us ask for the number of their threads.
_THREADS = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "POLARS_MAX_THREADS",
    "OPENCV_FOR_THREADS_NUM",
)


# -- a cluster ------------------------------------------------------------------------------------


@contextmanager
def connected(address: str | None) -> Iterator[None]:
    """Be part of a Ray cluster meanwhile.

    Args:
        address: of a running cluster, which is left running; None: the one that this process is part of already, or
            else one is started on this machine, and ends with the block. Its files stand in the system's temporary
            folder, and go, too.

    Raises:
        MissingExtraError: Ray is not installed.
        SettingError: no cluster answers at the address.
        CytolensError: none can be started.
    """
    ray = require("ray", "ray", "Ray")
    if address is None and ray.is_initialized():
        yield
        return
    if ray.is_initialized():
        raise SettingError(f"--address {address}: this process is part of a Ray cluster already; leave the address out")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported to anybody
    with ExitStack() as stack:
        # Ray says there what it lost; standard output is for results.
        stack.enter_context(redirect_stdout(sys.stderr))
        where: dict[str, Any] = {"address": address}
        if address is None:
            place = TemporaryDirectory(prefix="cytolens-ray-", dir=_short(), ignore_cleanup_errors=True)
            where = {"address": "local", "include_dashboard": False, "object_store_memory": _STORE_BYTES}
            where["_temp_dir"] = stack.enter_context(place)
        else:
            _knock(address)
        stack.callback(ray.shutdown)
        try:
            ray.init(**where, log_to_driver=False, logging_level="error")
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise _no_cluster(address, error) from error
        yield


def _knock(address: str) -> None:
    """Ray itself waits for minutes where nobody answers.

    Raises:
        SettingError: nobody does.
    """
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if host and port.isdecimal():
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=_KNOCK_S).close()
        except (OSError, OverflowError) as error:
            raise _no_cluster(address, error) from error


def _no_cluster(address: str | None, error: Exception) -> CytolensError:
    reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
    if address is None:
        return CytolensError(f"Ray cannot be started on this machine ({reason})")
    return SettingError(
        f"--address {address}: no Ray cluster answers there ({reason}). Start one with: ray start --head"
    )


def _short() -> str:
    """A temporary folder with a short name: the path of a socket has at most 107 bytes, and Ray adds about 90."""
    usual = tempfile.gettempdir()
    return usual if len(os.fsencode(usual)) <= 16 else "/tmp"


def check_resources(name: str, cpus: float, gpus: float) -> None:
    """A task that no machine can hold would wait for ever.

    Raises:
        SettingError: no machine of the cluster has that much.
    """
    import ray

    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(one.get("CPU", 0) >= cpus and one.get("GPU", 0) >= gpus for one in machines):
        have = "; ".join(sorted({f"{one.get('CPU', 0):g} cpus, {one.get('GPU', 0):g} gpus" for one in machines}))
        raise SettingError(f"{name} asks for {cpus:g} cpus and {gpus:g} gpus on one machine; the cluster has: {have}")


def remote(function: Any, cpus: float = 1, gpus: float = 0) -> Any:
    """A function as a task of the cluster, run again where its process is lost, but not where it raises.

    Args:
        function: of a module that the other machines have, too.
        cpus: cores that it gets, and threads that it may use.
        gpus: devices that it gets; it sees no others.
    """
    import ray

    threads = str(max(1, int(cpus)))
    variables = dict.fromkeys(_THREADS, threads) | ({} if gpus else {"CUDA_VISIBLE_DEVICES": ""})
    return ray.remote(function).options(
        num_cpus=cpus, num_gpus=gpus, max_retries=RETRIES, retry_exceptions=False, runtime_env={"env_vars": variables}
    )


def settle(home: str, cpus: float) -> None:
    """Called by a task first: stand where the driver stands, so that relative paths mean the same.

    Raises:
        SettingError: that folder is not on this machine.
    """
    # What starts one thread per core means the cores that it was given. (From Python 3.13 a variable says so.)
    os.cpu_count = lambda: max(1, int(cpus))
    try:
        os.chdir(home)
    except OSError as error:
        raise SettingError(
            f"{home}: is not on the machine {socket.gethostname()}; start from a folder that all machines share"
        ) from error


def answer(reference: Any, name: str) -> Any:
    """What a task returned; what it raised is raised here as it was there.

    Raises:
        CytolensError: the task's process was lost too often.
    """
    import ray
    from ray.exceptions import RayError, RayTaskError, TaskCancelledError

    try:
        return ray.get(reference)
    except TaskCancelledError:
        raise
    except RayTaskError as error:
        raise error.cause from error
    except RayError as error:
        reason = (str(error).splitlines() or [""])[0]
        raise CytolensError(
            f"{name}: its process was lost {RETRIES + 1} times ({type(error).__name__}: {reason}); "
            "the machines' memory may be too small for it"
        ) from error


def cancel(under_way: dict[Any, Any]) -> None:
    """End tasks: first as Ctrl-C would, so that they tidy up; what is left after a while is killed.

    Args:
        under_way: by reference; empty afterwards, so that an exception's frames hold none when Ray has gone.
    """
    import ray

    for one in under_way:
        ray.cancel(one)
    if under_way:
        _, stubborn = ray.wait(list(under_way), num_returns=len(under_way), timeout=_PATIENCE_S)
        for one in stubborn:
            ray.cancel(one, force=True)
    under_way.clear()


# -- many images ----------------------------------------------------------------------------------


def predict_on_ray(
    predictor: Predictor,
    rows: Sequence[dict[str, Any]],
    progress: Progress | None = None,
    boxes: Cells | None = None,
    *,
    address: str | None = None,
) -> Prediction:
    """Look at every image on a Ray cluster; the result is that of `predict_images`.

    Args:
        predictor: whose bundle and settings the cluster's processes load. With `jobs`, no more tasks run at a time.
        rows: of `Images`; every machine sees the files under these names.
        progress: is told the images done and in all.
        boxes: cells of these images that are named where they are, in their order; none are looked for.
        address: of a running cluster; None: one is started on this machine.

    Raises:
        DatasetError: `boxes` is about none of these images.
        BundleError: there are `boxes`, and no classifier; or another machine has another bundle of that name.
        SettingError: no cluster answers, or none of its machines has what the device asks for.
        MissingExtraError: Ray is not installed.
    """
    if boxes is not None and len(boxes) and not set(boxes.frame["image_id"]) & {row["image_id"] for row in rows}:
        raise DatasetError("the boxes are of other images (by image_id) than those to look at; name the same dataset")
    started = time.perf_counter()
    given: Mapping[str, Cells] = {} if boxes is None else dict(boxes.by_image())
    none = None if boxes is None else Cells.empty(boxes.labels)
    items = [(row, given.get(row["image_id"], none)) for row in rows]
    with connected(address):
        joined = time.perf_counter()
        results = _looked(predictor, items, progress)
        looked = time.perf_counter()
    prediction = assembled(predictor, results)
    timings = {"start_ray_s": joined - started, "predict_s": looked - joined}
    prediction.timings.update(timings, assemble_s=time.perf_counter() - looked)
    return prediction


Item = tuple[dict[str, Any], Cells | None]


def _looked(predictor: Predictor, items: list[Item], progress: Progress | None) -> list[ImageResult]:
    """The results of all images, in their order."""
    import ray

    gpus = float(predictor.settings.device == "cuda")
    check_resources(f"device {predictor.settings.device}", 1, gpus)
    task = remote(_look, 1, gpus)
    bundle, settings, home = predictor.bundle, predictor.settings.model_dump_json(), str(Path.cwd())
    place = bundle.name if bundle.name in shipped() and find(bundle.name) == bundle.folder else str(bundle.folder)
    most = predictor.settings.jobs or _IN_FLIGHT * max(1, int(ray.cluster_resources().get("CPU", 1)))
    ahead = iter(range(0, len(items), _BATCH))
    found: dict[int, list[ImageResult]] = {}
    waiting: dict[Any, int] = {}
    done = 0
    try:
        while True:
            while len(waiting) < most and (first := next(ahead, None)) is not None:
                batch = items[first : first + _BATCH]
                waiting[task.remote(place, bundle.hash, settings, home, batch)] = first
            if not waiting:
                return [result for first in sorted(found) for result in found[first]]
            for reference in ray.wait(list(waiting))[0]:
                first = waiting[reference]
                found[first] = answer(reference, f"images from {items[first][0]['image_id']} on")
                done += len(found[first])
                del waiting[reference]
                if progress is not None:
                    progress(done, len(items))
    except BaseException:
        cancel(waiting)
        raise


def _look(place: str, expected: str, settings: str, home: str, items: list[Item]) -> list[ImageResult]:
    """A task: look at some images, in their order."""
    settle(home, 1)
    predictor = _predictor(place, expected, settings)
    return [look_at(predictor, row) if cells is None else _name_in(predictor, row, ({}, cells)) for row, cells in items]


@lru_cache(maxsize=1)
def _predictor(place: str, expected: str, settings: str) -> Predictor:
    """The predictor of this process, kept for the next task."""
    bundle = Bundle.load(place)
    if bundle.hash != expected:
        raise BundleError(
            f"{place}: the machine {socket.gethostname()} has it with hash {bundle.hash}, not {expected}; "
            "install the same version everywhere"
        )
    return Predictor(bundle, PredictSettings.model_validate_json(settings))
