"""Public weight files in, tensors out, without running anything that stands in them.

Archives of PyTorch are pickles: programs that build objects. They are read with PyTorch's restricted
reader, which rebuilds tensors, plain containers and NumPy's numbers, and refuses everything else before
it is run. Publishers lay tensors out in their own ways; `fitted` finds those of one network among them.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cytolens.problems import FormatError, listing

_SAFELY = "not a weight file that can be read safely"
_AVERAGED = ("teacher", "ema")  # where a file holds both, these are the weights that its authors evaluated


def _plain_numbers() -> list[Any]:
    """What restores NumPy's numbers, which trainers leave among their scores; it can build nothing else."""
    scalar = np.float64(0).__reduce__()[0]
    names = [(scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    return [*names, np.dtype, *(type(np.dtype(kind)) for kind in ("f4", "f8", "i4", "i8"))]


def _content(path: Path) -> Any:
    """What a weight file holds: a dictionary of tensors, or a nest of plain containers with tensors in it."""
    if not path.exists():
        raise FormatError(f"{path}: there is no such weight file. Check the path.")
    with torch.serialization.safe_globals(_plain_numbers()):
        try:
            if path.suffix == ".safetensors":
                from safetensors.torch import load_file

                return load_file(path)
            return torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            if strangers := _strangers(path, error):
                raise FormatError(
                    f"{path}: {_SAFELY}: to load it, {listing(strangers)} would be run. Allowed are tensors and plain "
                    "containers. Ask the publisher for the state dict alone, or for safetensors."
                ) from error
            said = str(error).splitlines()[0]
            # PyTorch's own words go on to say how to read the file unsafely.
            reason = "it is damaged, or no such file at all" if "weights" in said.casefold() else said
            raise FormatError(
                f"{path}: {_SAFELY} ({reason}). Allowed: .safetensors, or a PyTorch archive that holds tensors only."
            ) from error


def _strangers(path: Path, error: Exception) -> list[str]:
    """The functions and classes that a PyTorch archive asks for and that are not allowed."""
    try:
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:  # not an archive of today's form; then the reader has named the first of them
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        return [found[1]] if found else []


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Tensors by name from a ``.safetensors`` file or a ``.pth`` / ``.ckpt`` archive.

    A state dict may stand at the top, or under "model" (YOLOX) or "state_dict" (Lightning).

    Raises:
        FormatError: the file is missing, damaged, holds what would have to be run, or no state dict.
    """
    content = _content(Path(path))
    for key in ("model", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise FormatError(f"{path}: holds no state dict (a table of tensors by name).")
    return dict(content)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Every tensor of a weight file, by where it stands there: "state_dict.backbone.cls_token".

    Raises:
        FormatError: the file is missing, damaged, holds what would have to be run, or no tensors.
    """
    tensors: dict[str, Tensor] = {}
    seen: set[int] = set()
    waiting: list[tuple[str, Any]] = [("", _content(Path(path)))]
    while waiting:
        name, item = waiting.pop()
        if isinstance(item, Tensor):
            if item.layout == torch.strided and not item.is_quantized:
                tensors[name] = item
        elif isinstance(item, dict | list | tuple) and id(item) not in seen:
            seen.add(id(item))  # a container may hold itself
            pairs = item.items() if isinstance(item, dict) else enumerate(item)
            below = [(f"{name}.{key}" if name else str(key), value) for key, value in pairs]
            waiting.extend(reversed(below))
    if not tensors:
        raise FormatError(f"{path}: holds no tensors.")
    return tensors


# -- a network's tensors among those of a file ------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Fit:
    """The tensors of one network, as found in a file.

    Attributes:
        prefix: what stands before the network's own names in the file.
        state: name in the network → tensor, where the shape agrees.
        missing: names of the network that the file does not have.
        misfits: what has another shape: name, wanted shape, found shape.
        unused: names of the file that are no tensors of the network.
        others: other prefixes under which the file has the same network once more.
    """

    prefix: str
    state: dict[str, Tensor]
    missing: tuple[str, ...]
    misfits: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]
    unused: tuple[str, ...]
    others: tuple[str, ...]

    @property
    def complete(self) -> bool:
        """Whether every tensor that a network answers with was found, in its shape."""
        return not self.missing and not self.misfits

    def require(self, path: Path, network: str) -> None:
        """See that nothing is missing.

        Raises:
            FormatError: a tensor is missing or has another shape; the message says which.
        """
        if self.complete:
            return
        shapes = [f"{name} is {found}, wanted {wanted}" for name, wanted, found in self.misfits]
        absent = f"missing: {listing(self.missing, 4)}" if self.missing else ""
        raise FormatError(
            f"{path}: is not of the network {network}: {listing([*filter(None, [absent]), *shapes], 5)}. "
            f"{len(self.state)} tensors fit. Name the network that it belongs to."
        )


def fitted(wanted: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> Fit:
    """Find a network's tensors in a file, whatever stands before their names there.

    Counters of batch norms are no loss where they are missing: nothing is computed from them.

    Args:
        wanted: the network's own state dict (values are looked at for their shapes only).
        tensors: as `read_tensors` gives them.
    """
    places = _places(wanted, tensors)
    averaged = [prefix for prefix in places if any(word in prefix for word in _AVERAGED)]
    most = max(places.values(), default=0)
    same = [prefix for prefix, count in places.items() if count == most]
    prefix = next((p for p in same if p in averaged), next(iter(same), ""))
    state: dict[str, Tensor] = {}
    missing: list[str] = []
    misfits: list[tuple[str, tuple[int, ...], tuple[int, ...]]] = []
    for name, own in wanted.items():
        given = tensors.get(prefix + name)
        if given is None:
            if not name.endswith("num_batches_tracked"):
                missing.append(name)
        elif given.shape != own.shape:
            misfits.append((name, tuple(own.shape), tuple(given.shape)))
        else:
            state[name] = given
    unused = [name for name in tensors if not (name.startswith(prefix) and name[len(prefix) :] in wanted)]
    others = tuple(p for p in same if p != prefix)
    return Fit(prefix, state, tuple(missing), tuple(misfits), tuple(unused), others)


def _places(wanted: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> Counter[str]:
    """Prefix → how many of the network's names stand behind it in the file."""
    places: Counter[str] = Counter()
    for name in tensors:
        starts = [0, *(found.end() for found in re.finditer(r"\.", name))]
        places.update(name[:start] for start in starts if name[start:] in wanted)
    return places


def load_matching(network: nn.Module, state: dict[str, Tensor]) -> tuple[list[str], list[str]]:
    """Copy every tensor whose name and shape agree.

    Returns:
        Names of the network that kept their own values, and names of `state` that found no place.
    """
    own = network.state_dict()
    fitting = {name: value for name, value in state.items() if name in own and own[name].shape == value.shape}
    network.load_state_dict(fitting, strict=False)
    return [name for name in own if name not in fitting], [name for name in state if name not in fitting]


def sha256_of(path: Path) -> str:
    """The file's sha256 in hexadecimal."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
