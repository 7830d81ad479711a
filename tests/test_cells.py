from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cytolens import masks
from cytolens.cells import Cells, cell_ids, join, schema
from cytolens.labels import AttributeSchema, LabelSet, attribute_schema
from cytolens.problems import DatasetError, LabelError, SettingError
from tests.strategies import cell_tables, label_sets, published_sets

ATTRIBUTES = (AttributeSchema("look", "size", ("small", "big"), ordered=True),)
SMEAR = LabelSet.of(["WBC", "neutrophil", "BNE", "SNE", "LY", "PLATELET", "organoid"], ATTRIBUTES)
MASK = masks.encode(np.eye(4, dtype=bool))


def smear() -> Cells:
    return Cells.of(
        SMEAR,
        image_id=["a.png", "a.png", "b.png", "a.png"],
        boxes=[[0, 0, 4, 4], [1, 1, 3, 2.5], [-2, 0, 5, 5], [2, 2, 2, 9]],
        label=["BNE", "LY", None, "WBC"],
        source="human:ab",
        mask=[MASK, None, None, None],
        attributes={"look.size": ["small", None, "big", None]},
        ignore=[False, False, True, False],
    )


# -- the columns ----------------------------------------------------------------------------------


def test_the_columns_are_those_of_the_design() -> None:
    assert schema(SMEAR) == {
        "cell_id": pl.String,
        "image_id": pl.String,
        "x_min": pl.Float32,
        "y_min": pl.Float32,
        "x_max": pl.Float32,
        "y_max": pl.Float32,
        "label": pl.Enum(["WBC", "neutrophil", "BNE", "SNE", "LY", "PLATELET", "organoid"]),
        "probabilities": pl.Array(pl.Float32, 5),
        "score": pl.Float32,
        "mask": pl.Binary,
        "look.size": pl.Enum(["small", "big"]),
        "look.size_probabilities": pl.Array(pl.Float32, 2),
        "source": pl.String,
        "ignore": pl.Boolean,
        "counted": pl.Boolean,
        "refer": pl.Boolean,
    }


@given(cell_tables(), st.data())
@settings(max_examples=50)
def test_every_table_has_every_column_in_order(cells: Cells, data: st.DataObject) -> None:
    keep = np.array(data.draw(st.lists(st.booleans(), min_size=len(cells), max_size=len(cells))), bool)
    for table in (
        cells,
        Cells.empty(cells.labels),
        cells.filter(keep),
        cells.concat(cells),
        cells.relabel(cells.labels),
    ):
        assert list(table.frame.schema.items()) == list(schema(cells.labels).items())
    assert len(cells.filter(keep)) == keep.sum()
    assert len(Cells.empty(cells.labels)) == 0
    assert cells.boxes().shape == (len(cells), 4)
    assert cells.boxes().dtype == cells.scores().dtype == np.float32
    assert cells.probabilities().shape == (len(cells), len(cells.labels.leaves))
    assert len(cells.masks()) == len(cells.label_names()) == len(cells.scores()) == len(cells)


def test_a_person_leaves_score_and_probabilities_open() -> None:
    cells = smear()
    assert cells.frame["score"].null_count() == cells.frame["probabilities"].null_count() == 4
    assert cells.scores().tolist() == [1, 1, 1, 1]
    assert np.isnan(cells.probabilities()).all()
    assert cells.masks() == [MASK, None, None, None]
    assert cells.label_names() == ["BNE", "LY", None, "WBC"]
    assert cells.frame["look.size"].to_list() == ["small", None, "big", None]
    assert cells.frame["ignore"].to_list() == [False, False, True, False]
    assert (cells.frame["counted"].all(), cells.frame["refer"].any()) == (True, False)
    assert cells.boxes()[2].tolist() == [-2, 0, 5, 5], "import keeps the values as given"


