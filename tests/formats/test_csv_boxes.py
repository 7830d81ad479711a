from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cytolens import formats
from cytolens.formats import Imported, ReadOptions
from cytolens.problems import FormatError, SettingError
from tests.contracts import FormatContract, save_picture, small_dataset


class TestCsvBoxes(FormatContract):
    format = "csv_boxes"
    annotation_suffixes = (".csv",)


def read(source: Path, **options: object) -> Imported:
    return formats.read(source, "csv_boxes", ReadOptions.model_validate(options))


def table(folder: Path, text: str | bytes, name: str = "t.csv", images: tuple[str, ...] = ("a.png", "b.png")) -> Path:
    """Write a CSV file and pictures of 20 × 10 px beside it."""
    for number, image in enumerate(images):
        save_picture(folder / image, number=number)
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder / name


@pytest.mark.parametrize(
    "header",
    [
        "NAME,x1,y1,x2,y2,class",
        "filename,xmin,ymin,xmax,ymax,label",
        "image_id,x_min,y_min,x_max,y_max,category",
        "Image Name,left,top,right,bottom,Cell-Type",
        "img,XMIN,YMIN,XMAX,YMAX,subtype",
        "file,xtl,ytl,xbr,ybr,Prediction",
    ],
)
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_names_delimiters_and_marks(tmp_path: Path, header: str, delimiter: str, mark: bytes) -> None:
    text = f"{header}\na.png,1,2,3.5,4,WBC\nb.png,5,6,7,8,NA\n".replace(",", delimiter)
    back = read(table(tmp_path, mark + text.encode()))
    assert np.array_equal(back.dataset.cells.boxes(), [[1, 2, 3.5, 4], [5, 6, 7, 8]])
    assert back.dataset.cells.label_names() == ["WBC", "NA"]
    assert {problem.kind for problem in back.problems} == {"label-unfamiliar"}


def test_text_of_spreadsheets(tmp_path: Path) -> None:
    """Excel's "Unicode text" is UTF-16 with tabs; a French one writes semicolons and decimal commas."""
    path = table(tmp_path, "NAME\tx1\ty1\tx2\ty2\tclass\r\na.png\t1\t2\t3\t4\tSézary cell\r\n".encode("utf-16"))
    assert formats.read(path).dataset.cells.label_names() == ["Sézary cell"]
    path = table(tmp_path, "NAME;x1;y1;x2;y2;class\r\na.png;1,5;2;3,25;4;WBC\r\n")
    assert read(path).dataset.cells.boxes().tolist() == [[1.5, 2, 3.25, 4]]


def test_none_and_na_are_ordinary_words(tmp_path: Path) -> None:
    words = ["None", "NA", "null", "nan", "0", '"a, ""b"""', "True"]
    text = "NAME,x1,y1,x2,y2,class\n" + "".join(f"a.png,1,2,3,4,{word}\n" for word in words)
    names = read(table(tmp_path, text)).dataset.cells.label_names()
    assert names == ["None", "NA", "null", "nan", "0", 'a, "b"', "True"]


def test_the_label_is_optional(tmp_path: Path) -> None:
    back = read(table(tmp_path, "NAME,x1,y1,x2,y2\na.png,1,2,3,4\n"))
    assert back.dataset.cells.label_names() == [None]
    assert back.dataset.labels.names == ()
    assert not list(back.problems)


def test_a_row_without_a_box_is_an_image_without_a_cell(tmp_path: Path) -> None:
    back = read(table(tmp_path, "NAME,x1,y1,x2,y2,class\na.png,1,2,3,4,WBC\nb.png,,,,,\n\n"))
    assert back.dataset.images.ids == ["a.png", "b.png"]
    assert len(back.dataset.cells) == 1
    assert [problem.kind for problem in back.problems] == ["images-without-cells"]


def test_images_that_the_table_does_not_name_are_left_out(tmp_path: Path) -> None:
    assert read(table(tmp_path, "NAME,x1,y1,x2,y2,class\na.png,1,2,3,4,WBC\n")).dataset.images.ids == ["a.png"]


