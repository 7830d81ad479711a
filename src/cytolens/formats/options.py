"""What a reader or writer of a foreign format can be told."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, field_validator, model_validator

from cytolens.formats.sample_ids import SampleGroup
from cytolens.labels import LabelSet
from cytolens.problems import SettingError, did_you_mean, listing

# How the pixels of a run-length code are numbered: row by row, or column by column.
Order = Literal["row", "column"]


class _Options(BaseModel):
    """Frozen settings; an unknown key is an error that names the nearest known one."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    @model_validator(mode="before")
    @classmethod
    def _known_keys_only(cls: type[Self], data: Any) -> Any:
        unknown = [key for key in data if key not in cls.model_fields] if isinstance(data, dict) else []
        if unknown:
            hint = did_you_mean(unknown[0], cls.model_fields)
            raise SettingError(
                f'unknown option "{unknown[0]}". {hint + " " if hint else ""}Options: {listing(cls.model_fields, 20)}'
            )
        return data

    @field_validator("order", mode="before", check_fields=False)
    @classmethod
    def _known_order(cls, value: Any) -> Any:
        if value is not None and value not in get_args(Order):
            hint = did_you_mean(str(value), get_args(Order))
            raise SettingError(f'order: "{value}" is unknown. {hint + " " if hint else ""}Allowed: row, column')
        return value


class ReadOptions(_Options):
    """How to read a source.

    Attributes:
        name: the dataset's name; None takes the name of the source's folder or file.
        labels: the label set to speak; None takes the names exactly as the files give them.
        images: the folder with the images, when they are not beside the annotations.
        group_pattern: a regular expression searched in each image_id; its first group (or the whole
            match) is the image's group: patient, slide, plate.
        split: keep only this part of the source; where the source declares no parts, all of it is this part.
        allow_missing_images: keep annotations whose image file is not there.
        columns: our column name → the file's column name, for CSV files.
        complete_for: labels annotated exhaustively in these images; None: all labels.
        licence: under what terms the data may be used.
        source: where the data come from (a citation or an address), kept in the provenance.
        reference: COCO's instances JSON that a COCO results JSON refers to.
        order: how run-length codes of a CSV number the pixels; None: as its columns say
            (``EncodedPixels``: column by column; ``annotation``, ``predicted``: row by row).
        size_two: LeukemiaAttri's label files only: what the code 2 says in the column of the cell size, "large" or, as
            in their other columns, "ignore" (the value is missing).
        label: the label of all cells that the source itself does not name, for label images.
        sample_group: the group that a Sartorius sample id gives: its "well" (of its vessel), or the whole "vessel".
    """

    name: str | None = None
    labels: LabelSet | None = None
    images: Path | None = None
    group_pattern: str | None = None
    split: str | None = None
    allow_missing_images: bool = False
    columns: dict[str, str] | None = None
    complete_for: tuple[str, ...] | None = None
    licence: str = ""
    source: str = ""
    reference: Path | None = None
    order: Order | None = None
    size_two: Literal["large", "ignore"] = "large"
    label: str | None = None
    sample_group: SampleGroup = "well"


class WriteOptions(_Options):
    """How to write a dataset.

    Attributes:
        copy_images: put a copy of each image file where the format expects it.
        results: COCO only: write a results list (findings) instead of an instances file.
        reference: COCO results only: the instances JSON whose ids are to be used.
        order: how run-length codes number the pixels; None: row by row.
    """

    copy_images: bool = False
    results: bool = False
    reference: Path | None = None
    order: Order | None = None
