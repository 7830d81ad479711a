"""What a run left to tune: the members of its ensemble, and where their bundles and predictions stand."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cytolens.problems import SettingError, listing
from cytolens.run.steps_ensemble import BlendStep, PackStep
from cytolens.settings import checked

Stage = Mapping[str, Any]  # a stage as run.json describes it


@dataclass(frozen=True)
class Tunable:
    """An ensemble of a run.

    Attributes:
        run: the run's folder.
        blend: the step that learnt the weights.
        pack: the step that made a bundle of it; None: the run has none.
        classifiers: family → the bundles of its folds.
        detectors: family → the bundles of its folds; empty without `pack`.
        notes: what is not as in the run.
    """

    run: Path
    blend: BlendStep
    pack: PackStep | None
    classifiers: Mapping[str, tuple[Path, ...]]
    detectors: Mapping[str, tuple[Path, ...]]
    notes: tuple[str, ...]

    def kept(self, one_fold: bool) -> tuple[dict[str, tuple[Path, ...]], dict[str, tuple[Path, ...]]]:
        """Detectors and classifiers by family, with all folds or the first one's model of each."""
        most = 1 if one_fold else None
        return (
            {family: places[:most] for family, places in self.detectors.items()},
            {family: places[:most] for family, places in self.classifiers.items()},
        )


def read_tunable(place: Path) -> Tunable:
    """The ensemble of a run, by the run's folder or by the folder of one of its blends.

    Raises:
        SettingError: it is neither, the run has no blend, or several and it is not clear which is meant.
    """
    root, wanted = _run_of(place)
    made = _Made(root)
    blend, pack = made.ensemble(wanted)
    blend_step = checked(BlendStep, made.settings(blend), f"{root}: steps.{blend['name']}")
    pack_step = None if pack is None else checked(PackStep, made.settings(pack), f"{root}: steps.{pack['name']}")
    notes = []
    given = {} if pack_step is None else pack_step.classifiers
    classifiers = {}
    for family, results in blend["settings"]["members"].items():
        predictions = [made.stage_of(result, family) for result in results]
        classifiers[family] = given.get(family) or tuple(made.bundle_of(stage, family) for stage in predictions)
        views = {stage["settings"].get("tta", "bundle") for stage in predictions} - {"bundle"}
        if views:
            notes.append(
                f"{family} was judged with the views {listing(sorted(views))}; packed, it looks as it learnt to."
            )
    if pack_step is None:
        notes.append(
            "The run packs no bundle, so its detectors are not known: times are those of the classifiers only."
        )
    elif pack_step.of_images:
        notes.append("Classifiers of whole images are left out.")
    detectors = {} if pack is None else made.families(pack["settings"]["detectors"])
    return Tunable(root, blend_step, pack_step, classifiers, detectors, tuple(notes))


def _run_of(place: Path) -> tuple[Path, Path | None]:
    """The run's folder, and the folder of the blend that is meant, where one was named."""
    if _is_run(place):
        return place, None
    if (place / "blend.json").is_file():
        for parent in place.resolve().parents:
            if _is_run(parent):
                return parent, place.resolve()
    raise SettingError(
        f'"{place}" is neither a folder that cytolens run left (no run.json with stages) nor the result of a blend in '
        "one (no blend.json). A recipe with a blend is recipes/cytologia.toml"
    )


def _is_run(place: Path) -> bool:
    try:
        return "stages" in json.loads((place / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return False


class _Made:
    """The stages of a run, by name and by the key of their results."""

    def __init__(self, root: Path) -> None:
        self.root = root
        stages: list[Stage] = json.loads((root / "run.json").read_text(encoding="utf-8"))["stages"]
        self.by_name = {stage["name"]: stage for stage in stages}
        self.by_key = {stage["key"]: stage for stage in reversed(stages)}

    def folder(self, stage: Stage) -> Path:
        return self.root / stage["folder"]

    def ensemble(self, wanted: Path | None) -> tuple[Stage, Stage | None]:
        """The blend that is meant, and the step that packs it."""
        blends = [stage for stage in self.by_name.values() if stage["do"] == "blend"]
        packs = [stage for stage in self.by_name.values() if stage["do"] == "pack"]
        of_pack = [(pack, self._blend_behind(pack)) for pack in packs]
        if wanted is not None:
            meant = [stage for stage in blends if self.folder(stage).resolve() == wanted]
        else:
            packed = {blend["name"]: blend for _, blend in of_pack if blend is not None}
            meant = list(packed.values()) or blends
        if not meant:
            raise SettingError(f'{self.root}: the run has no step do = "blend", so there is nothing to tune')
        if len(meant) > 1:
            folders = listing([str(self.folder(stage)) for stage in meant])
            raise SettingError(f"{self.root}: the run has several blends; name the folder of one: {folders}")
        return meant[0], next((pack for pack, blend in of_pack if blend is meant[0]), None)

    def _blend_behind(self, pack: Stage) -> Stage | None:
        """The blend of cells' classifiers that a pack takes its weights from."""
        stage: Stage | None = pack
        while stage is not None and stage["do"] != "blend":
            taken = stage["settings"].get("blend")
            stage = self.by_key.get(taken["result"]) if isinstance(taken, Mapping) and "result" in taken else None
        return stage

    def settings(self, stage: Stage) -> dict[str, Any]:
        """A stage's settings, with folders in the place of results."""
        return {name: self._placed(value) for name, value in stage["settings"].items()}

    def _placed(self, value: Any) -> Any:
        if isinstance(value, Mapping):
            if set(value) == {"result"}:
                return self.folder(self.by_key[value["result"]])
            return {key: self._placed(inner) for key, inner in value.items()}
        return [self._placed(inner) for inner in value] if isinstance(value, list) else value

    def stage_of(self, result: Any, family: str) -> Stage:
        """The stage that made a result."""
        stage = self.by_key.get(result["result"]) if isinstance(result, Mapping) else None
        if stage is None:
            raise SettingError(
                f'{self.root}: the predictions of "{family}" are not of this run, so its bundle is unknown'
            )
        return stage

    def bundle_of(self, prediction: Stage, family: str) -> Path:
        """The bundle that made a prediction."""
        bundle = prediction["settings"].get("bundle")
        if not (isinstance(bundle, Mapping) and "result" in bundle):
            raise SettingError(
                f'{self.root}: "{family}" was not trained in this run, so its bundle is unknown; pack the ensemble in '
                'the recipe (do = "pack"), with its classifiers'
            )
        return self.folder(self.by_key[bundle["result"]])

    def families(self, results: Any) -> dict[str, tuple[Path, ...]]:
        """Bundles by family: what one step trains for each fold; one from elsewhere is a family of its own."""
        found: dict[str, tuple[Path, ...]] = {}
        for value in results:
            stage = self.by_key.get(value["result"]) if isinstance(value, Mapping) else None
            name = Path(str(value)).name if stage is None else re.sub(r" fold=\S+", "", stage["name"])
            found[name] = (*found.get(name, ()), Path(self._placed(value)))
        return found
