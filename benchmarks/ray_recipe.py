"""The Cytologia recipe at its smoke scale: on this machine, and on a cluster of two nodes of which one is killed.

Both runs must write the same submission. DATA is a folder that recipes/cytologia-data.sh has made.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from cytolens.run.running import RunResult, run

RECIPE = Path(__file__).resolve().parents[1] / "recipes" / "cytologia.toml"


def made(out: Path, overrides: list[str], **more: Any) -> RunResult:
    """The recipe's results in a folder, and how long they took."""
    started = time.perf_counter()
    result = run(RECIPE, out, overrides=overrides, scale="smoke", **more)
    print(f"{out.name:6} {len(result.made):3} stages in {time.perf_counter() - started:6.1f} s", flush=True)
    return result


def compared(here: RunResult, there: RunResult) -> str:
    """Both submissions, and the largest difference of any score in the cells of the same stages."""
    files = [next(one.folders["submission"].glob("*.csv")) for one in (here, there)]
    same = "equal, byte for byte" if files[0].read_bytes() == files[1].read_bytes() else "DIFFERENT"
    worst, tables = 0.0, 0
    for name, folder in here.folders.items():
        if not (folder / "cells.parquet").exists():
            continue
        one, other = (pl.read_parquet(place / "cells.parquet") for place in (folder, there.folders[name]))
        if len(one) != len(other):
            return f"submissions {same}; {name}: {len(one)} cells here, {len(other)} there"
        tables += 1
        away = np.abs(one["score"].to_numpy() - other["score"].to_numpy())
        worst = max(worst, float(np.nanmax(away, initial=0.0)))
    return f"submissions {same}; {tables} tables of cells, scores differ by up to {worst:.2g}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, help="where both runs stand; default: a folder that goes")
    parser.add_argument("--after", type=int, default=20, help="stages done when a node is killed")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of the recipe")
    options = parser.parse_args()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    from ray.cluster_utils import Cluster

    with tempfile.TemporaryDirectory() as spare:
        out = options.out or Path(spare)
        overrides = [f"data={options.data.resolve()}", *options.set]
        here = made(out / "local", overrides)
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
        said: list[str] = []

        def kill() -> None:
            cluster.remove_node(nodes.pop(), allow_graceful=False)  # SIGKILL to all its processes
            print(f"one of two nodes is killed after {options.after} stages", flush=True)

        def told(name: str, what: str, more: dict[str, Any]) -> None:
            said.append(what)
            if what == "note" and more["text"].startswith("begun again"):
                print(f"{name}: {more['text']}", flush=True)
            if said.count("done") == options.after and what == "done":
                threading.Timer(2.0, kill).start()  # by then both are at work again

        try:
            there = made(out / "ray", overrides, engine="ray", address=cluster.address, told=told)
        finally:
            cluster.shutdown()
        print(compared(here, there))


if __name__ == "__main__":
    main()