def test_a_model_gives_scores_and_some_probabilities() -> None:
    shares = np.array([[0.5, 0.25, 0.25, 0, 0], [1, 0, 0, 0, 0]], np.float32)
    cells = Cells.of(
        SMEAR,
        image_id=["a", "a"],
        boxes=np.zeros((2, 4)),
        label=["BNE", None],
        source="bundle:x@1",
        score=[0.5, 0.25],
        probabilities=shares,
        known=[True, False],
    )
    assert cells.scores().tolist() == [0.5, 0.25]
    np.testing.assert_array_equal(cells.probabilities()[0], shares[0])
    assert np.isnan(cells.probabilities()[1]).all()
    assert cells.frame["probabilities"].null_count() == 1


@given(label_sets(least=0))
def test_empty_tables_work_everywhere(labels: LabelSet) -> None:
    cells = Cells.of(
        labels, image_id=[], boxes=[], label=[], source="x", probabilities=np.zeros((0, len(labels.leaves)))
    )
    assert cells.frame.equals(Cells.empty(labels).frame)
    assert cells.boxes().shape == (0, 4)
    assert cells.probabilities().shape == (0, len(labels.leaves))
    assert list(cells.by_image()) == []
    assert len(cells.relabel(LabelSet.shipped("bccd"))) == len(cells.with_boxes([])) == len(cells.with_masks([])) == 0
    assert len(join([], labels)) == len(join([cells, cells], labels)) == 0
    assert "0 cells in 0 images" in repr(cells)


def test_a_set_without_labels_has_cells_too() -> None:
    cells = Cells.of(LabelSet(()), image_id=["a"], boxes=[[0, 0, 1, 1]], label=[None], source="x")
    assert cells.probabilities().shape == (1, 0)
    assert cells.relabel(SMEAR).label_names() == [None]


def test_arrays_and_series_are_columns_too() -> None:
    cells = Cells.of(
        SMEAR,
        image_id=np.array(["a", "b"]).tolist(),
        image_key=pl.Series([None, "f" * 64]),  # pyright: ignore[reportArgumentType]
        boxes=pl.DataFrame({"a": [0, 1], "b": [0, 1], "c": [5, 6], "d": [5, 6]}).to_numpy(),
        label=pl.Series(["LY", None]),  # pyright: ignore[reportArgumentType]
        source="x",
        refer=np.array([True, False]),
    )
    assert cells.frame["cell_id"].to_list() == [*cell_ids(["x"], ["a"]), *cell_ids(["x"], ["f" * 64])]
    assert cells.frame["refer"].to_list() == [True, False]


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"label": ["LYM"]}, 'unknown values of "label": LYM. Did you mean "LY"? Allowed here: WBC, neutrophil'),
        ({"label": ["lymphocyte"]}, 'unknown values of "label": lymphocyte'),
        ({"attributes": {"look.size": ["bigg"]}}, 'unknown values of "look.size": bigg. Did you mean "big"?'),
        ({"attributes": {"look.siz": ["big"]}}, "attributes not in this label set: look.siz"),
    ],
)
def test_what_the_label_set_lacks_is_a_label_error(parts: dict[str, object], message: str) -> None:
    given_parts = {"image_id": ["a"], "boxes": [[0, 0, 1, 1]], "label": ["LY"], "source": "x"} | parts
    with pytest.raises(LabelError) as caught:
        Cells.of(SMEAR, **given_parts)  # pyright: ignore[reportArgumentType]
    assert message in str(caught.value)


@pytest.mark.parametrize("column", ["image_id", "label", "image_key"])
def test_columns_are_as_long_as_there_are_boxes(column: str) -> None:
    parts = {"image_id": ["a"], "boxes": [[0, 0, 1, 1]], "label": ["LY"], "source": "x"} | {column: ["LY", "LY"]}
    with pytest.raises(ValueError, match=f'1 boxes need as many values of "{column}"; got 2'):
        Cells.of(SMEAR, **parts)  # pyright: ignore[reportArgumentType]


