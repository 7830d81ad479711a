"""Throw-away environments for peers: made once per run, under a temporary folder, and gone afterwards."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def environment(packages: list[str]) -> Iterator[Path]:
    """A Python interpreter with these packages and nothing of ours."""
    uv = shutil.which("uv") or str(Path(sys.executable).with_name("uv"))
    with tempfile.TemporaryDirectory(prefix="cytolens-peer-") as folder:
        subprocess.run([uv, "venv", "--quiet", folder], check=True)
        python = Path(folder) / "bin" / "python"
        subprocess.run([uv, "pip", "install", "--quiet", "--python", str(python), *packages], check=True)
        yield python


def run_json(
    python: Path, code: str, *arguments: str, cwd: str | None = None, env: dict[str, str] | None = None
) -> dict:
    """Run a program in an environment; its last line of output is JSON."""
    done = subprocess.run([str(python), "-c", code, *arguments], capture_output=True, text=True, cwd=cwd, env=env)
    if done.returncode:
        raise SystemExit(f"the peer failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])
