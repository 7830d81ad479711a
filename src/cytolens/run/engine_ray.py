"""The Ray engine: the stages of a run as tasks of a cluster, side by side where none waits for another.

All machines see the run's folder, and the files from outside, under the same names: a shared file system that knows
locks, such as NFS 4. A stage does what it does with the local engine, so it leaves the same result.

A stage whose process or machine is lost is begun again elsewhere; a step that can, goes on with what the first attempt
left. A machine that is taken for lost may still be writing, so each attempt locks the stage first, and waits for the
other to end.

Where a stage fails, none is begun any more, which its task says before it ends; those under way come to their end, for
their results are kept, and then the first failure is raised. Ctrl-C ends them all.
"""

from __future__ import annotations

import fcntl
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from cytolens.predict.on_ray import answer, cancel, check_resources, connected, remote, settle
from cytolens.problems import CytolensError, require
from cytolens.run.engine_local import Told, do
from cytolens.run.plan import Planned
from cytolens.run.store import Store

_LISTEN_S = 0.5  # how often the driver looks what stages say
_DELIVERY_S = 10.0  # that the last message of an attempt may take
_LOCK_S = 0.5  # how often an attempt looks whether the one before has let go
_APPEAR_S = 60.0  # that a shared file system may take to show one machine what another wrote


def engine(address: str | None) -> Callable[[Sequence[Planned], Store, Told], None]:
    """What does the stages of a plan on a Ray cluster.

    Args:
        address: of a running cluster, which is left running; None: one is started on this machine, and ends after it.

    Raises:
        MissingExtraError: Ray is not installed.
    """
    require("ray", "ray", "the engine ray")

    def run_stages(stages: Sequence[Planned], store: Store, told: Told) -> None:
        to_do = [one for one in stages if one.state != "done"]
        if to_do:
            with connected(address):
                _Run(to_do, store, told).to_the_end()

    return run_stages


class _Run:
    """What the driver knows of a run: stages that are not handed out yet, and tasks under way."""

    def __init__(self, stages: Sequence[Planned], store: Store, told: Told) -> None:
        for one in stages:
            check_resources(f"steps.{one.stage.step}", one.stage.cpus, one.stage.gpus)
        self.store, self.told = store, told
        self.home = str(Path.cwd())
        self.open = list(stages)
        self.unmade = {one.name for one in stages}
        self.under_way: dict[Any, Planned] = {}
        self.begun: set[str] = set()
        self.again: Counter[str] = Counter()
        self.failure: Exception | None = None

    def to_the_end(self) -> None:
        """Hand out what is ready, until all is made or something fails.

        Raises:
            CytolensError: a stage cannot be carried out; the same as it raised.
        """
        import ray

        self.mailbox = _mailbox()
        try:
            self._hand_out()
            while self.under_way:
                ready, _ = ray.wait(list(self.under_way), timeout=_LISTEN_S)
                self._listen()
                for reference in ready:
                    self._take(reference)
                self._hand_out()
        except BaseException:
            cancel(self.under_way)
            raise
        finally:
            ray.kill(self.mailbox)
        if self.failure is not None:
            raise self.failure

    def _hand_out(self) -> None:
        ready = [one for one in self.open if not self.unmade.intersection(one.takes)]
        for one in ready:
            self.open.remove(one)
            _attempts(one, self.store).unlink(missing_ok=True)
            task = remote(_attempt, one.stage.cpus, one.stage.gpus)
            self.under_way[task.remote(one, self.store, self.home, self.mailbox)] = one

    def _listen(self) -> None:
        """Pass on what stages have said since."""
        import ray
        from ray.exceptions import RayActorError

        said: list[tuple[str, str, str]] = []
        with suppress(RayActorError):  # what is lost with a mailbox is no result
            said = ray.get(self.mailbox.take.remote())
        now = {one.name for one in self.under_way.values()}
        for name, what, text in said:
            if name in now:
                self._pass_on(name, what, text)

    def _pass_on(self, name: str, what: str, text: str) -> None:
        if name not in self.begun:
            self.begun.add(name)
            self.told(name, "start", {"machine": text} if what == "start" else {})
        if what == "again":
            self.again[name] += 1
            self.told(name, "note", {"text": f"begun again on {text}"})
        elif what == "note":
            self.told(name, "note", {"text": text})

    def _take(self, reference: Any) -> None:
        """The result of a task that has ended, or what it failed with."""
        from ray.exceptions import TaskCancelledError

        one = self.under_way.pop(reference)
        try:
            said, machines = answer(reference, one.name)
            _appeared(one, self.store)
        except TaskCancelledError:
            return  # withdrawn after another's failure
        except _WithheldError:
            if self.failure is None:  # the failure is not heard of yet, or its machine is lost and it is tried again
                self.open.append(one)
            return
        except Exception as error:
            self.told(one.name, "failed", {"text": str(error)})
            if self.failure is None:
                self.failure = error
                self._withdraw()
            return
        self._pass_on(one.name, "", "")
        for machine in machines[1 + self.again[one.name] :]:  # what a lost message did not say
            self._pass_on(one.name, "again", machine)
        self.unmade.discard(one.name)
        self.told(one.name, "done", said)

    def _withdraw(self) -> None:
        """Take back what has not begun."""
        import ray

        self.open.clear()
        for reference, one in self.under_way.items():
            if not _attempts(one, self.store).exists():
                ray.cancel(reference)


