"""All benchmarks, on images that need no download: rendered ones, or the folder of BENCH_IMAGES."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent


def main() -> None:
    from cytolens.prepare.synthetic import write_synthetic

    with tempfile.TemporaryDirectory() as folder:
        dataset = Path(folder) / "smears"
        write_synthetic(dataset, 64, 1)
        images = os.environ.get("BENCH_IMAGES", str(dataset / "images"))
        for script, arguments in (
            ("start_time.py", []),
            ("predict_speed.py", [images]),
            ("train_speed.py", [str(dataset)]),
            ("duplicates.py", [images]),
        ):
            print(f"== {script}", flush=True)
            subprocess.run([sys.executable, str(HERE / script), *arguments], check=True)


if __name__ == "__main__":
    main()
