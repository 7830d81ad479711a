from __future__ import annotations

import json
import uuid
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given

from cytolens import formats, masks
from cytolens.cells import Cells
from cytolens.dataset import Dataset
from cytolens.formats import Imported, ReadOptions
from cytolens.images import Images
from cytolens.labels import LabelSet
from cytolens.problems import FormatError
from tests import reference
from tests.contracts import RELAXED, FormatContract, filed_datasets, save_picture, small_dataset, temporary_folder


class TestGeojson(FormatContract):
    format = "geojson"
    annotation_suffixes = (".geojson",)


# -- the rules of RFC 7946 ----------------------------------------------------------------------------


def area(ring: list[list[float]]) -> float:
    return sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in pairwise(ring)) / 2


def assert_ring(ring: Any, outer: bool) -> None:
    assert isinstance(ring, list)
    assert len(ring) >= 4  # 3.1.6: four or more positions
    assert ring[0] == ring[-1]  # the first and the last are equal
    for position in ring:
        assert len(position) == 2
        assert all(isinstance(value, (int, float)) and np.isfinite(value) for value in position)
    assert area(ring) > 0 if outer else area(ring) < 0  # outer rings counterclockwise, holes clockwise


def assert_collection(data: Any) -> None:
    """RFC 7946: 3.3 FeatureCollection, 3.2 Feature, 3.1.6 Polygon, 3.1.7 MultiPolygon; what QuPath 0.4 looks for."""
    assert data["type"] == "FeatureCollection"
    assert not {"coordinates", "geometry", "geometries", "properties"} & data.keys()  # 7.1
    assert "crs" not in data
    for feature in data["features"]:
        assert feature["type"] == "Feature"
        assert str(uuid.UUID(feature["id"])) == feature["id"]
        geometry, properties = feature["geometry"], feature["properties"]
        assert geometry["type"] in ("Polygon", "MultiPolygon")
        polygons = [geometry["coordinates"]] if geometry["type"] == "Polygon" else geometry["coordinates"]
        for outer, *holes in polygons:
            assert_ring(outer, True)
            for hole in holes:
                assert_ring(hole, False)
        assert properties["objectType"] in ("annotation", "detection")
        if "classification" in properties:
            assert isinstance(properties["classification"]["name"], str)
            colour = properties["classification"]["color"]
            assert len(colour) == 3
            assert all(isinstance(value, int) and 0 <= value <= 255 for value in colour)
        assert all(isinstance(value, (int, float)) for value in properties.get("measurements", {}).values())


@RELAXED
@given(data=filed_datasets())
def test_what_is_written_keeps_the_rules(data: Dataset) -> None:
    with temporary_folder() as folder:
        formats.write(data, folder / "out", "geojson")
        files = sorted((folder / "out").rglob("*.geojson"))
        assert len(files) == len(data.images)
        contents = [json.loads(path.read_text(encoding="utf-8")) for path in files]
        for content in contents:
            assert_collection(content)
        ids = [feature["id"] for content in contents for feature in content["features"]]
        assert len(set(ids)) == len(ids) == int(data.cells.frame["counted"].sum())


# -- writing ----------------------------------------------------------------------------------------


def written(folder: Path, mask: np.ndarray | None = None, **columns: Any) -> dict[str, Any]:
    """The one feature of a file about one cell of an image of 20 × 10 px."""
    images = Images.of([{"image_id": "a.png", "width_px": 20, "height_px": 10}])
    given = {"boxes": [[1, 2, 7.5, 4]], "label": ["WBC"], "mask": [None if mask is None else masks.encode(mask)]}
    cells = Cells.of(LabelSet.of(["RBC", "WBC"]), image_id=["a.png"], source="human:ab", **(given | columns))
    formats.write(Dataset(images, cells), folder / "a.geojson", "geojson")
    content = json.loads((folder / "a.geojson").read_text())
    assert_collection(content)
    (feature,) = content["features"]
    return feature


def test_a_cell_without_a_mask_is_its_rectangle(tmp_path: Path) -> None:
    feature = written(tmp_path)
    ring = [[1, 2], [7.5, 2], [7.5, 4], [1, 4], [1, 2]]
    assert feature["geometry"] == {"type": "Polygon", "coordinates": [ring]}
    assert feature["properties"]["objectType"] == "annotation"
    assert feature["properties"]["classification"]["name"] == "WBC"
    assert "measurements" not in feature["properties"]


def test_a_finding_is_a_detection_with_its_score(tmp_path: Path) -> None:
    properties = written(tmp_path, score=[0.3], ignore=[True], label=[None])["properties"]
    assert properties == {"objectType": "detection", "measurements": {"score": 0.3, "ignore": 1}}


