"""Ray: how this process joins a cluster, and many images looked at there.

Images are looked at by a pool of Ray Data's actors, a few at a time. An actor keeps its predictor, and images whose
actor or machine is lost are looked at again by another; so it does not matter which one looks at which image.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from cytolens.bundle import Bundle, find, shipped
from cytolens.cells import Cells
from cytolens.predict.fields import ImageResult, Prediction, Progress, Task, assembled, look, tasks
from cytolens.predict.pipeline import Predictor, PredictSettings
from cytolens.problems import BundleError, CytolensError, SettingError, require

RETRIES = 5  # times that a task is run again because its process or machine was lost
_BATCH = 8  # images at a time: enough to be worth the way, few enough to spread evenly and to lose
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
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # it logs each actor of a pool; what fails is raised
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
        except Exception as error:  # it raises plain ones, too: where its processes do not start within half a minute
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

    return ray.remote(function).options(
        num_cpus=cpus,
        num_gpus=gpus,
        max_retries=RETRIES,
        retry_exceptions=False,
        runtime_env=environment(cpus, gpus),
    )


def environment(cpus: float, gpus: float) -> dict[str, Any]:
    """What a process of the cluster sees: as many threads as it has cores, and no device that is not its own."""
    variables = dict.fromkeys(_THREADS, str(max(1, int(cpus))))
    return {"env_vars": variables | ({} if gpus else {"CUDA_VISIBLE_DEVICES": ""})}


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
        predictor: whose bundle and settings the cluster's processes load. With `jobs`, the pool has no more actors.
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
    started = time.perf_counter()
    work = tasks(rows, boxes)
    with connected(address):
        joined = time.perf_counter()
        results = _looked(predictor, work, progress)
        looked = time.perf_counter()
    prediction = assembled(predictor, results)
    timings = {"start_ray_s": joined - started, "predict_s": looked - joined}
    prediction.timings.update(timings, assemble_s=time.perf_counter() - looked)
    return prediction


def _looked(predictor: Predictor, work: list[Task], progress: Progress | None) -> list[ImageResult]:
    """The results of all images, in their order."""
    import ray
    import ray.data

    gpus = float(predictor.settings.device == "cuda")
    check_resources(f"device {predictor.settings.device}", 1, gpus)
    bundle = predictor.bundle
    place = bundle.name if bundle.name in shipped() and find(bundle.name) == bundle.folder else str(bundle.folder)
    known = (place, bundle.hash, predictor.settings.model_dump_json(), str(Path.cwd()))
    most = predictor.settings.jobs or max(1, int(ray.cluster_resources().get("CPU", 1)))
    blocks = -(-len(work) // _BATCH)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    rows = [{"place": place, "task": task} for place, task in enumerate(work)]
    dataset = ray.data.from_items(rows, override_num_blocks=max(1, blocks))
    looking = dataset.map_batches(
        _Looker,
        batch_size=_BATCH,
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=min(most, max(1, blocks))),
        fn_constructor_args=known,
        num_cpus=1,
        num_gpus=gpus,
        runtime_env=environment(1, gpus),
    )
    looking.context.enable_progress_bars = False
    found: dict[int, ImageResult] = {}
    for row in looking.iter_rows():
        if isinstance(row["result"], CytolensError):
            raise row["result"]
        found[int(row["place"])] = row["result"]
        if progress is not None:
            progress(len(found), len(work))
    return [found[place] for place in range(len(work))]


class _Looker:
    """An actor of the pool: looks at images."""

    def __init__(self, place: str, expected: str, settings: str, home: str) -> None:
        self.home, self.known = home, (place, expected, settings)
        self.predictor: Predictor | None = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The results of some images beside their places; a refusal is a result, too, as Ray would log its trace."""
        results = np.empty(len(batch["place"]), object)
        try:
            if self.predictor is None:  # not on construction: an actor that fails there is begun for ever
                settle(self.home, 1)
                self.predictor = _predictor(*self.known)
            for number, task in enumerate(batch["task"]):
                results[number] = look(self.predictor, task)
        except CytolensError as error:
            results[:] = error
        return {"place": batch["place"], "result": results}


def _predictor(place: str, expected: str, settings: str) -> Predictor:
    """The predictor of this process.

    Raises:
        BundleError: this machine has another bundle of that name.
    """
    bundle = Bundle.load(place)
    if bundle.hash != expected:
        raise BundleError(
            f"{place}: the machine {socket.gethostname()} has it with hash {bundle.hash}, not {expected}; "
            "install the same version everywhere"
        )
    return Predictor(bundle, PredictSettings.model_validate_json(settings))
