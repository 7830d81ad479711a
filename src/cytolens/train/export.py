"""From a trained network to ONNX, with what belongs to it inside: colour order, scaling, decoding.

The first two graphs take uint8 RGB pictures as they come from `tasks`, any number at once:

* detector: ``images`` (B, H, W, 3) → ``boxes`` (B, L, 4) in input px, ``scores`` (B, L, C), and where it has attributes
  the maps that these are read from: ``map_4`` (B, C, H/4, W/4), ``map_8`` (B, C′, H/8, W/8);
* its attributes: these maps and ``regions`` (N, 5), image and box in input px → ``attributes`` (N, ΣV), logits; a head
  that is told the size of cells takes ``scales`` (N, 2), too, which follow from the other cells of the field and so
  from no map;
* classifier: ``images`` (B, S, S, 3) → ``logits`` (B, K), ``embedding`` (B, D), and where it has attributes
  ``attributes`` (B, ΣV), their logits side by side; with a concept bottleneck ``concepts`` (B, ΣV), the probabilities
  that the names are read from;
* map network: ``images`` (B, H, W, 3) → ``maps`` (B, M, H, W), and where it tells types of images ``types`` (B, T).
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cytolens.models.concepts import ConceptHead
from cytolens.models.outlines import MapNetwork
from cytolens.models.regions import RegionHead
from cytolens.models.yolox import Yolox, decode
from cytolens.problems import written
from cytolens.tasks.detect import EARLY_MAPS
from cytolens.train.outlines import as_maps

_OPSET = 18


class DetectorGraph(nn.Module):
    """A detector with decoding, for pictures in RGB."""

    def __init__(self, network: Yolox) -> None:
        super().__init__()
        self.network = copy.deepcopy(network).eval()
        stem = self.network.backbone.backbone.stem.conv.conv
        # The published networks see BGR. Exchanging the stem's input channels costs nothing at run time.
        order = [part * 3 + colour for part in range(4) for colour in (2, 1, 0)]
        stem.weight = nn.Parameter(stem.weight.detach()[:, order].clone())

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """(B, H, W, 3) uint8 RGB → boxes (B, L, 4), scores (B, L, C), and with attributes the early maps."""
        raw, maps = self.network.look(images.permute(0, 3, 1, 2).float())
        boxes = decode(raw, (images.shape[1], images.shape[2]))
        scores = raw[..., 5:].sigmoid() * raw[..., 4:5].sigmoid()
        return (boxes, scores) if self.network.attributes is None else (boxes, scores, *maps)


class RegionGraph(nn.Module):
    """A detector's head of attributes."""

    def __init__(self, head: RegionHead) -> None:
        super().__init__()
        self.head = copy.deepcopy(head).eval()

    def forward(self, map_4: Tensor, map_8: Tensor, regions: Tensor, scales: Tensor | None = None) -> Tensor:
        """The early maps of pictures, regions (N, 5) in them and what is told of these (N, T) → logits (N, ΣV)."""
        return self.head((map_4, map_8), regions, scales=scales)


