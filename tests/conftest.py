"""What every test may ask for."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# How long an example takes says more about the machine than about the code. The suite draws the same examples each
# time, so that it says the same of the same code; `make explore` draws new ones, and many more of them.
settings.register_profile("cytolens", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("explore", deadline=None, max_examples=500, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile(os.environ.get("CYTOLENS_EXAMPLES", "cytolens"))

# A shell that starts the suite in the background lets it, and all that it starts, ignore Ctrl-C; tests send it.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

_REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder with the real images; a test that needs it is skipped where it is absent."""
    root = Path(os.environ.get("CYTOLENS_DATA", _REPOSITORY.parent / "shared" / "data"))
    if not (root / "README.md").exists():
        pytest.skip(f"no real images at {root}; set CYTOLENS_DATA to run this test")
    return root


@pytest.fixture(scope="session")
def golden_root(data_root: Path) -> Path:
    """The folder with tensors of the reference implementations; skipped where it is absent."""
    root = data_root.parent / "golden"
    if not root.exists():
        pytest.skip(f"no golden tensors at {root}")
    return root