def test_another_frame_is_refused_and_its_columns_named() -> None:
    frame = smear().frame
    with pytest.raises(DatasetError, match=r"wrong \['score'\], unknown \['note'\]"):
        Cells(frame.drop("score").with_columns(note=pl.lit("x")), SMEAR)
    with pytest.raises(DatasetError, match=r"wrong \['label', 'probabilities', 'look.size'"):
        Cells(frame.drop("look.size", "look.size_probabilities"), LabelSet.of(["WBC"], ATTRIBUTES))


def test_the_order_of_the_columns_is_mended() -> None:
    cells = smear()
    turned = Cells(cells.frame.select(cells.frame.columns[::-1]), SMEAR)
    assert turned.frame.equals(cells.frame)
    assert len(turned.concat(cells)) == 8


# -- ids ------------------------------------------------------------------------------------------


def test_ids_are_digest_and_ordinal_per_source_and_image() -> None:
    ids = cell_ids(["s", "s", "t", "s"], ["a", "b", "a", "a"])
    assert [one.split("-")[1] for one in ids] == ["0000", "0000", "0000", "0001"]
    assert ids[0].split("-")[0] == ids[3].split("-")[0]
    assert len(set(ids)) == 4
    assert ids == cell_ids(["s", "s", "t", "s"], ["a", "b", "a", "a"])
    # Ids stay what they are from one version to the next, because edits refer to them: printf 's\na' | sha256sum
    assert ids[0] == "009fa556751b-0000"


@given(cell_tables(), st.text(max_size=5))
@settings(max_examples=50)
def test_ids_are_the_same_every_time_and_unique(cells: Cells, source: str) -> None:
    def make() -> list[str]:
        parts = {"image_id": cells.frame["image_id"].to_list(), "boxes": cells.boxes(), "label": cells.label_names()}
        return Cells.of(cells.labels, **parts, source=source).frame["cell_id"].to_list()

    assert make() == make()
    assert len(set(make())) == len(cells)


def test_ids_follow_the_image_not_its_name() -> None:
    def ids(name: str, key: list[str | None] | None) -> list[str]:
        made = Cells.of(SMEAR, image_id=[name], image_key=key, boxes=[[0, 0, 1, 1]], label=["LY"], source="x")
        return made.frame["cell_id"].to_list()

    assert ids("a", ["k"]) == ids("b", ["k"])
    assert ids("a", None) == ids("a", [None]) != ids("b", None)


def test_two_images_of_the_same_bytes_share_no_id() -> None:
    cells = Cells.of(
        SMEAR, image_id=["a", "b"], image_key=["k", "k"], boxes=np.zeros((2, 4)), label=["LY", "LY"], source="x"
    )
    assert cells.frame["cell_id"].n_unique() == 2


# -- looking --------------------------------------------------------------------------------------


@given(cell_tables(), st.data())
@settings(max_examples=50)
def test_where_a_label_takes_in_its_kinds_and_aliases(cells: Cells, data: st.DataObject) -> None:
    labels = cells.labels
    word = data.draw(st.sampled_from([*labels.names, *labels.aliases]))
    wanted = labels.require(word)
    expected = [n is not None and (n == wanted or wanted in labels.ancestors(n)) for n in cells.label_names()]
    assert cells.where(label=word).frame.equals(cells.frame.filter(expected))
    named = [name is None or hit for name, hit in zip(cells.label_names(), expected, strict=True)]
    assert cells.where(label=[word, None]).frame.equals(cells.frame.filter(named))


