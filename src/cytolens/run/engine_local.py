"""The local engine: one stage after the other, on this machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from cytolens.run.plan import Planned
from cytolens.run.store import Store

Told = Callable[[str, str, dict[str, Any]], None]


def run_stages(stages: Sequence[Planned], store: Store, told: Told) -> None:
    """Do what is not done, in order.

    Args:
        stages: the plan.
        store: where results go.
        told: is told (stage, "start" | "note" | "done" | "failed", more) as it happens.
    """
    for one in stages:
        if one.state != "done":
            told(one.name, "start", {})
            try:
                said = do(one, store, lambda text, name=one.name: told(name, "note", {"text": text}))
            except Exception as error:
                told(one.name, "failed", {"text": str(error)})
                raise
            told(one.name, "done", said)


def do(one: Planned, store: Store, notify: Callable[[str], None]) -> dict[str, Any]:
    """Make one stage's result, and mark it as whole; a result that is whole already is left as it is.

    Returns:
        what ``done.json`` says.
    """
    if (said := store.done(one.name, one.key)) is not None:
        return said
    started = time.time()
    folder = store.begin(one.name, one.key, keep=type(one.step).resumes)
    summary = one.step.run(folder, notify)
    store.finish(
        one.name,
        one.key,
        {"do": one.stage.do, "started": started, "seconds": round(time.time() - started, 2), "summary": summary},
    )
    return store.done(one.name, one.key) or {}
