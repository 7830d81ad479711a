"""Writes docs/reference/ and the README's list of files from the program itself; --check: are they up to date?"""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from pathlib import Path

from pydantic import BaseModel

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
REFERENCE = ROOT / "docs" / "reference"
_FILES, _END = "<!-- files: written by make docs -->", "<!-- end of files -->"
COMMANDS = (
    "",
    "demo",
    "import",
    "export",
    "check",
    "repair",
    "duplicates",
    "split",
    "stats",
    "noise",
    "datasets",
    "datasets list",
    "datasets get",
    "train",
    "adapt",
    "predict",
    "explain",
    "fuse",
    "evaluate",
    "run",
    "tune",
    "bundles",
    "bundles list",
    "bundles show",
    "bundles verify",
    "bundles export",
    "bundles pack",
    "bundles import",
)


def command_line() -> str:
    """Every command's own help."""
    program = str(Path(sys.executable).with_name("cytolens"))
    env = {"COLUMNS": "100", "PATH": "/usr/bin:/bin", "NO_COLOR": "1", "TERM": "dumb"}
    parts = ["# Command line", "", "Written by `make docs` from the program's own help.", ""]
    for command in COMMANDS:
        done = subprocess.run(
            [program, *command.split(), "--help"], capture_output=True, text=True, check=True, env=env
        )
        parts += [f"## cytolens {command}".rstrip(), "", "```text", done.stdout.strip(), "```", ""]
    return "\n".join(line.rstrip() for line in "\n".join(parts).splitlines()) + "\n"


def settings() -> str:
    """Every settings model with its fields."""
    from cytolens.evaluate import EvaluateSettings
    from cytolens.predict.blend import TuneSettings
    from cytolens.predict.explain import ExplainSettings
    from cytolens.predict.fuse import FuseSettings
    from cytolens.predict.pipeline import PredictSettings
    from cytolens.prepare.backgrounds import BackgroundSettings
    from cytolens.prepare.check import CheckSettings
    from cytolens.prepare.noise import NoiseSettings
    from cytolens.prepare.recolour import Recolour
    from cytolens.prepare.repair import RepairSettings
    from cytolens.prepare.stats import StatsSettings
    from cytolens.prepare.synthetic import SyntheticSettings
    from cytolens.run.mask_grid import MaskGrid
    from cytolens.tasks.segment import SegmentOutput
    from cytolens.train.adapt_settings import AdaptSettings
    from cytolens.train.classification import ClassifyTraining
    from cytolens.train.detection import DetectTraining
    from cytolens.train.segment_settings import SegmentTraining

    parts = [
        "# Settings",
        "",
        "Written by `make docs`. Recipes and `--set` use these names; tables nest with a dot.",
        "",
    ]
    for title, model in (
        ("cytolens check", CheckSettings),
        ("cytolens repair", RepairSettings),
        ("cytolens stats", StatsSettings),
        ("cytolens noise", NoiseSettings),
        ("backgrounds (a step of cytolens run)", BackgroundSettings),
        ("cytolens train detect", DetectTraining),
        ("cytolens train classify", ClassifyTraining),
        ("cytolens train segment", SegmentTraining),
        ("cytolens adapt", AdaptSettings),
        ("recolour (a step of cytolens run)", Recolour),
        ("cytolens predict", PredictSettings),
        ("cytolens explain", ExplainSettings),
        ("cytolens fuse", FuseSettings),
        ("blend weights (a step of cytolens run)", TuneSettings),
        ("reading outlines (segment_output of a bundle)", SegmentOutput),
        ("cytolens tune --soft", MaskGrid),
        ("cytolens evaluate", EvaluateSettings),
        ("rendered smears (cytolens.prepare.synthetic)", SyntheticSettings),
    ):
        parts += [f"## {title}", "", "| setting | default | meaning |", "|---|---|---|", *_rows(model, ""), ""]
    return "\n".join(parts)


def _rows(model: type[BaseModel], prefix: str) -> list[str]:
    rows: list[str] = []
    for name, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            rows += _rows(inner, f"{prefix}{name}.")
            continue
        default = field.get_default(call_default_factory=True)
        shown = "required" if field.is_required() else f"`{default!r}`"
        rows.append(f"| `{prefix}{name}` | {shown.replace('|', chr(92) + '|')} | {field.description or ''} |")
    return rows


def python_names() -> str:
    """The public names with their signatures and docstrings."""
    import cytolens

    parts = [
        "# Python",
        "",
        "Written by `make docs`. `import cytolens` offers these names; each is imported when first used.",
        "",
    ]
    for name in sorted(set(cytolens.__all__) - {"__version__"}):
        value = cytolens._function(name)
        parts += [
            f"## cytolens.{name}",
            "",
            "```python",
            _signature(name, value),
            "```",
            "",
            inspect.getdoc(value) or "",
            "",
        ]
        if isinstance(value, type):
            for method, function in inspect.getmembers(value, callable):
                if not method.startswith("_") and method in vars(value):
                    first = (inspect.getdoc(function) or "").split("\n\n")[0].replace("\n", " ")
                    parts.append(f"- `{_signature(method, function)}`: {first}")
            parts.append("")
    return "\n".join(parts)


def _signature(name: str, value: object) -> str:
    try:
        text = str(inspect.signature(value))  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return name
    # A default that is a function shows where it lies in memory, which differs from run to run.
    return re.sub(r"<function (.*?) at 0x\w+>", "…", f"{name}{text}").replace("'", "")


def readme() -> str:
    """The README with its list of files brought up to date."""
    before, _, rest = README.read_text(encoding="utf-8").partition(_FILES)
    after = rest.partition(_END)[2]
    lines = []
    for path in sorted((ROOT / "src" / "cytolens").rglob("*.py")):
        name = path.relative_to(ROOT / "src" / "cytolens").as_posix()
        text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
        if not text:
            raise SystemExit(f"{path} has no docstring to say what it is for")
        lines.append(f"| [`{name}`](src/cytolens/{name}) | {text.splitlines()[0]} |")
    return "\n".join([before + _FILES, "", "| file | what it holds |", "|---|---|", *lines, "", _END + after])


def main() -> int:
    """Write the pages, or check them."""
    REFERENCE.mkdir(exist_ok=True)
    pages = {
        README: readme(),
        REFERENCE / "command-line.md": command_line(),
        REFERENCE / "settings.md": settings(),
        REFERENCE / "python.md": python_names(),
    }
    stale = [path for path, text in pages.items() if not _same(path, text)]
    if "--check" in sys.argv:
        print("\n".join(f"{path.relative_to(ROOT)} is not up to date; run make docs" for path in stale))
        return 1 if stale else 0
    for path, text in pages.items():
        path.write_text(text, encoding="utf-8")
        print(f"wrote {path.relative_to(ROOT)}")
    return 0


def _same(path: Path, text: str) -> bool:
    return path.exists() and path.read_text(encoding="utf-8") == text


if __name__ == "__main__":
    raise SystemExit(main())
