"""How every command speaks: results on standard output, progress on standard error, errors in one line."""

from __future__ import annotations

import functools
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any, TypeVar

import typer

from cytolens.problems import CytolensError, Problem, Problems

DONE, BAD, REFUSED, INTERRUPTED = 0, 1, 2, 130
Command = TypeVar("Command", bound=Callable[..., Any])

Json = Annotated[bool, typer.Option("--json", help="One JSON object on standard output, and nothing else there.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show where in the program an error came from.")]
Where = Annotated[
    str | None,
    typer.Option(help="Condition on the images' columns, such as 'width_px < 500'; other images are left out."),
]

_SHOWN_PER_KIND = 3


def command(function: Command) -> Command:
    """A command that turns errors into one clear line and the agreed exit code.

    0 done · 1 done, and what it found is bad · 2 the request cannot be carried out · 130 interrupted.
    """

    @functools.wraps(function)
    def run(*args: Any, **options: Any) -> None:
        try:
            code = function(*args, **options)
            sys.stdout.flush()
        except CytolensError as error:
            _fail(str(error), **_wishes(options))
        except BrokenPipeError:  # the reader of our output has gone: nothing left to say
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(DONE) from None
        except KeyboardInterrupt:
            print("interrupted; what is on disk is whole, and the same command goes on or starts anew", file=sys.stderr)
            raise typer.Exit(INTERRUPTED) from None
        except OSError as error:
            _fail(f"{error.filename or 'the system'}: {error.strerror or error}", **_wishes(options))
        else:
            raise typer.Exit(code or DONE)

    return run  # type: ignore[return-value]


def _wishes(options: Mapping[str, Any]) -> dict[str, bool]:
    return {"as_json": bool(options.get("json_output")), "debug": bool(options.get("debug"))}


def _fail(message: str, *, as_json: bool, debug: bool) -> None:
    """Say what is wrong and end; called while the error is handled."""
    if debug:
        traceback.print_exc()
    if as_json:
        print(json.dumps({"error": message}))
    print(f"cytolens: {' '.join(message.split())}", file=sys.stderr)  # a library's reason may have several lines
    raise typer.Exit(REFUSED) from None


def answer(data: Mapping[str, Any], lines: list[str], as_json: bool) -> None:
    """The result of a command: `data` for machines, or `lines` for people."""
    if as_json:
        print(json.dumps(data))  # plain ASCII, whatever the terminal or pipe can carry
    else:
        print("\n".join(lines))


def problem_lines(problems: Problems) -> list[str]:
    """The problems for people: a few of each kind, the rest counted."""
    lines: list[str] = []
    for kind, count in problems.counts().most_common():
        some = problems.of(kind)[:_SHOWN_PER_KIND]
        lines += [_line(problem) for problem in some]
        if count > len(some):
            lines.append(f"  {some[0].severity}: … and {count - len(some)} more of this kind ({kind})")
    return lines


def _line(problem: Problem) -> str:
    return f"  {problem.severity}: {problem}"


def notify(as_json: bool) -> Callable[[str], None]:
    """Where a long command says what it does: standard error, and silence for machines."""
    return (lambda _: None) if as_json else (lambda text: print(text, file=sys.stderr, flush=True))


@contextmanager
def progress(title: str, as_json: bool) -> Iterator[Callable[[int, int], None] | None]:
    """A progress bar on standard error where that is a terminal; yields the function to tell, or None."""
    if as_json or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def names(text: str | None) -> tuple[str, ...]:
    """A comma-separated option as names."""
    return tuple(part.strip() for part in (text or "").split(",") if part.strip())
