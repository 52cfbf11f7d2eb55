"""A manifest that says what cannot be ends in one line, not in numpy's words."""

import csv
from pathlib import Path

import pytest

from slicebook.data.manifest import SliceRecord, read_manifest, write_manifest
from slicebook.errors import DataError


def record(index: int, patient: int, number: int) -> SliceRecord:
    name = f"patient-{patient:04}"
    return SliceRecord(
        index, name, f"{name}/volume-01", number, float(number), "train" if patient == 1 else "test",
        4, 6, 24 * index, 24 * index, 0.5, 0.5, 0.0, 10.0, False,
    )  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_manifest(tmp_path, [record(0, 1, 0), record(1, 1, 1), record(2, 2, 0)])
    return tmp_path


def edit(folder: Path, line: int, column: str, cell: str | None) -> None:
    """Put a cell into a line (1 is the first after the header), or take the column out of every line."""
    with (folder / "manifest.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    at = rows[0].index(column)
    if cell is None:
        rows = [[*row[:at], *row[at + 1 :]] for row in rows]
    else:
        rows[line][at] = cell
    with (folder / "manifest.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def test_a_manifest_is_read_as_it_was_written(folder: Path) -> None:
    assert read_manifest(folder) == (record(0, 1, 0), record(1, 1, 1), record(2, 2, 0))


def test_values_of_a_volume_are_in_memory_once(folder: Path) -> None:
    first, second, other = read_manifest(folder)
    assert first.patient is second.patient
    assert first.volume is second.volume
    assert first.low is second.low is other.low
    assert not hasattr(first, "__dict__")


@pytest.mark.parametrize(
    ("column", "cell", "message"),
    [
        ("offset", "9999", "offset is 9999, wanted at most 48"),
        ("offset", "-4", "offset is -4, wanted 0 or more"),
        ("offset", "0", "offset is that of line 2"),
        ("offset", "1e3", "offset is '1e3'"),
        ("offset", "nan", "offset is 'nan'"),
        ("label_offset", "49", "label_offset is 49, wanted at most 48"),
        ("label_offset", "-2", "label_offset is -2"),
        ("index", "7", "index is 7, wanted 1"),
        ("slice", "-1", "slice is -1"),
        ("slice", "0", "slice is that of line 2"),
        ("position", "nan", "position is nan, wanted 0 to 1"),
        ("position", "1.5", "position is 1.5"),
        ("split", "training", "split is 'training'"),
        ("split", "test", "patient is in test and train, wanted one split"),
        ("rows", "0", "rows is 0, wanted 1 or more"),
        ("columns", "-6", "columns is -6"),
        ("row_mm", "inf", "row_mm is inf, wanted above 0"),
        ("column_mm", "0", r"column_mm is 0\.0"),
        ("low", "nan", "low is nan, wanted a finite number"),
        ("high", "-5", r"high is -5\.0, wanted above low"),
        ("blank", "yes", "blank is 'yes'"),
        ("patient", "", "patient is '', wanted a name"),
        ("patient", "patient-0009", "volume is that of two patients"),
    ],
)
def test_a_value_that_cannot_be_is_named_with_its_line(
    folder: Path, column: str, cell: str, message: str
) -> None:
    edit(folder, 2, column, cell)
    with pytest.raises(DataError, match=rf"manifest\.csv: line 3.*{message}.*prepare the data again"):
        read_manifest(folder)


def test_a_column_that_is_missing_is_an_error(folder: Path) -> None:
    edit(folder, 0, "offset", None)
    with pytest.raises(DataError, match="its first line is not index,"):
        read_manifest(folder)


@pytest.mark.parametrize("tail", ["0,patient-0001\n", "\n", "\x00\n"])
def test_a_line_cut_short_is_an_error(folder: Path, tail: str) -> None:
    with (folder / "manifest.csv").open("a") as file:
        file.write(tail)
    with pytest.raises(DataError, match="line 5 cannot be read"):
        read_manifest(folder)


def test_bytes_that_are_no_text_are_an_error(folder: Path) -> None:
    (folder / "manifest.csv").write_bytes(b"\xff\xfe index")
    with pytest.raises(DataError, match=r"manifest\.csv: line 2 cannot be read"):
        read_manifest(folder)