class ClassifierGraph(nn.Module):
    """A classifier for pictures as bytes."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = copy.deepcopy(network).eval()

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """(B, S, S, 3) uint8 RGB → logits (B, K), embedding (B, D), with attributes their logits and the concepts."""
        return self.network(images.permute(0, 3, 1, 2).float())


class OutlineGraph(nn.Module):
    """A map network for pictures as bytes."""

    def __init__(self, network: nn.Module, field: bool) -> None:
        super().__init__()
        self.network, self.field = copy.deepcopy(network).eval(), field

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """(B, H, W, 3) uint8 RGB → maps (B, M, H, W), and with types of images their logits (B, T)."""
        logits, *types = self.network(images.permute(0, 3, 1, 2).float())
        return as_maps(logits, self.field), *types


def export_detector(network: Yolox, path: Path, side_px: int) -> None:
    """Write a detector as ONNX; batch, height and width stay free."""
    free = {0: torch.export.Dim("batch", min=1), 1: torch.export.Dim("height") * 32, 2: torch.export.Dim("width") * 32}
    # Unequal sides, both of several strides: export takes equal or single ones for constants.
    example = torch.zeros(2, side_px, side_px + 32, 3, dtype=torch.uint8)
    maps = [] if network.attributes is None else list(EARLY_MAPS)
    export_graph(DetectorGraph(network), {"images": (example, free)}, path, ["boxes", "scores", *maps])


def export_regions(network: Yolox, path: Path) -> None:
    """Write a detector's head of attributes as ONNX; pictures, their sides and regions stay free.

    Raises:
        ValueError: the detector has no attributes.
    """
    if network.attributes is None:
        raise ValueError("the detector has no attributes")
    batch = torch.export.Dim("batch", min=1)
    inputs: dict[str, tuple[Tensor, Mapping[int, object]]] = {}
    for name, channels, side in zip(EARLY_MAPS, network.attributes.channels, (24, 12), strict=True):
        free = {0: batch, 2: torch.export.Dim(f"rows_{name}", min=2), 3: torch.export.Dim(f"columns_{name}", min=2)}
        inputs[name] = (torch.zeros(2, channels, side, side + 4), free)
    regions = torch.tensor([[0.0, 8, 8, 40, 48], [1, 16, 4, 60, 36], [1, 0, 0, 30, 30]])
    cells = torch.export.Dim("cells", min=1)
    inputs["regions"] = (regions, {0: cells})
    if network.attributes.told:
        inputs["scales"] = (torch.zeros(len(regions), network.attributes.told), {0: cells})
    export_graph(RegionGraph(network.attributes), inputs, path, ["attributes"])


def export_classifier(network: nn.Module, path: Path, side_px: int) -> None:
    """Write a classifier as ONNX; the batch stays free."""
    example = torch.zeros(2, side_px, side_px, 3, dtype=torch.uint8)
    outputs = ["logits", "embedding"]
    if getattr(network, "attributes", None) is not None:
        outputs += ["attributes", *(["concepts"] if isinstance(network.head, ConceptHead) else [])]
    export_graph(ClassifierGraph(network), {"images": (example, {0: torch.export.Dim("batch", min=1)})}, path, outputs)


def export_outlines(network: MapNetwork, path: Path, *, field: bool) -> None:
    """Write a map network as ONNX; batch, height and width stay free.

    Following free sizes through an encoder takes the exporter minutes. Where no layer asks for a size, the graph of one
    picture holds for all, so it is exported for one size, its sides are declared free, and its answers at other sizes
    are compared; only where they differ are sizes followed.

    Args:
        network: in any mode.
        path: where it goes.
        field: whether it is shown fields; otherwise crops of cells.
    """
    graph = OutlineGraph(network, field).float().cpu()
    outputs = ["maps", *(["types"] if network.types is not None else [])]
    example = torch.zeros(2, 96, 128, 3, dtype=torch.uint8)
    model = _exported(graph, {"images": (example, {})}, outputs)
    _free(model.graph.input[0], {0: "batch", 1: "height", 2: "width"})
    for one, axes in zip(model.graph.output, ({0: "batch", 2: "height", 3: "width"}, {0: "batch"}), strict=False):
        _free(one, axes)
    del model.graph.value_info[:]  # they tell the sizes of the example
    if not _agree(model.SerializeToString(), graph, ((1, 64, 160), (3, 128, 32))):
        sides = {axis: torch.export.Dim(name) * 32 for axis, name in ((1, "height"), (2, "width"))}
        model = _exported(graph, {"images": (example, {0: torch.export.Dim("batch", min=1), **sides})}, outputs)
    with written(path) as part:
        part.write_bytes(model.SerializeToString())


def _free(value: Any, axes: Mapping[int, str]) -> None:
    """Give axes of an input or output of an ONNX model a name in place of their size."""
    for axis, name in axes.items():
        value.type.tensor_type.shape.dim[axis].dim_param = name


def _agree(model: bytes, graph: nn.Module, sizes: Sequence[tuple[int, int, int]]) -> bool:
    """Whether an ONNX model answers as the graph that it was made from, for pictures (B, H, W, 3) of these sizes."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # that it cannot is an answer, too
    try:
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        for number, size in enumerate(sizes):
            images = np.random.default_rng(number).integers(0, 256, (*size, 3), np.uint8)
            with torch.no_grad():
                expected = graph(torch.from_numpy(images))
            answers: list[Any] = list(session.run(None, {"images": images}))
            for said, wanted in zip(answers, expected, strict=True):
                if said.shape != wanted.shape or not np.allclose(said, wanted.numpy(), atol=1e-3, rtol=1e-3):
                    return False
    except Exception:  # ONNX Runtime raises types of its own
        return False
    return True


def export_graph(
    graph: nn.Module, inputs: Mapping[str, tuple[Tensor, Mapping[int, object]]], path: Path, outputs: list[str]
) -> None:
    """Write a graph; its inputs, in order, are given by an example each and the axes that stay free."""
    model = _exported(graph, inputs, outputs)
    with written(path) as part:
        part.write_bytes(model.SerializeToString())


def _exported(graph: nn.Module, inputs: Mapping[str, tuple[Tensor, Mapping[int, object]]], outputs: list[str]) -> Any:
    """The ONNX model of a graph."""
    graph = graph.float().cpu().to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the exporter's own, about its inner workings
        program = torch.onnx.export(
            graph,
            tuple(example for example, _ in inputs.values()),
            input_names=list(inputs),
            output_names=outputs,
            dynamic_shapes=tuple({**free} for _, free in inputs.values()),
            opset_version=_OPSET,
            dynamo=True,
            verbose=False,
        )
        assert program is not None
        program.optimize()
        return _without_origin(program.model_proto)


def _without_origin(model: Any) -> Any:
    """The ONNX model without the exporter's notes, which hold the source lines and paths of this machine."""
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.value_info, *graph.initializer, *graph.input, *graph.output):
        del part.metadata_props[:]
        part.doc_string = ""
    return model
