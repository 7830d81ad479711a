"""A recipe killed with SIGKILL at random moments and run again, against the same recipe undisturbed.

After every kill, no file of a finished step may have changed, and no finished step may be begun again; at the end the
submissions must be equal byte for byte. What RECIPE needs is given by --set.

    python benchmarks/kill_recipe.py recipes/cytologia.toml --set data=DATA --out OUT
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

COMMAND = Path(sys.executable).with_name("cytolens")


def attempt(command: list[str], log: Path, limit_s: float | None = None) -> tuple[bool, list[str], float]:
    """One run, killed with all its processes after a time; whether it came to its end, the steps it began, its seconds.

    Raises:
        SystemExit: the run failed by itself.
    """
    started = time.perf_counter()
    with log.open("w", encoding="utf-8") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            process.wait(timeout=limit_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        except BaseException:  # who stops this script stops the run, too
            os.killpg(process.pid, signal.SIGKILL)
            raise
    lines = log.read_text(encoding="utf-8").splitlines()
    if process.returncode not in (0, -signal.SIGKILL):
        raise SystemExit(f"{log}: ended with {process.returncode}: {lines[-1] if lines else ''}")
    begun = [line.removesuffix(": …") for line in lines if line.endswith(": …")]
    return process.returncode == 0, begun, time.perf_counter() - started


def finished(out: Path) -> dict[str, dict[str, tuple[int, int]]]:
    """Finished steps by name and key → each of their files with its time of change in ns and its size."""
    steps = {}
    for marker in sorted(out.glob("steps/*/*/done.json")):
        folder = marker.parent
        said = json.loads(marker.read_text(encoding="utf-8"))
        states = {file.relative_to(folder).as_posix(): file.stat() for file in folder.rglob("*") if file.is_file()}
        steps[f"{said['stage']} {said['key']}"] = {name: (one.st_mtime_ns, one.st_size) for name, one in states.items()}
    return steps


def submission(out: Path) -> bytes:
    """The one CSV that the step "submission" left."""
    (file,) = out.glob("steps/submission/*/*.csv")
    return file.read_bytes()


def disturbed(command: list[str], out: Path, moments_s: list[float]) -> bool:
    """The run with its kills, told as it happens; whether finished steps were let alone."""
    out.mkdir(parents=True, exist_ok=True)
    kept, good, total_s = finished(out), True, 0.0
    for number, moment_s in enumerate([*moments_s, None], start=1):
        ended, begun, seconds = attempt(command, out / f"attempt-{number}.txt", moment_s)
        total_s += seconds
        now = finished(out)
        changed = [name for name, files in kept.items() if now.get(name) != files]
        again = sorted({name.rpartition(" ")[0] for name in kept} & set(begun))
        new = len(now) - len(kept)
        stopped = "" if ended or len(begun) == new else f", killed in the midst of {begun[-1]}"
        print(f"attempt {number}: {seconds:.1f} s, {new} steps finished, {len(now)} in all{stopped}", flush=True)
        print(f"  finished before and changed: {changed or 'none'}; begun again: {again or 'none'}", flush=True)
        good, kept = good and not changed and not again, now
        if ended:
            break
    print(f"with its kills: {total_s:.0f} s", flush=True)
    return good


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", type=Path)
    parser.add_argument(
        "--out", type=Path, required=True, help="receives plain/ and killed/; a finished plain/ is taken"
    )
    parser.add_argument("--scale", default="smoke")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of the recipe")
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seconds", type=float, nargs=2, default=(20.0, 70.0), help="a kill comes after so many")
    parser.add_argument("--seed", type=int, default=1, help="of the moments")
    parser.add_argument("--change", metavar="KEY=VALUE", help="at the end: the steps that this would make again")
    options = parser.parse_args()
    if finished(options.out / "killed"):
        raise SystemExit(f"{options.out / 'killed'}: holds results; kills are shown from the beginning")
    options.out.mkdir(parents=True, exist_ok=True)
    settings = [word for one in options.set for word in ("--set", one)]
    command = [str(COMMAND), "run", str(options.recipe), "--scale", options.scale, *settings, "--out"]

    plain, killed = options.out / "plain", options.out / "killed"
    _, begun, seconds = attempt([*command, str(plain)], options.out / "plain.txt")
    print(f"undisturbed: {len(begun)} steps begun, {len(finished(plain))} there, {seconds:.0f} s", flush=True)
    draw = random.Random(options.seed)
    moments = [round(draw.uniform(*options.seconds), 1) for _ in range(options.kills)]
    good = disturbed([*command, str(killed)], killed, moments)
    once = len(finished(killed)) == len({name.rpartition(" ")[0] for name in finished(killed)})
    same = submission(plain) == submission(killed)
    print(f"each step once: {once}; same steps and keys: {finished(plain).keys() == finished(killed).keys()}")
    print(f"submissions {'equal, byte for byte' if same else 'DIFFERENT'} ({len(submission(plain))} bytes)", flush=True)
    if options.change:
        asked = [*command, str(killed), "--set", options.change, "--dry-run", "--json"]
        told = json.loads(subprocess.run(asked, check=True, capture_output=True, text=True).stdout)
        steps = [one["name"] for one in told["stages"] if one["state"] != "done"]
        print(f"with {options.change}: {len(steps)} of {len(told['stages'])} steps again: {', '.join(steps)}")
    raise SystemExit(0 if good and once and same else 1)


if __name__ == "__main__":
    main()
