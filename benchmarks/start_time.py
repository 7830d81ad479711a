"""How long `import cytolens` and `cytolens --help` take, against an empty Python program."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

REPEAT = 10


def best_ms(command: list[str]) -> float:
    """The shortest of several runs."""
    times = []
    for _ in range(REPEAT):
        started = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        times.append(time.perf_counter() - started)
    return 1000 * min(times)


def main() -> None:
    cytolens = str(Path(sys.executable).with_name("cytolens"))
    empty = best_ms([sys.executable, "-c", "pass"])
    rows = {
        "python -c pass": empty,
        "python -c 'import cytolens'": best_ms([sys.executable, "-c", "import cytolens"]),
        "cytolens --help": best_ms([cytolens, "--help"]),
        "cytolens predict --help": best_ms([cytolens, "predict", "--help"]),
    }
    for name, value in rows.items():
        print(f"{name:30} {value:7.0f} ms  ({value / empty:.1f} × an empty program)")


if __name__ == "__main__":
    main()