def test_where_joins_conditions() -> None:
    cells = smear()
    assert cells.where(label="leukocyte").label_names() == ["BNE", "LY", "WBC"]
    assert cells.where(label="PNN").label_names() == ["BNE"]
    assert cells.where(label=["SNE", "lymphocyte"]).label_names() == ["LY"]
    assert cells.where(label=[]).label_names() == []
    assert cells.where(label=None).frame["image_id"].to_list() == ["b.png"]
    assert cells.where(ignore=False, image_id=["b.png", "a.png"], label="LY").label_names() == ["LY"]
    assert cells.where(**{"look.size": "big"}).label_names() == [None]
    assert len(cells.where(score=None)) == 4
    assert len(cells.where()) == 4


def test_where_names_what_it_does_not_know() -> None:
    with pytest.raises(LabelError, match=r'unknown label "lymphocit"\. Did you mean "lymphocyte"\?'):
        smear().where(label="lymphocit")
    with pytest.raises(DatasetError, match=r'no column "labell"\. Did you mean "label"\? Columns: cell_id'):
        smear().where(labell="LY")


def test_cells_image_by_image() -> None:
    cells = smear()
    assert [(image_id, len(part)) for image_id, part in cells.by_image()] == [("a.png", 3), ("b.png", 1)]
    assert cells.of_image("b.png").boxes().tolist() == [[-2, 0, 5, 5]]
    assert len(cells.of_image("c.png")) == 0
    assert "4 cells in 2 images" in repr(cells)
    assert cells.to_polars() is cells.frame


# -- changing -------------------------------------------------------------------------------------


def test_changes_make_new_tables() -> None:
    cells = smear()
    before = cells.frame.clone()
    changed = cells.with_boxes(cells.boxes() * 2).with_masks([None, MASK, None, None])
    changed = changed.with_columns(
        score=0.5, counted=False, refer=[True, False, True, False], source=pl.col("image_id")
    )
    assert changed.boxes().tolist() == (cells.boxes() * 2).tolist()
    assert changed.masks() == [None, MASK, None, None]
    assert changed.scores().tolist() == [0.5] * 4
    assert changed.frame["refer"].to_list() == [True, False, True, False]
    assert changed.frame["source"].to_list() == cells.frame["image_id"].to_list()
    assert cells.frame.equals(before)


def test_with_columns_takes_numpy_scalars_and_nothing() -> None:
    cells = smear().with_columns(score=np.float32(0.25), ignore=np.bool_(True), label=None, mask=MASK)
    assert cells.scores().tolist() == [0.25] * 4
    assert cells.frame["ignore"].all()
    assert cells.label_names() == [None] * 4
    assert cells.masks() == [MASK] * 4


def test_with_columns_refuses_a_column_that_is_none() -> None:
    with pytest.raises(DatasetError, match=r'no column "scores"\. Did you mean "score"\?'):
        smear().with_columns(scores=1.0)


def test_concat_keeps_order_and_asks_for_one_label_set() -> None:
    cells = smear()
    joined = cells.where(image_id="b.png").concat(cells.where(image_id="a.png"), Cells.empty(SMEAR))
    assert joined.frame["image_id"].to_list() == ["b.png", "a.png", "a.png", "a.png"]
    assert join([cells, cells], SMEAR).frame.equals(cells.concat(cells).frame)
    with pytest.raises(LabelError, match="different label sets"):
        cells.concat(Cells.empty(LabelSet.of(["WBC"])))
    reordered = LabelSet.of(["neutrophil", "WBC", "BNE", "SNE", "LY", "PLATELET", "organoid"], ATTRIBUTES)
    with pytest.raises(LabelError, match=r"relabel\(to\) one of them first"):
        cells.concat(cells.relabel(reordered))


# -- relabelling ----------------------------------------------------------------------------------


