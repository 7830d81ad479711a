"""Packing: from runs to bundles that are given away, with their cards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cytolens.bundle import Bundle, BundleInfo, copy, rewrite
from cytolens.bundle import write as write_bundle
from cytolens.labels import AttributeSchema, LabelSet
from cytolens.predict.ensemble import given_labels
from cytolens.predict.exam import make_exam
from cytolens.predict.outlining import shows
from cytolens.predict.region_networks import RegionEnsemble
from cytolens.problems import BundleError, SettingError, listing
from cytolens.run.bundle_card import card_text, kept_scores
from cytolens.settings import checked
from cytolens.tasks.classify import ClassifyOutput
from cytolens.tasks.detect import DetectOutput, Fusion
from cytolens.tasks.segment import SegmentOutput


def pack_single(
    run: str,
    out: Path,
    *,
    name: str,
    description: str,
    scores: Mapping[str, Any],
    card: str,
    licence: str | None,
    keep_weights: bool,
) -> Bundle:
    """A bundle from a run (or another bundle), with its card.

    Raises:
        BundleError: the run has no finished bundle.
    """
    source = Bundle.load(run)
    info = source.info.model_copy(
        update={
            "name": name,
            "description": description,
            "scores": kept_scores(scores),
            "licence": licence or source.info.licence,
        }
    )
    files: dict[str, Path | bytes] = {
        file: source.folder / file for file in source.info.files if keep_weights or file != "weights.safetensors"
    }
    files["card.md"] = card_text(info, source.labels, card).encode()
    return write_bundle(out, info, files)


def pack_pipeline(
    members: Sequence[str],
    out: Path,
    *,
    name: str,
    description: str,
    scores: Mapping[str, Any],
    card: str,
    licence: str | None,
    name_these: Sequence[str],
) -> Bundle:
    """A pipeline of a detector and a classifier, or of region networks; see `pack_outliners`.

    Members are copied beside it, if they are not there. What outlines cells in boxes draws those of its kind.

    Its labels are those of the two: what the detector tells apart, with the classifier's names under
    the label that it refines. Of several classifiers the first that gives no attributes (or the first) names the
    cells; the others are asked for their attributes only.

    Raises:
        BundleError: they are not one detector and classifiers, a second classifier gives no attributes or some
            that another gives, or there is no place for one of them.
        SettingError: `name_these` names a label that the detector does not find, or two of the
            bundles have the same name.
    """
    loaded = [Bundle.load(member) for member in members]
    outlining = [bundle for bundle in loaded if bundle.info.task == "segment"]
    if len(outlining) == len(loaded):
        return pack_outliners(
            loaded, out, name=name, description=description, scores=scores, card=card, licence=licence
        )
    if strange := [bundle.name for bundle in outlining if shows(bundle) != "cell"]:
        raise BundleError(f"{listing(strange)}: finds cells by itself; a pipeline takes what outlines cells in boxes")
    detector, classifier, describers = _parts_of([bundle for bundle in loaded if bundle not in outlining])
    given = given_labels(classifier)
    parts_of_cells = [part for one in outlining for part in one.labels.names if one.labels.role(part) == "part"]
    own = [name for name in (*detector.labels.names, *parts_of_cells) if given.resolve(name) is None]
    labels = LabelSet.of([*given.names, *own])
    if not set(given.leaves) <= set(labels.leaves):  # kinds that exclude each other there are kinds of each other here
        labels = given.joined(detector.labels)
        for one in outlining:
            labels = labels.joined(LabelSet.of([part for part in parts_of_cells if part in one.labels.names]))
    labels = replace(labels, attributes=_attributes_of([detector, classifier, *describers]))
    wrong = [label for label in name_these if detector.labels.resolve(label) is None]
    if wrong:
        raise SettingError(f"the detector does not find {wrong}; it finds {list(detector.labels.names)}")
    parts = (detector, classifier, *describers, *outlining)
    if len(taken := [out.resolve().name, *(bundle.name for bundle in parts)]) > len(set(taken)):
        quoted = [f'"{one}"' for one in taken]
        raise SettingError(
            f"the pipeline stands beside its members, so all need other names; got {', '.join(quoted[:-1])} and "
            f"{quoted[-1]}. Choose another --out, or pack a member under another --name"
        )
    placed = [_beside(bundle, out) for bundle in parts]
    info = BundleInfo(
        name=name,
        task="pipeline",
        description=description,
        labels=labels.to_dict(),
        members={bundle.folder.name: bundle.hash for bundle in placed},
        name_these=[labels.require(label) for label in name_these],
        describers=[bundle.name for bundle in describers],
        field_ranges=detector.info.field_ranges,
        scores=kept_scores(scores),
        licence=licence or "; ".join(dict.fromkeys(b.info.licence for b in placed if b.info.licence)),
        credits=list(dict.fromkeys(credit for b in placed for credit in b.info.credits)),
    )
    bundle = make_exam(write_bundle(out, info, {}))
    return rewrite(bundle, bundle.info, {"card.md": card_text(info, labels, card).encode()})


def pack_outliners(
    loaded: Sequence[Bundle],
    out: Path,
    *,
    name: str,
    description: str = "",
    scores: Mapping[str, Any] | None = None,
    card: str = "",
    licence: str | None = None,
    weights: Mapping[str, float] | None = None,
    output: SegmentOutput | None = None,
) -> Bundle:
    """One bundle of several region networks, which are asked together at each stage; copies stand beside it.

    Args:
        loaded: the region networks, all with the same labels.
        out: the bundle's folder.
        name, description, scores, card, licence: as of `pack_pipeline`.
        weights: name of a member → weight; equal where not said.
        output: how their answer is read; None: as the first member's.

    Raises:
        BundleError: one is no region network.
        LabelError: they have different labels.
        SettingError: two have the same name.
    """
    if strange := [one.name for one in loaded if one.info.task != "segment" or shows(one) is not None]:
        raise BundleError(f"only region networks are asked together; {listing(strange)} is none")
    names = [out.resolve().name, *(one.name for one in loaded)]
    if repeated := sorted({one for one in names if names.count(one) > 1}):
        raise SettingError(f"members stand side by side, so each needs its own name; given twice: {listing(repeated)}")
    first = loaded[0]
    output = output or first.info.segment_output or SegmentOutput()
    RegionEnsemble(loaded, output, weights)  # what cannot be asked together is better known now
    placed = [_without_weights(one, out.resolve().parent / one.name) for one in loaded]
    info = BundleInfo(
        name=name,
        task="pipeline",
        description=description,
        labels=first.labels.to_dict(),
        members={bundle.folder.name: bundle.hash for bundle in placed},
        weights=dict(weights or {}),
        segment_output=output,
        scores=kept_scores(scores or {}),
        licence=licence or "; ".join(dict.fromkeys(b.info.licence for b in placed if b.info.licence)),
        credits=list(dict.fromkeys(credit for b in placed for credit in b.info.credits)),
    )
    bundle = make_exam(write_bundle(out, info, {}))
    return rewrite(bundle, bundle.info, {"card.md": card_text(info, first.labels, card).encode()})


def _parts_of(loaded: Sequence[Bundle]) -> tuple[Bundle, Bundle, list[Bundle]]:
    """The detector, the classifier that names, and those that only describe."""
    finding = [bundle for bundle in loaded if bundle.info.task == "detect"]
    telling = [bundle for bundle in loaded if bundle.info.task == "classify"]
    if len(finding) != 1 or not telling or len(finding) + len(telling) < len(loaded):
        raise BundleError(f"a pipeline needs a detector and a classifier; got {[b.info.task for b in loaded]}")
    classifier = next((bundle for bundle in telling if bundle.info.attribute_output is None), telling[0])
    others = [bundle for bundle in telling if bundle is not classifier]
    if plain := [bundle.name for bundle in others if bundle.info.attribute_output is None]:
        raise BundleError(
            f'cells are named by "{classifier.name}" already, and {listing(plain)} gives no attributes; '
            "several classifiers are blended by the step ensemble of a recipe"
        )
    return finding[0], classifier, others


def _attributes_of(bundles: Sequence[Bundle]) -> tuple[AttributeSchema, ...]:
    """The attributes that members give; each may be given by one."""
    given = [a for bundle in bundles if bundle.info.attribute_output is not None for a in bundle.labels.attributes]
    columns = [attribute.column for attribute in given]
    if twice := sorted({column for column in columns if columns.count(column) > 1}):
        raise BundleError(f"given by two members: {listing(twice)}; a pipeline asks one for each attribute")
    return tuple(given)


def pack_ensemble(
    detectors: Sequence[Path],
    classifiers: Mapping[str, Sequence[Path]],
    out: Path,
    *,
    name: str,
    description: str = "",
    weights: Mapping[str, float] | None = None,
    sure: float | None = None,
    temperature: float | None = None,
    threshold: float | None = None,
    fusion: Mapping[str, Any] | None = None,
    of_images: Sequence[Path] = (),
    cell_share: float = 1.0,
) -> Bundle:
    """One bundle that predicts with all members; copies of them, without weights for training, stand beside it.

    Args:
        detectors: their runs; their findings are fused.
        classifiers: name in the blend → the runs of its folds, which share its weight.
        out: the bundle's folder.
        name, description: of the bundle.
        weights: name in the blend → weight; equal where not said. A classifier of weight 0 is left out.
        sure: probability from which the blended name is sure; None: the first classifier's.
        temperature: of the blend; None: 1.
        threshold: score from which a finding counts; None: the first detector's.
        fusion: settings of `Fusion`.
        of_images: runs of classifiers of whole images.
        cell_share: what the others weigh in an image with one cell; 1: those of whole images are left out.

    Raises:
        BundleError: a run has no bundle of its task, or all weights are 0.
        SettingError: two members have the same name, or a setting is not allowed.
    """
    loaded = [Bundle.load(place) for place in detectors]
    shares: dict[str, float] = {}
    for family, places in classifiers.items():
        weight = float((weights or {}).get(family, 1.0))
        if weight <= 0:
            continue
        for bundle in map(Bundle.load, places):
            shares[bundle.name] = weight / len(places)
            loaded.append(bundle)
    if cell_share < 1:
        loaded += [Bundle.load(place) for place in of_images]
    tasks = [bundle.info.task for bundle in loaded]
    if "detect" not in tasks or (classifiers and "classify" not in tasks):
        raise BundleError(f"an ensemble needs detectors, and classifiers with a weight; got {tasks}")
    names = [bundle.name for bundle in loaded]
    if repeated := sorted({one for one in [*names, out.name] if [*names, out.name].count(one) > 1}):
        raise SettingError(f"members stand side by side, so each needs its own name; given twice: {repeated}")
    first = loaded[0]
    naming = next((bundle for bundle in loaded if bundle.info.task == "classify"), None)
    known = first.labels if naming is None else given_labels(naming)
    labels = known.joined(first.labels)
    if naming is not None and first.info.attribute_output is not None:
        own = {attribute.column for attribute in labels.attributes}
        more = [attribute for attribute in first.labels.attributes if attribute.column not in own]
        labels = replace(labels, attributes=(*labels.attributes, *more))
    placed = [_without_weights(bundle, out.resolve().parent / bundle.name) for bundle in loaded]
    found_output = first.info.detect_output or DetectOutput()
    if threshold is not None:
        found_output = found_output.model_copy(update={"thresholds": dict.fromkeys(first.labels.names, threshold)})
    named_output = None
    if naming is not None:
        # Members divide by their own temperatures; the first one's would count twice.
        update = {"temperature": 1.0 if temperature is None else temperature} | ({} if sure is None else {"sure": sure})
        named_output = (naming.info.classify_output or ClassifyOutput()).model_copy(update=update)
    info = BundleInfo(
        name=name,
        task="pipeline",
        description=description,
        labels=labels.to_dict(),
        members={bundle.folder.name: bundle.hash for bundle in placed},
        weights=shares,
        fusion=checked(Fusion, fusion or {}, "fusion"),
        cell_share=cell_share,
        detect_output=found_output,
        classify_output=named_output,
        name_these=[] if naming is None else [label for label in first.labels.names if _a_white_cell(first, label)],
        licence="; ".join(dict.fromkeys(b.info.licence for b in placed if b.info.licence)),
        credits=list(dict.fromkeys(credit for b in placed for credit in b.info.credits)),
    )
    return make_exam(write_bundle(out, info, {}))


def _a_white_cell(detector: Bundle, label: str) -> bool:
    """Whether classifiers are asked about what a detector calls so: all but red cells and platelets."""
    return detector.labels.role(label) not in ("erythrocyte", "platelet")


def _without_weights(bundle: Bundle, target: Path) -> Bundle:
    """A copy that predicts, and cannot be trained on from."""
    kept: dict[str, Path | bytes] = {
        name: bundle.folder / name for name in bundle.info.files if name != "weights.safetensors"
    }
    return write_bundle(target, bundle.info, kept)


def _beside(bundle: Bundle, out: Path) -> Bundle:
    """The bundle in the pipeline's parent folder, under its own name."""
    target = out.resolve().parent / bundle.name
    if bundle.folder.resolve() == target:
        return bundle
    return copy(bundle, target)
