"""Images per second of `cytolens predict --engine ray` against the local engine, and whether both find the same.

Both commands look at the same files with the same bundle; start (imports, bundle, cluster) apart. On one machine the
cluster can only lose: the ratio says what it costs there. With --address it says what the machines of a cluster bring.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

COMMAND = Path(sys.executable).with_name("cytolens")


def predicted(files: list[str], out: Path, bundle: str, more: list[str]) -> dict[str, Any]:
    """What the command writes into its ``run.json``."""
    words = [str(COMMAND), "predict", *files, "--out", str(out), "--bundle", bundle, "--format", "cells", "--json"]
    done = subprocess.run([*words, *more], capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1):
        sys.exit(done.stderr)
    return json.loads(done.stdout)


def difference(local: Path, far: Path) -> str:
    """Both tables of cells compared, in words."""
    here, there = (pl.read_parquet(folder / "cells.parquet") for folder in (local, far))
    if here.equals(there):
        return f"{len(here)} cells, all columns equal"
    if len(here) != len(there) or not here["cell_id"].equals(there["cell_id"]):
        return f"DIFFERENT CELLS: {len(here)} here, {len(there)} there"
    away = np.abs(here["score"].to_numpy() - there["score"].to_numpy()).max()
    return f"{len(here)} cells; scores differ by up to {away:.2g}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images", type=Path, help="folder with images, below it, too")
    parser.add_argument("--count", type=int, default=2000, help="how many, spread evenly over the sorted names")
    parser.add_argument("--bundle", default="smear")
    parser.add_argument("--address", help="of a running cluster; default: one is started here")
    options = parser.parse_args()
    found = sorted(str(path) for path in options.images.resolve().rglob("*") if path.suffix.lower() in (".jpg", ".png"))
    files = [found[i] for i in np.unique(np.linspace(0, len(found) - 1, min(options.count, len(found))).astype(int))]
    print(f"{platform.machine()}, {os.cpu_count()} cores; {len(files)} images, bundle {options.bundle}")
    address = [] if options.address is None else ["--address", options.address]
    with tempfile.TemporaryDirectory() as folder:
        local, far = Path(folder) / "local", Path(folder) / "ray"
        said = {
            "local": predicted(files, local, options.bundle, []),
            "ray": predicted(files, far, options.bundle, ["--engine", "ray", *address]),
        }
        seconds = {name: one["timings"]["predict_s"] for name, one in said.items()}
        for name, one in said.items():
            start, rate = one["timings"].get("start_ray_s", 0), one["images"] / seconds[name]
            print(f"{name:6} {seconds[name]:8.1f} s, {rate:6.1f} images/s; cluster ready after {start:.1f} s")
        print(f"ray takes {seconds['ray'] / seconds['local']:.2f} of the local engine's time")
        print(difference(local, far))


if __name__ == "__main__":
    main()