def _appeared(one: Planned, store: Store) -> None:
    """Wait until this machine sees a result that another has made.

    Raises:
        CytolensError: it never does.
    """
    last = time.monotonic() + _APPEAR_S
    while store.done(one.name, one.key) is None:
        if time.monotonic() > last:
            raise CytolensError(
                f"{one.name}: was made, but {one.folder} is not seen here; all machines of the cluster must share "
                f"the folder {store.out}"
            )
        time.sleep(_LOCK_S)


# -- on the machine that does a stage -------------------------------------------------------------


def _attempt(one: Planned, store: Store, home: str, mailbox: Any) -> tuple[dict[str, Any], list[str]]:
    """A task: make one stage's result; returns what its ``done.json`` says, and where all attempts at it began."""
    import ray

    sent = []

    def tell(what: str, text: str) -> None:
        sent[:] = [mailbox.put.remote(one.name, what, text)]

    settle(home, one.stage.cpus)
    try:
        with _alone(one, store, tell):
            if not _may_begin(one, store, mailbox):
                raise _WithheldError
            machines = _begun(one, store)
            tell("start" if len(machines) == 1 else "again", machines[-1])
            return do(one, store, lambda text: tell("note", text)), machines
    except Exception as error:
        # Before this task ends and its place is free: what waits for it begins sooner than the driver hears.
        if not isinstance(error, _WithheldError):
            sent[:] = [mailbox.fail.remote(one.name)]
        raise
    finally:
        # One task's messages come in their order, so where the last has come, the driver hears all before the result.
        ray.wait(sent, timeout=_DELIVERY_S)


class _WithheldError(Exception):
    """A task was not begun, for another has failed."""


def _may_begin(one: Planned, store: Store, mailbox: Any) -> bool:
    """Whether nothing has failed so far; a stage that had begun before goes on all the same."""
    import ray
    from ray.exceptions import RayActorError

    with suppress(RayActorError):  # without a mailbox the driver alone withdraws
        return ray.get(mailbox.begin.remote(one.name)) or _attempts(one, store).exists()
    return True


def _attempts(one: Planned, store: Store) -> Path:
    """The file that names the machines where attempts at a stage began: a message of theirs may be lost with them."""
    folder = store.folder(one.name, one.key)
    return folder.parent / f".{folder.name}.attempts"


def _begun(one: Planned, store: Store) -> list[str]:
    """Where attempts at a stage began, this one last; to be called by the one that is alone."""
    file = _attempts(one, store)
    with file.open("a", encoding="utf-8") as stream:
        stream.write(f"{socket.gethostname()}\n")
    return file.read_text(encoding="utf-8").splitlines()


@contextmanager
def _alone(one: Planned, store: Store, tell: Callable[[str, str], None]) -> Iterator[None]:
    """Keep other attempts at a stage out of its folder; the lock goes with the process that holds it."""
    folder = store.folder(one.name, one.key)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f".{folder.name}.lock").open("w") as stream:
        waits = False
        while True:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not waits:
                    tell("note", "waits for an earlier attempt to end")
                waits = True
                time.sleep(_LOCK_S)
        yield


class _Mailbox:
    """What stages say, until the driver takes it."""

    def __init__(self) -> None:
        self.said: list[tuple[str, str, str]] = []
        self.failed: set[str] = set()

    def fail(self, name: str) -> None:
        """A stage has failed: no other is to begin."""
        self.failed.add(name)

    def begin(self, name: str) -> bool:
        """Whether a stage may begin; one that is tried again has not failed yet."""
        self.failed.discard(name)
        return not self.failed

    def put(self, name: str, what: str, text: str) -> None:
        """Leave a message."""
        self.said.append((name, what, text))

    def take(self) -> list[tuple[str, str, str]]:
        """All messages since the last time, in the order of their coming."""
        said, self.said = self.said, []
        return said


def _mailbox() -> Any:
    """A mailbox on the driver's own machine, so that no other's loss takes it along."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    return ray.remote(_Mailbox).options(num_cpus=0, scheduling_strategy=here, max_restarts=-1).remote()