@given(published_sets().flatmap(lambda labels: cell_tables(labels, found=True)), published_sets())
@settings(max_examples=60)
def test_relabelling_follows_the_mapping(cells: Cells, to: LabelSet) -> None:
    mapping = cells.labels.mapping_to(to)
    moved = cells.relabel(to, missing="null")
    assert moved.labels == to
    assert moved.label_names() == [None if name is None else mapping[name] for name in cells.label_names()]
    dropped = cells.relabel(to, missing="drop")
    keep = [name is None or mapping[name] is not None for name in cells.label_names()]
    assert dropped.frame.equals(moved.frame.filter(keep))
    other = [name for name in cells.frame.columns if name not in ("label", "probabilities")]
    assert moved.frame.select(other).equals(cells.frame.select(other))
    if all(keep):
        assert cells.relabel(to).frame.equals(moved.frame)
    else:
        with pytest.raises(LabelError, match="no counterpart for"):
            cells.relabel(to)


@given(published_sets().flatmap(lambda labels: cell_tables(labels, found=True)), published_sets())
@settings(max_examples=60)
def test_relabelling_adds_up_the_probabilities(cells: Cells, to: LabelSet) -> None:
    mapping = cells.labels.mapping_to(to)
    moved = cells.relabel(to, missing="null").probabilities()
    for before, after in zip(cells.probabilities(), moved, strict=True):
        expected = dict.fromkeys(to.leaves, 0.0)
        for leaf, share in zip(cells.labels.leaves, before, strict=True):
            if mapping[leaf] in expected:
                expected[str(mapping[leaf])] += share
        if to == cells.labels or sum(expected.values()) > 0:
            np.testing.assert_allclose(after, list(expected.values()), rtol=1e-5)
        else:
            assert np.isnan(after).all(), "unknown stays unknown, and what has no place is not known"


def test_relabelling_to_the_same_set_is_the_same_table() -> None:
    cells = smear()
    assert cells.relabel(SMEAR) is cells


def test_relabelling_drops_and_adds_attributes() -> None:
    bare = smear().relabel(LabelSet.of(SMEAR.names))
    assert "look.size" not in bare.frame.columns
    wbcatt = smear().relabel(LabelSet.of(SMEAR.names, attribute_schema("wbcatt")))
    assert wbcatt.frame["wbcatt.cell_size"].null_count() == 4


def test_attributes_keep_their_probabilities() -> None:
    given = [[0.25, 0.75], None, [np.nan, np.nan], [1, 0]]
    spoken = {"look.size": ["big", None, None, "small"], "look.size_probabilities": given}
    cells = Cells.of(
        SMEAR, image_id=["a"] * 4, boxes=np.ones((4, 4)), label=[None] * 4, source="bundle:x@0", attributes=spoken
    )
    table = cells.attribute_probabilities("look.size")
    assert cells.attribute_values("look.size") == ["big", None, None, "small"]
    assert table[[0, 3]].tolist() == [[0.25, 0.75], [1, 0]]
    assert np.isnan(table[[1, 2]]).all()
    assert cells.frame["look.size_probabilities"].is_null().to_list() == [False, True, True, False]
    for same in (cells.filter(np.array([True] * 4)), cells.relabel(LabelSet.of(["LY"], ATTRIBUTES), missing="null")):
        assert np.array_equal(same.attribute_probabilities("look.size"), table, equal_nan=True)
    assert np.isnan(smear().attribute_probabilities("look.size")).all()
    for ask in (cells.attribute_values, cells.attribute_probabilities):
        with pytest.raises(DatasetError, match=r'no attribute "look.siz"\. Did you mean "look.size"\?'):
            ask("look.siz")


def test_relabelling_does_not_mix_attribute_values() -> None:
    other = LabelSet.of(SMEAR.names, (AttributeSchema("look", "size", ("big", "small")),))
    with pytest.raises(LabelError, match=r"attributes with other values .*: look\.size"):
        smear().relabel(other)


def test_relabelling_says_what_to_do_with_what_is_missing() -> None:
    cells = smear()
    to = LabelSet.shipped("pbc")
    with pytest.raises(LabelError, match="no counterpart for WBC among: SNE, BNE, NEUTROPHIL"):
        cells.relabel(to)
    assert cells.relabel(to, missing="null").label_names() == ["BNE", "LY", None, None]
    assert cells.relabel(to, missing="drop").label_names() == ["BNE", "LY", None]
    with pytest.raises(SettingError, match='missing="ignore" is unknown; allowed: error, null, drop'):
        cells.relabel(to, missing="ignore")


