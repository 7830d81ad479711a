"""`cytolens run`."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cytolens.apps.cli.console import DONE, Debug, Json, answer, command

if TYPE_CHECKING:
    from cytolens.run.plan import Planned

Told = Callable[[str, str, dict[str, Any]], None]


@command
def run(
    recipe: Annotated[Path, typer.Argument(help="TOML file with the steps.")],
    out: Annotated[Path, typer.Option(help="Folder for the results; the same folder goes on with a stopped run.")],
    engine: Annotated[str, typer.Option(help="local, or ray for a cluster.")] = "local",
    address: Annotated[
        str | None, typer.Option(help="ray: address of a running cluster. Default: one is started here.")
    ] = None,
    scale: Annotated[str, typer.Option(help="full, or one of the recipe's own scales, such as smoke.")] = "full",
    set: Annotated[
        list[str] | None,
        typer.Option("--set", help="Change a value or a setting, KEY=VALUE, such as data=smears/; may be repeated."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what is done and what would be, and why.")] = False,
    json_output: Json = False,
    debug: Debug = False,
) -> int:
    """Make what a recipe describes, step by step; what is there already is not made again.

    A killed run goes on with the same command. A changed setting makes again only what depends on it.

    Example: cytolens run recipes/cytologia.toml --set data=challenge/ --out runs/cytologia --scale smoke
    """
    from cytolens.run import plan as planning
    from cytolens.run.recipe import load
    from cytolens.run.running import run as run_recipe
    from cytolens.run.store import Store

    stages = planning.plan(load(recipe, set or (), scale), Store(out))
    if dry_run:
        told = {"stages": [_row(one) for one in stages], "to_do": sum(one.state != "done" for one in stages)}
        lines = [*planning.drawn(stages), f"{told['to_do']} of {len(stages)} steps to do"]
        answer(told, lines, json_output)
        return DONE
    started = time.monotonic()
    with _watched(stages, json_output) as tell:
        result = run_recipe(recipe, out, overrides=set or (), scale=scale, engine=engine, address=address, told=tell)
    last = [one for one in stages if not any(one.name in other.takes for other in stages)]
    summary = {
        "out": str(out),
        "stages": len(stages),
        "made": list(result.made),
        "results": {one.name: {"folder": str(one.folder), **result.summaries[one.name]} for one in last},
        "seconds": round(time.monotonic() - started, 2),
    }
    lines = [
        f"{len(result.made)} of {len(stages)} steps made, the others were there; {summary['seconds']:.0f} s → {out}"
    ]
    for one in last:
        lines.append(f"  {one.name}: {one.folder}")
        lines += [f"    {_plain(name)}: {value}" for name, value in result.summaries[one.name].items()]
    answer(summary, lines, json_output)
    return DONE


def _row(one: Planned) -> dict[str, Any]:
    return {
        "name": one.name, "do": one.stage.do, "state": one.state, "why": one.why, "key": one.key,
        "folder": str(one.folder), "takes": list(one.takes),
    }  # fmt: skip


def _plain(name: str) -> str:
    return name.replace("_", " ")


@contextmanager
def _watched(stages: Sequence[Planned], quiet: bool) -> Iterator[Told]:
    """A table of the stages while they are made, where standard error is a terminal; otherwise lines."""
    if quiet:
        yield lambda *_: None
        return
    if not sys.stderr.isatty():
        yield _say
        return
    from rich.console import Console
    from rich.live import Live

    states = {one.name: (one.state, "") for one in stages}
    begun: dict[str, float] = {}

    def tell(name: str, what: str, more: dict[str, Any]) -> None:
        if what == "start":
            begun[name] = time.monotonic()
            states[name] = ("now", "")
        elif what == "note":
            states[name] = ("now", more["text"])
        else:
            states[name] = (what, _short(more.get("summary", {})))

    def table() -> Any:
        return _table(stages, states, begun)

    with Live(get_renderable=table, console=Console(stderr=True), refresh_per_second=2):
        yield tell


def _say(name: str, what: str, more: dict[str, Any]) -> None:
    if what == "note":
        text = more["text"]
    elif what == "done":
        text = f"done in {more.get('seconds', 0):.1f} s; {_short(more.get('summary', {}))}"
    else:
        text = {"start": "…", "failed": "failed"}.get(what, what)
    print(f"{name}: {text}", file=sys.stderr, flush=True)


def _short(summary: dict[str, Any]) -> str:
    plain = [(name, value) for name, value in summary.items() if isinstance(value, (int, float, str))]
    return ", ".join(
        f"{_plain(name)} {value:.4g}" if isinstance(value, float) else f"{_plain(name)} {value}"
        for name, value in plain[:4]
    )


def _table(stages: Sequence[Planned], states: dict[str, tuple[str, str]], begun: dict[str, float]) -> Any:
    """The stages under way and around it: a long plan does not fit on a screen."""
    from rich.table import Table

    ready = sum(state == "done" for state, _ in states.values())
    table = Table(title=f"{ready} of {len(stages)} steps", title_justify="left", box=None, pad_edge=False)
    for name, style in (("step", "bold"), ("state", ""), ("s", ""), ("", "dim")):
        table.add_column(name, style=style, overflow="ellipsis", no_wrap=True)
    active = [i for i, one in enumerate(stages) if states[one.name][0] == "now"]
    middle = active[0] if active else ready
    for one in stages[max(0, middle - 8) : middle + 12]:
        state, text = states[one.name]
        seconds = f"{time.monotonic() - begun[one.name]:.0f}" if state == "now" else ""
        table.add_row(one.name, state, seconds, text)
    return table