def test_a_mask_that_is_a_rectangle_has_one_point_more(tmp_path: Path) -> None:
    mask = np.zeros((10, 20), bool)
    mask[2:4, 1:7] = True
    (ring,) = written(tmp_path, mask)["geometry"]["coordinates"]
    assert len(ring) == 6
    save_picture(tmp_path / "a.png")
    assert read(tmp_path / "a.geojson").dataset.cells.masks() == [masks.encode(mask)]


def test_holes_and_parts(tmp_path: Path) -> None:
    mask = np.zeros((10, 20), bool)
    mask[1:6, 1:6] = True
    mask[3, 3] = False
    geometry = written(tmp_path, mask)["geometry"]
    assert (geometry["type"], len(geometry["coordinates"])) == ("Polygon", 2)
    mask[8, 8] = True
    geometry = written(tmp_path, mask)["geometry"]
    assert geometry["type"] == "MultiPolygon"
    assert sorted(len(polygon) for polygon in geometry["coordinates"]) == [1, 2]


def test_one_file_is_for_one_image(tmp_path: Path) -> None:
    data = small_dataset(tmp_path / "images")
    with pytest.raises(FormatError, match=r"one GeoJSON file is for one image, and there are 2\. Name a folder"):
        formats.write(data, tmp_path / "out.geojson", "geojson")
    one = data.where(split="train")
    formats.write(one, tmp_path / "out.geojson", "geojson")
    back = read(tmp_path / "out.geojson", images=tmp_path / "images").dataset
    assert back.cells.label_names() == ["WBC"]
    assert back.images.rows()[0] | {"image_id": ""} == one.images.rows()[0] | {
        "image_id": "",
        "sha256": back.images.frame["sha256"][0],
    }


# -- reading ----------------------------------------------------------------------------------------

SQUARE = [[2, 2], [6, 2], [6, 6], [2, 6], [2, 2]]
TRIANGLE = [[2, 2], [10, 2], [2, 8], [2, 2]]


def read(source: Path, **options: object) -> Imported:
    return formats.read(source, "geojson", ReadOptions.model_validate(options))