# -- on disk --------------------------------------------------------------------------------------


@given(cells=cell_tables())
@settings(max_examples=60)
def test_a_table_comes_back_from_disk(tmp_path_factory: pytest.TempPathFactory, cells: Cells) -> None:
    path = tmp_path_factory.getbasetemp() / "färbung [1]" / "cells.parquet"
    cells.write_parquet(path)
    again = Cells.read_parquet(path)
    assert again.labels == cells.labels
    assert again.labels.to_dict() == cells.labels.to_dict()
    assert list(again.frame.schema.items()) == list(cells.frame.schema.items())
    assert again.frame.equals(cells.frame)


def test_a_table_without_labels_comes_back_from_disk(tmp_path: Path) -> None:
    cells = Cells.of(LabelSet(()), image_id=["a"], boxes=[[0, 0, 1, 1]], label=[None], source="x")
    cells.write_parquet(tmp_path / "cells.parquet")
    assert Cells.read_parquet(tmp_path / "cells.parquet").frame.equals(cells.frame)


def test_other_programs_can_read_the_file(tmp_path: Path) -> None:
    smear().write_parquet(tmp_path / "cells.parquet")
    frame = pl.read_parquet(tmp_path / "cells.parquet")
    assert frame["label"].cast(pl.String).to_list() == ["BNE", "LY", None, "WBC"]
    metadata = pl.read_parquet_metadata(tmp_path / "cells.parquet")
    assert json.loads(metadata["cytolens_labels"])["names"] == list(SMEAR.names)


def test_a_failing_write_leaves_no_file_and_keeps_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, cells = tmp_path / "cells.parquet", smear()

    def full(self: pl.DataFrame, file: Path, **_: object) -> None:
        Path(file).write_bytes(b"PAR1 half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(pl.DataFrame, "write_parquet", full)
        with pytest.raises(OSError, match="No space left"):
            cells.write_parquet(path)
    assert list(tmp_path.iterdir()) == []
    cells.write_parquet(path)
    with monkeypatch.context() as patched:
        patched.setattr(pl.DataFrame, "write_parquet", full)
        with pytest.raises(OSError, match="No space left"):
            Cells.empty(SMEAR).write_parquet(path)
    assert list(tmp_path.iterdir()) == [path]
    assert Cells.read_parquet(path).frame.equals(cells.frame)


def no_metadata(path: Path) -> None:
    smear().frame.write_parquet(path)


def other_labels(path: Path) -> None:
    smear().frame.write_parquet(path, metadata={"cytolens_labels": json.dumps(LabelSet.of(["WBC"]).to_dict())})


def no_label_set(path: Path) -> None:
    smear().frame.write_parquet(path, metadata={"cytolens_labels": '["WBC"]'})


def cut_in_half(path: Path) -> None:
    smear().write_parquet(path)
    path.write_bytes(path.read_bytes()[:-100])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def csv(path: Path) -> None:
    smear().frame.select("cell_id", "label").write_csv(path)


@pytest.mark.parametrize("spoil", [no_metadata, other_labels, no_label_set, cut_in_half, empty, csv, Path.mkdir])
def test_a_file_that_is_none_is_a_dataset_error(spoil: Callable[[Path], object], tmp_path: Path) -> None:
    spoil(tmp_path / "cells.parquet")
    with pytest.raises(DatasetError, match=r"not a table of cells"):
        Cells.read_parquet(tmp_path / "cells.parquet")


def test_a_missing_file_is_a_dataset_error(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"cells\.parquet: there is no such file"):
        Cells.read_parquet(tmp_path / "cells.parquet")
