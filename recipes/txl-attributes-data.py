"""TXL-PBC's fields with WBCAtt's attributes, joined by image, for recipes/leukemia_attri.toml --scale txl.

    python recipes/txl-attributes-data.py DATA OUT

DATA holds the folders txl_pbc and wbcatt. ``wbc_subtypes.csv`` says which image of PBC a field of TXL-PBC shows; that
image's one white cell has WBCAtt's attributes. Fields with several white cells, or none, carry none. OUT receives the
dataset, both parts of TXL-PBC joined, with only the fields that have attributes.
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

SCHEMA = "wbcatt"


def attributes_of(data: Path) -> pl.DataFrame:
    """File name of TXL-PBC, and a column per attribute."""
    parts = sorted((data / "wbcatt").glob("pbc_attr_v1_*.csv"))
    table = pl.concat([pl.read_csv(part, infer_schema=False) for part in parts])
    columns = [pl.col(attribute.name).alias(attribute.column) for attribute in attribute_schema(SCHEMA)]
    pairs = pl.read_csv(data / "txl_pbc" / "wbc_subtypes.csv").select(file="image", img_name="pbc_image")
    return pairs.join(table.select("img_name", *columns), on="img_name").drop("img_name")


def joined(dataset: Dataset, table: pl.DataFrame) -> Dataset:
    """The dataset with attributes at the only white cell of each image that has them, and those images only."""
    labels = replace(dataset.labels, attributes=attribute_schema(SCHEMA))
    white = [name for name in labels.names if labels.role(name) == "leukocyte"]
    columns = [attribute.column for attribute in labels.attributes]
    cells = dataset.relabel(labels).cells
    is_white = pl.col("label").cast(pl.String).is_in(white)
    frame = cells.frame.drop(columns).with_columns(
        file=pl.when(is_white & (is_white.sum().over("image_id") == 1)).then(
            pl.col("image_id").str.split("/").list.last()
        )
    )
    types = schema(labels)
    frame = frame.join(table, on="file", how="left", maintain_order="left").select(
        [pl.col(name).cast(kind) for name, kind in types.items()]
    )
    told = frame.filter(pl.col(columns[0]).is_not_null())["image_id"].unique()
    images = dataset.images.frame.filter(pl.col("image_id").is_in(told.implode())).with_columns(
        split=pl.lit(None, pl.String)
    )
    step = {"step": "join attributes", "schema": SCHEMA, "cells": len(told)}
    whole = replace(dataset, cells=Cells(frame, labels), provenance=(*dataset.provenance, step))
    return whole.of_images(type(dataset.images)(images))


def main() -> None:
    """Read, join, write."""
    parser = argparse.ArgumentParser(description="TXL-PBC's fields with WBCAtt's attributes.")
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    given = parser.parse_args()
    read = formats.read(given.data / "txl_pbc", "yolo", formats.ReadOptions(name="txl"))
    dataset = joined(read.dataset, attributes_of(given.data))
    dataset.write(given.out)
    print(f"{dataset}, {dataset.provenance[-1]['cells']} white cells with attributes, in {given.out}")


if __name__ == "__main__":
    main()
