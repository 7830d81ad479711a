"""Makes ensemble_boxes.json: what the package ensemble-boxes (MIT) says of seeded cases.

Run it in an environment of its own: ``uv pip install ensemble-boxes``, then ``python ensemble_boxes.py``.

The package takes the last of equal scores first, so it is given lists and rows in reverse; then the
first comes first. Its sort keeps that order only where NumPy sorts few numbers without vector
instructions: those are switched off, and cases with equal scores stay small.

Its ``soft_nms`` returns the scores from before they were lowered; the lowered ones are taken from the
function inside it that lowers them.
"""

from __future__ import annotations

import json
import os
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

_OFF = "AVX2 FMA3 AVX512F AVX512CD AVX512_SKX AVX512_CLX AVX512_CNL AVX512_ICL AVX512_SPR X86_V3 X86_V4"
SIDE_PX = 400


def _cases() -> list[dict[str, Any]]:
    import numpy as np

    cases = []
    for seed in range(40):
        random = np.random.default_rng(seed)
        tied = seed % 4 == 1
        count = [1, 2, 3, 4, 6, 12][seed % 6] if not tied else 3
        cells = random.uniform(20, 300, (int(random.integers(1, 5 if tied else 9)), 2))
        sides = random.uniform(20, 90, cells.shape)
        lists = []
        for _ in range(count):
            here = random.random(len(cells)) < 0.8
            spread = random.normal(0, 5, (2, len(cells), 2))
            boxes = np.concatenate([cells + spread[0], cells + sides + spread[1]], axis=1)[here]
            scores = random.integers(1, 5, len(boxes)) / 5 if tied else random.uniform(0.01, 1, len(boxes))
            lists.append((boxes.round(3), scores, random.integers(0, 2 if not tied else 1, len(boxes))))
        if seed % 5 == 0:
            lists[-1] = (np.zeros((0, 4)), np.zeros(0), np.zeros(0, int))
        cases.append(
            {
                "boxes": [one[0].tolist() for one in lists],
                "scores": [one[1].tolist() for one in lists],
                "classes": [one[2].tolist() for one in lists],
                "weights": random.integers(1, 5, count).tolist() if seed % 3 == 0 else None,
                "iou": [0.25, 0.4, 0.55, 0.7][seed % 4],
                "score_floor": 0.15 if seed % 7 == 0 else 0.0,
                "tied": tied,
            }
        )
    return cases


def _answers(case: dict[str, Any]) -> dict[str, Any]:
    import numpy as np
    from ensemble_boxes import nms, weighted_boxes_fusion
    from ensemble_boxes.ensemble_boxes_nms import cpu_soft_nms_float

    def given(name: str) -> list[np.ndarray]:
        shape = (-1, 4) if name == "boxes" else (-1,)
        scale = SIDE_PX if name == "boxes" else 1
        return [np.array(one, float).reshape(shape)[::-1] / scale for one in case[name][::-1]]

    weights = None if case["weights"] is None else case["weights"][::-1]
    answers: dict[str, Any] = {}
    for name, one_list in (("wbf", False), ("wbf_one_list", True)):
        boxes, scores, classes = (given(part) for part in ("boxes", "scores", "classes"))
        own_weights = weights
        if one_list:
            boxes, scores, classes = ([np.concatenate(part)] for part in (boxes, scores, classes))
            own_weights = None
        fused = weighted_boxes_fusion(
            boxes, scores, classes, weights=own_weights, iou_thr=case["iou"], skip_box_thr=case["score_floor"]
        )
        answers[name] = [np.asarray(part).tolist() for part in fused]
    kept: Any = ([], [], [])
    if any(case["boxes"]):  # it cannot do without any box
        kept = nms(given("boxes"), given("scores"), given("classes"), iou_thr=case["iou"], weights=weights)
    answers["nms"] = [np.asarray(part).tolist() for part in kept]
    boxes, classes = np.concatenate(given("boxes")), np.concatenate(given("classes"))
    shares = [1.0] * len(case["boxes"]) if weights is None else np.array(weights) / sum(weights)
    scores = np.concatenate([s * share for s, share in zip(given("scores"), shares, strict=True)])
    for name, method in (("linear", 1), ("gaussian", 2)):
        parts = []
        for kind in np.unique(classes):
            rows = np.flatnonzero(classes == kind)
            # It takes the first of equal scores first, unlike the others: rows in their own order.
            rows = rows[::-1]
            lowered = scores[rows].copy()
            keep = cpu_soft_nms_float(boxes[rows], lowered, case["iou"], 0.5, 0.001, method)
            parts += [
                [*boxes[rows[row]].tolist(), score, float(kind)]
                for row, score in zip(keep, lowered[lowered > 0.001], strict=True)
            ]
        answers[f"soft_nms_{name}"] = parts
    return answers


def main() -> None:
    """Write the file beside this one."""
    import numpy as np

    for length in range(2, 17):
        assert (np.full(length, 0.5).argsort() == np.arange(length)).all(), "equal numbers are not kept in order"
    cases = [{**case, "answers": _answers(case)} for case in _cases()]
    for case in cases:
        assert not case["tied"] or sum(map(len, case["boxes"])) <= 16
    data = {"package": f"ensemble-boxes {version('ensemble-boxes')}", "side_px": SIDE_PX, "cases": cases}
    text = json.dumps(_rounded(data), separators=(",", ":"))
    Path(__file__).with_suffix(".json").write_text(text.replace('{"boxes"', '\n{"boxes"') + "\n", encoding="utf-8")


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 9)
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list) else value


if __name__ == "__main__":
    if os.environ.get("NPY_DISABLE_CPU_FEATURES") is None:
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | {"NPY_DISABLE_CPU_FEATURES": _OFF})
    sys.path.remove(str(Path(__file__).resolve().parent))  # this file is called like the package
    main()
