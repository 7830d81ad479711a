"""Running a bundle's network on ONNX Runtime."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cytolens.bundle import Bundle
from cytolens.problems import BundleError, SettingError, listing
from cytolens.tasks.detect import EARLY_MAPS

ATTRIBUTES_FILE = "attributes.onnx"  # of a detector that describes what it finds
_REGIONS = 32  # cells that are described at a time
_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider", "openvino": "OpenVINOExecutionProvider"}


def session(bundle: Bundle, device: str = "cpu", threads: int = 1, *, file: str = "model.onnx") -> Any:
    """An ONNX Runtime session of a bundle's network.

    Args:
        bundle: whose network to run.
        device: "cpu", "cuda" or "openvino".
        threads: threads of one run. Several images at once, one thread each, is faster than the reverse.
        file: of the bundle, that holds the network.

    Raises:
        SettingError: the device is unknown, or this installation of ONNX Runtime does not have it.
        BundleError: the bundle has no network, or not one that can be run.
    """
    import onnxruntime

    if device not in _PROVIDERS:
        raise SettingError(f'device "{device}" is not known; allowed: {", ".join(_PROVIDERS)}')
    if _PROVIDERS[device] not in onnxruntime.get_available_providers():
        have = [name for name, provider in _PROVIDERS.items() if provider in onnxruntime.get_available_providers()]
        raise SettingError(f'device "{device}" is not in this installation of onnxruntime; here: {listing(have)}')
    path = bundle.file(file)
    if path is None:
        raise BundleError(f"{bundle.folder}: has no {file}, so it cannot predict")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(path, options, providers=[_PROVIDERS[device]])
    except Exception as error:
        raise BundleError(f"{path}: cannot be run ({str(error).splitlines()[0]})") from error


@dataclass(frozen=True, slots=True)
class Detector:
    """A detector's session.

    Attributes:
        session: of its network.
        head: the session of what reads attributes from its maps, where it describes cells.
        scaled: whether that is told the size of cells in red cells of the field.
    """

    session: Any
    head: Any = None
    scaled: bool = False

    def __call__(self, pictures: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Pictures (B, H, W, 3) → boxes (B, L, 4) in px of the picture, scores (B, L, C)."""
        return self.look(pictures)[:2]

    def look(
        self, pictures: NDArray[np.uint8]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], list[NDArray[np.float32]]]:
        """As calling it, and the maps of the same pass that `describe` takes; none where cells are not described."""
        outputs = ["boxes", "scores", *(EARLY_MAPS if self.head is not None else ())]
        boxes, scores, *maps = self.session.run(outputs, {"images": pictures})
        return boxes, scores, maps

    def describe(
        self,
        maps: list[NDArray[np.float32]],
        boxes: NDArray[np.floating],
        scales: NDArray[np.float32] | None = None,
    ) -> NDArray[np.float32]:
        """The logits (N, ΣV) of the attributes at boxes (N, 4) in px of the first picture that the maps are of.

        Args:
            maps: as of `look`.
            boxes: of the cells.
            scales: how large these are, as of `cell_scale.scale_features`, where `scaled` says so.
        """
        regions = np.concatenate([np.zeros((len(boxes), 1)), boxes], axis=1).astype(np.float32)
        each = {"regions": regions} if scales is None or not self.scaled else {"regions": regions, "scales": scales}
        given = dict(zip(EARLY_MAPS, maps, strict=True))
        # A region takes up to some megabytes inside the network, so that many cells are looked at in turns.
        parts = [
            self.head.run(["attributes"], {**given, **{n: t[start : start + _REGIONS] for n, t in each.items()}})[0]
            for start in range(0, max(len(regions), 1), _REGIONS)
        ]
        return np.concatenate(parts)


@dataclass(frozen=True, slots=True)
class Classifier:
    """A classifier's session.

    Attributes:
        session: of its network.
        describes: whether the logits of attributes are wanted, too.
        concepts: whether the probabilities that names are read from are wanted behind those.
    """

    session: Any
    describes: bool = False
    concepts: bool = False

    def __call__(self, pictures: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Pictures (B, S, S, 3) → logits (B, K), embedding (B, D).

        Behind the logits of the names stand those of the attributes where they are wanted: (B, K + ΣV), and behind
        these the concepts: (B, K + 2 ΣV).
        """
        outputs = ["logits", "embedding"]
        outputs += ["attributes"] * self.describes + ["concepts"] * self.concepts
        logits, embedding, *more = self.session.run(outputs, {"images": pictures})
        return (np.concatenate([logits, *more], axis=1) if more else logits), embedding