def polygon(*rings: Any, **properties: Any) -> dict[str, Any]:
    return {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": list(rings)}, "properties": properties}


def file(folder: Path, content: Any, name: str = "a.geojson") -> Path:
    save_picture(folder / "a.png")
    (folder / name).write_text(json.dumps(content))
    return folder / name


def collection(*features: Any) -> dict[str, Any]:
    return {"type": "FeatureCollection", "features": list(features)}


@pytest.mark.parametrize("form", ["collection", "list", "alone"])
def test_a_polygon_is_a_mask_with_its_box(tmp_path: Path, form: str) -> None:
    feature = polygon(TRIANGLE, objectType="annotation", classification={"name": "WBC", "color": [1, 2, 3]})
    content = {"collection": collection(feature), "list": [feature], "alone": feature}[form]
    cells = read(file(tmp_path, content)).dataset.cells
    assert cells.boxes().tolist() == [[2, 2, 10, 8]]
    assert cells.label_names() == ["WBC"]
    wanted = [[reference.inside(x + 0.5, y + 0.5, [TRIANGLE[:-1]]) for x in range(20)] for y in range(10)]
    assert masks.decode(cells.masks()[0] or b"", (10, 20)).tolist() == wanted


def test_a_rectangle_is_a_box_unless_it_is_more(tmp_path: Path) -> None:
    turned = [*SQUARE[2:], *SQUARE[1:3]]
    backwards = SQUARE[::-1]
    diamond = [[4, 2], [6, 4], [4, 6], [2, 4], [4, 2]]
    ellipse = polygon(SQUARE)
    ellipse["geometry"]["isEllipse"] = True
    features = [polygon(ring) for ring in (SQUARE, turned, backwards, diamond)]
    features += [ellipse, polygon(SQUARE, [[3, 3], [3, 4], [4, 4], [3, 3]])]
    cells = read(file(tmp_path, collection(*features))).dataset.cells
    assert cells.boxes().tolist() == [[2, 2, 6, 6]] * 6
    assert [code is None for code in cells.masks()] == [True, True, True, False, False, False]


def test_a_hole_is_not_filled(tmp_path: Path) -> None:
    hole = [[3, 3], [3, 5], [5, 5], [5, 3], [3, 3]]
    (code,) = read(file(tmp_path, collection(polygon(SQUARE, hole)))).dataset.cells.masks()
    assert masks.area(code or b"") == 16 - 4


@pytest.mark.parametrize(
    ("classification", "label"),
    [
        ({"name": "WBC", "colorRGB": -3670016}, "WBC"),  # QuPath 0.2, 0.3
        ({"names": ["Tumor", "Positive"], "color": [1, 2, 3]}, "Tumor: Positive"),  # 0.5
        ("WBC", "WBC"),
        (None, None),
        ({"name": " "}, None),
        (7, None),
    ],
)
def test_what_classes_look_like(tmp_path: Path, classification: Any, label: str | None) -> None:
    back = read(file(tmp_path, collection(polygon(SQUARE, classification=classification))))
    assert back.dataset.cells.label_names() == [label]


@pytest.mark.parametrize(
    "measurements", [{"score": 0.5, "ignore": 1}, [{"name": "score", "value": 0.5}, {"name": "ignore", "value": 1}]]
)
def test_measurements_of_new_and_old_files(tmp_path: Path, measurements: Any) -> None:
    frame = read(file(tmp_path, collection(polygon(SQUARE, measurements=measurements)))).dataset.cells.frame
    assert frame.select("score", "ignore").row(0) == (0.5, True)


def test_what_is_wrong_with_a_feature_is_collected(tmp_path: Path) -> None:
    def shaped(kind: Any, coordinates: Any) -> dict[str, Any]:
        return {"type": "Feature", "geometry": {"type": kind, "coordinates": coordinates}}

    wrong = [
        "no feature",
        {"type": "Feature", "geometry": None, "properties": {}},
        shaped("Point", [1, 2]),
        shaped("Polygon", []),
        shaped("Polygon", [[[0, 0], [1, 1]]]),
        shaped("Polygon", [[[0, 0], ["x", 1], [1, 1], [0, 0]]]),
        shaped("Polygon", [7]),
        shaped("MultiPolygon", [[]]),
    ]
    tiny = polygon([[1.6, 1.6], [1.7, 1.6], [1.7, 1.7], [1.6, 1.6]])
    content = collection(*wrong, polygon(SQUARE, objectType="tile"), polygon(SQUARE[:-1]), tiny)
    back = read(file(tmp_path, content))
    unreadable = back.problems.of("annotation-unreadable")
    assert [problem.where for problem in unreadable] == [f"a.geojson: feature {n}" for n in range(1, 9)]
    assert 'its geometry is "Point", not Polygon' in unreadable[2].what
    assert [problem.where for problem in back.problems.of("ring-open")] == ["a.geojson: feature 10"]
    assert [problem.where for problem in back.problems.of("mask-empty")] == ["a.geojson: feature 11"]
    assert back.problems.of("features-passed-over")[0].what.startswith("1 features are tiles")
    assert len(back.dataset.cells) == 2


def test_names_of_files(tmp_path: Path) -> None:
    """QuPath proposes the image's name, with or without suffix; what is not annotated stays so."""
    for number, name in enumerate(("p/a.png", "p/b.png", "q/b.png", "q/c.png")):
        save_picture(tmp_path / name, number=number)
    for name in ("a.geojson", "q/b.png.geojson"):
        (tmp_path / name).write_text(json.dumps(collection(polygon(SQUARE))))
    images = read(tmp_path).dataset.images.frame
    complete = dict(images.select("image_id", "complete_for").iter_rows())
    assert complete == {"p/a.png": None, "p/b.png": [], "q/b.png": None, "q/c.png": []}


def test_a_damaged_file_among_others_is_left_out_with_its_image(tmp_path: Path) -> None:
    formats.write(small_dataset(tmp_path / "images"), tmp_path / "out", "geojson")
    (tmp_path / "out" / "geojson" / "one.geojson").write_text('{"type": "FeatureCollection", "features": [')
    back = read(tmp_path / "out", images=tmp_path / "images")
    (problem,) = back.problems.of("annotation-unreadable")
    assert problem.where == "geojson/one.geojson"
    assert len(back.dataset.images) == 1
    with pytest.raises(FormatError, match="is not JSON"):
        read(tmp_path / "out" / "geojson" / "one.geojson")


def test_a_folder_without_features_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{}")
    with pytest.raises(FormatError, match=r"wanted GeoJSON files; found a\.json"):
        read(tmp_path)
    with pytest.raises(FormatError, match="no FeatureCollection, Feature or list"):
        read(tmp_path / "a.json")


def test_outlines_of_an_image_of_unknown_size_leave_their_boxes(tmp_path: Path) -> None:
    (tmp_path / "a.geojson").write_text(json.dumps(collection(polygon(TRIANGLE), polygon(SQUARE))))
    back = read(tmp_path, allow_missing_images=True)
    assert back.dataset.cells.masks() == [None, None]
    assert back.dataset.cells.boxes().tolist() == [[2, 2, 10, 8], [2, 2, 6, 6]]
    assert len(back.problems.of("mask-unreadable")) == 1