def test_what_is_wrong_in_a_row_is_collected_with_its_line(tmp_path: Path) -> None:
    rows = [
        "a.png,1,2,3,4,WBC",
        "a.png,one,2,3,4,WBC",
        ",1,2,3,4,WBC",
        "a.png,,,,,WBC",
        "a.png,-1,2,3,4,WBC",
        "b.png,1,2,3",
    ]
    back = read(table(tmp_path, "NAME,x1,y1,x2,y2,class\n" + "\n".join(f"{row}" for row in rows[:5]) + "\n"))
    assert [(problem.kind, problem.where) for problem in back.problems] == [
        ("image-unnamed", "t.csv:4"),
        ("box-not-a-number", "t.csv:3"),
        ("box-not-a-number", "t.csv:5"),
        ("box-outside-image", "t.csv:6"),
    ]
    assert len(back.dataset.cells) == 2
    with pytest.raises(FormatError, match=r"t\.csv, line 7: 4 fields, but the header has 6"):
        read(table(tmp_path, "NAME,x1,y1,x2,y2,class\n" + "\n".join(rows)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no column for image .*Columns there: none"),
        ("NAME,x1,y1,x2,class\n", r"no column for y_max \(y max or ymax or y2"),
        ("trustii_id,NAME\n1,a.png\n", "Columns there: trustii_id, NAME"),
        ('NAME,x1,y1,x2,y2,class\n"a.png,1,2,3,4,WBC\n', "line 2: is not proper CSV"),
        ("NAME,x1,y1,x2,y2,class\na.png,1,2,3,4,WBC,5\n", "line 2: 7 fields"),
        (b"NAME,x1,y1,x2,y2,class\na.png,1,2,3,4,Lys\xe9e\n", "line 2: byte 0xe9 is not UTF-8"),
        (b"\xff\xfeN\x00", "Columns there: N"),
        (b"\xff\xfeN\x00A\x00M", "is not UTF-16"),
    ],
)
def test_files_that_are_no_tables_of_boxes(tmp_path: Path, text: str | bytes, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        read(table(tmp_path, text))


def test_cells_lie_together_by_image_in_the_order_of_the_file(tmp_path: Path) -> None:
    lines = ["b.png,1,0,3,4", "a.png,2,0,3,4", "b.png,0,0,3,4", "a.png,1,0,3,4"]
    cells = read(table(tmp_path, "NAME,x1,y1,x2,y2\n" + "\n".join(lines))).dataset.cells
    assert cells.frame["image_id"].to_list() == ["a.png", "a.png", "b.png", "b.png"]
    assert cells.boxes()[:, 0].tolist() == [2, 1, 1, 0]
    assert [cell_id[-5:] for cell_id in cells.frame["cell_id"]] == ["-0000", "-0001"] * 2


class TestColumns:
    TEXT = "picture,a,b,c,d,kind,class\na.png,1,2,3,4,WBC,x\n"

    def test_columns_can_be_named(self, tmp_path: Path) -> None:
        columns = {"image": "picture", "x_min": "a", "y_min": "b", "x_max": "c", "y_max": "d", "label": "kind"}
        data = read(table(tmp_path, self.TEXT), columns=columns).dataset
        assert (data.cells.boxes().tolist(), data.cells.label_names()) == ([[1, 2, 3, 4]], ["WBC"])
        assert len(read(tmp_path, columns=columns).dataset.cells) == 1

    def test_wrong_names_are_refused(self, tmp_path: Path) -> None:
        path = table(tmp_path, self.TEXT)
        with pytest.raises(SettingError, match=r'unknown name "x_mim".*Did you mean "x_min"'):
            read(path, columns={"x_mim": "a"})
        with pytest.raises(FormatError, match=r'no column for "A".*Columns there: picture, a'):
            read(path, columns={"x_min": "A"})

    def test_a_choice_between_columns_is_said(self, tmp_path: Path) -> None:
        back = read(table(tmp_path, "path,image,x1,y1,x2,y2\nz.png,a.png,1,2,3,4\n"))
        (note,) = back.problems
        assert (note.kind, note.severity) == ("column-ambiguous", "note")
        assert 'read from the column "image"; there is also path' in note.what
        assert back.dataset.images.ids == ["a.png"]


def test_scores_flags_splits_and_groups(tmp_path: Path) -> None:
    text = (
        "NAME,x1,y1,x2,y2,class,confidence,Difficult,subset,patient\n"
        "a.png,1,2,3,4,WBC,0.5,True,train,p1\na.png,1,2,3,4,WBC,,0,val,p1\nb.png,1,2,3,4,WBC,high,,,\n"
    )
    back = read(table(tmp_path, text))
    assert back.dataset.cells.frame["score"].to_list() == [0.5, None, None]
    assert back.dataset.cells.frame["ignore"].to_list() == [True, False, False]
    assert back.dataset.images.frame["split"].to_list() == ["train", None]
    assert back.dataset.images.frame["group"].to_list() == ["p1", None]
    assert [(p.kind, p.where) for p in back.problems] == [
        ("score-not-a-number", "t.csv:4"),
        ("split-overlap", "t.csv:2"),
    ]


class TestFindingImages:
    def test_by_name_in_a_folder_below(self, tmp_path: Path) -> None:
        images = ("x/a.png", "y/b.png", "x/c.png", "y/c.png", "D.PNG", "e.jpg.png")
        names = ["a", "other/b.png", "c.png", "y/c.png", "d.png", "x\\a.png"]
        text = "NAME,x1,y1,x2,y2\n" + "".join(f"{name},1,2,3,4\n" for name in names)
        back = read(table(tmp_path, text, images=images))
        # "c.png" alone could be either of two; "y/c.png" is one of them, so it is the other. So "a" is none.
        assert back.dataset.images.ids == ["D.PNG", "x/a.png", "x/c.png", "y/b.png", "y/c.png"]
        assert [(problem.kind, problem.where) for problem in back.problems] == [("image-missing", "t.csv:2")]

    def test_not_when_several_fit(self, tmp_path: Path) -> None:
        images = ("x/a.png", "y/a.png", "b.png")
        back = read(table(tmp_path, "NAME,x1,y1,x2,y2\na.png,1,2,3,4\nb.png,1,2,3,4\n", images=images))
        (problem,) = back.problems
        assert problem.kind == "image-missing"
        assert "2 files have that name: x/a.png, y/a.png" in problem.what

    def test_never_outside_the_import_root(self, tmp_path: Path) -> None:
        save_picture(tmp_path / "secret.png")
        path = table(tmp_path / "data", f"NAME,x1,y1,x2,y2\n../secret.png,1,2,3,4\n{tmp_path}/secret.png,1,2,3,4\n")
        with pytest.raises(FormatError, match="none of the 2 images"):
            read(path)

    def test_in_a_folder_of_images(self, tmp_path: Path) -> None:
        save_picture(tmp_path / "elsewhere" / "p" / "a.png")
        path = table(tmp_path / "data", "NAME,x1,y1,x2,y2\na.png,1,2,3,4\n", images=())
        row = read(path, images=tmp_path / "elsewhere").dataset.images.rows()[0]
        assert (row["image_id"], row["path"]) == ("p/a.png", str(tmp_path / "elsewhere" / "p" / "a.png"))
        # A folder inside the import root does not change what images are called.
        assert read(path, images=tmp_path / "elsewhere", name="x").dataset.images.ids == ["p/a.png"]
        save_picture(tmp_path / "data" / "pictures" / "a.png")
        assert read(path, images=tmp_path / "data" / "pictures").dataset.images.ids == ["pictures/a.png"]
        with pytest.raises(SettingError, match=r'"nowhere" is not a folder'):
            read(path, images=Path("nowhere"))


def test_a_folder_must_hold_one_table(tmp_path: Path) -> None:
    path = table(tmp_path, "NAME,x1,y1,x2,y2\na.png,1,2,3,4\n")
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    assert read(tmp_path).dataset.cells.boxes().tolist() == [[1, 2, 3, 4]]
    assert read(tmp_path).dataset.name == tmp_path.name
    assert read(path).dataset.name == "t"
    (tmp_path / "other.csv").write_bytes(path.read_bytes())
    with pytest.raises(FormatError, match=r"wanted one CSV file of boxes; found other\.csv, t\.csv"):
        read(tmp_path)
    for name in ("other.csv", "t.csv"):
        (tmp_path / name).unlink()
    with pytest.raises(FormatError, match="found none"):
        read(tmp_path)


def test_the_table_that_is_written(tmp_path: Path) -> None:
    data = small_dataset(tmp_path / "images", boxes=[[-1, 2, 3.1, 4], [0, 0, 20, 10]])
    plain = data.images.with_columns(split=None, group=None)
    formats.write(type(data)(plain, data.cells), tmp_path / "out.csv", "csv_boxes")
    assert (
        tmp_path / "out.csv"
    ).read_text() == "NAME,x1,y1,x2,y2,class\none.png,-1,2,3.1,4,WBC\ntwo.png,0,0,20,10,RBC\n"
    cells = small_dataset(tmp_path / "images", score=[0.5, 0.25], ignore=[True, False]).cells.filter(
        np.array([True, False])
    )
    formats.write(type(data)(data.images, cells), tmp_path / "full", "csv_boxes")
    assert (tmp_path / "full" / "boxes.csv").read_text() == (
        "NAME,x1,y1,x2,y2,class,score,ignore,split,group\n"
        "one.png,0,0,20,10,WBC,0.5,1,train,patient one\n"
        "two.png,,,,,,,,val,patient two\n"
    )
