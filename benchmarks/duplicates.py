"""Near-duplicate images of a folder, decoding included, against imagededup's perceptual hash; and a million hashes.

Both look through the same files on the same cores, start (imports) apart. The peer finds copies as they lie;
Cytolens also flipped and turned ones, and looks at the pictures again before it says so. Processor seconds stand
beside the clock's, because other programs on the machine change the latter only.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

import numpy as np
from throwaway import environment, run_json

# Both count their own processor time and that of the processes they started, and keep to the first cores.
_CLOCK = """
import json, os, resource, sys, time
def seconds():
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return time.perf_counter(), sum(one.ru_utime + one.ru_stime for one in used)
folder, threads = sys.argv[1], int(sys.argv[2])
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
"""

OURS = (
    _CLOCK
    + """
import cv2
from cytolens.images import Images, find_images
from cytolens.prepare.duplicates import DuplicateSettings, find_duplicates
cv2.setNumThreads(threads)
wall, cpu = seconds()
images = Images.of({"image_id": path.name, "path": str(path)} for path in find_images([folder]))
found = find_duplicates(images, DuplicateSettings(jobs=threads))
now, used = seconds()
print(json.dumps({"images": len(images), "pairs": len(found.pairs), "wall_s": now - wall, "cpu_s": used - cpu}))
"""
)

PEER = (
    _CLOCK
    + """
import importlib.metadata
from imagededup.methods import PHash
wall, cpu = seconds()
workers = 0 if threads == 1 else threads
found = PHash(verbose=False).find_duplicates(image_dir=folder, num_enc_workers=workers, num_dist_workers=workers)
now, used = seconds()
print(json.dumps({"images": len(found), "pairs": sum(map(len, found.values())) // 2, "wall_s": now - wall,
                  "cpu_s": used - cpu, "version": importlib.metadata.version("imagededup")}))
"""
)


def compare(folder: Path, repeat: int, thread_counts: list[int]) -> None:
    """Print both programs' seconds on a folder, the best of several runs, and their ratio."""
    with environment(["imagededup"]) as peer:
        for threads in thread_counts:
            env = os.environ | {"OMP_NUM_THREADS": str(threads), "OPENBLAS_NUM_THREADS": str(threads)}
            arguments = str(folder.resolve()), str(threads)
            # In turn, so that what else the machine does falls on both.
            runs = [
                (run_json(Path(sys.executable), OURS, *arguments, env=env), run_json(peer, PEER, *arguments, env=env))
                for _ in range(repeat)
            ]
            best = [{key: min(run[who][key] for run in runs) for key in ("wall_s", "cpu_s")} for who in (0, 1)]
            ours, theirs = runs[0]
            print(f"{ours['images']} images, {threads} thread{'s' if threads > 1 else ''}")
            for name, told, times in (
                ("cytolens duplicates", ours, best[0]),
                (f"imagededup {theirs['version']} PHash", theirs, best[1]),
            ):
                print(f"  {name:30} {times['wall_s']:7.1f} s, processor {times['cpu_s']:7.1f} s, {told['pairs']} pairs")
            wall, cpu = (best[1][key] / best[0][key] for key in ("wall_s", "cpu_s"))
            print(f"  ratio peer / cytolens: {wall:.1f} by the clock, {cpu:.1f} by processor time", flush=True)


def million(count: int = 1_000_000, planted: int = 1_000, distance: int = 3) -> None:
    """Print how long it takes to find planted pairs among random hashes, and whether all were found."""
    from cytolens.prepare.near_hashes import near_pairs

    random = np.random.default_rng(0)
    hashes = random.integers(0, 2**64, count, dtype=np.uint64)
    for i in range(planted):
        flips = random.choice(64, distance, replace=False)
        hashes[count // 2 + i] = hashes[i] ^ np.uint64(sum(1 << int(bit) for bit in flips))
    wall, cpu = time.perf_counter(), time.process_time()
    first, second = near_pairs(hashes, distance)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    found = set(zip(first.tolist(), second.tolist(), strict=True))
    there = sum((i, count // 2 + i) in found for i in range(planted))
    print(f"{count:,} hashes, distance {distance}: {there} of {planted} planted pairs found, {wall:.1f} s", end="")
    print(f", processor {cpu:.1f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images", type=Path, help="folder with images")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    options = parser.parse_args()
    million()
    compare(options.images, options.repeat, options.threads)


if __name__ == "__main__":
    main()
