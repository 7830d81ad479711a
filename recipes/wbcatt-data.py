"""The data of recipes/wbcatt.toml: PBC's cells, with WBCAtt's attributes where an image has them.

    python recipes/wbcatt-data.py DATA OUT [--split train]

DATA holds the folders pbc and wbcatt; OUT receives the dataset. Images without attributes teach names only.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import polars as pl

from cytolens import formats
from cytolens.cells import Cells, schema
from cytolens.dataset import Dataset
from cytolens.labels import attribute_schema
from cytolens.problems import DatasetError

SCHEMA = "wbcatt"


def read_attributes(folder: Path) -> pl.DataFrame:
    """The rows of all parts: file name, and a column per attribute. "nil" is a value there, not a missing one."""
    files = sorted(folder.glob("pbc_attr_v1_*.csv"))
    if not files:
        raise DatasetError(f"{folder}: has no pbc_attr_v1_*.csv")
    table = pl.concat([pl.read_csv(file, infer_schema=False) for file in files])
    attributes = attribute_schema(SCHEMA)
    for attribute in attributes:
        if strange := set(table[attribute.name]) - set(attribute.values):
            raise DatasetError(f"{folder}: {attribute.name} has the unknown values {sorted(strange)}")
    return table.select(pl.col("img_name").alias("file"), *[pl.col(a.name).alias(a.column) for a in attributes])


def joined(dataset: Dataset, table: pl.DataFrame) -> Dataset:
    """The dataset with the attributes of each image's cell, joined by the image's file name."""
    labels = replace(dataset.labels, attributes=attribute_schema(SCHEMA))
    cells = dataset.relabel(labels).cells
    columns = [attribute.column for attribute in labels.attributes]
    file = pl.col("image_id").str.split("/").list.last().alias("file")
    found = cells.frame.drop(columns).with_columns(file).join(table, on="file", how="left", validate="m:1")
    types = schema(labels)
    frame = found.select([pl.col(name).cast(types[name]) for name in types])
    step = {"step": "join attributes", "schema": SCHEMA, "cells": int(frame[columns[0]].is_not_null().sum())}
    return replace(dataset, cells=Cells(frame, labels), provenance=(*dataset.provenance, step))


def main() -> None:
    """Read, join, write."""
    parser = argparse.ArgumentParser(description="PBC's cells with WBCAtt's attributes as one dataset.")
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--split", help="only this part of PBC")
    parser.add_argument("--limit", type=int, help="only so many images, spread evenly, for a trial")
    given = parser.parse_args()
    options = formats.ReadOptions(name="pbc", split=given.split, licence="PBC: CC BY 4.0; WBCAtt attributes: MIT")
    pbc = formats.read(given.data / "pbc", "image_folder", options).dataset
    if given.limit:
        pbc = pbc.of_images(replace(pbc.images, frame=pbc.images.frame.gather_every(len(pbc.images) // given.limit)))
    dataset = joined(pbc, read_attributes(given.data / "wbcatt"))
    dataset.write(given.out)
    print(f"{dataset}, {dataset.provenance[-1]['cells']} with attributes, in {given.out}")


if __name__ == "__main__":
    main()
