"""The comparison finds each way in which two builds differ."""

from __future__ import annotations

from pathlib import Path

from slipway.tests.reproducibility.comparison import differences


def files(folder: Path, **contents: bytes) -> dict[str, Path]:
    folder.mkdir()
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return {name: folder / name for name in contents}


def test_the_same_bytes_are_no_difference(tmp_path: Path) -> None:
    expected = files(tmp_path / "expected", a=b"one", b=b"two")
    assert differences(expected, files(tmp_path / "actual", a=b"one", b=b"two")) == {}


def test_a_difference_names_the_first_byte(tmp_path: Path) -> None:
    expected = files(tmp_path / "expected", a=b"0123456789", b=b"same")
    found = differences(expected, files(tmp_path / "actual", a=b"0123x567x9", b=b"same"))
    assert list(found) == ["a"]
    assert "2 differ, from byte 4: b'0123456789' and b'0123x567x9'" in found["a"]


def test_a_longer_file_differs_where_the_shorter_ends(tmp_path: Path) -> None:
    expected = files(tmp_path / "expected", a=b"0123")
    found = differences(expected, files(tmp_path / "actual", a=b"01234"))
    assert "has 4 and 5 bytes" in found["a"]
    assert "from byte 4" in found["a"]


def test_missing_and_new_files_differ(tmp_path: Path) -> None:
    expected = files(tmp_path / "expected", a=b"")
    found = differences(expected, files(tmp_path / "actual", b=b""))
    assert found == {"a": "is missing", "b": "is there, and was not before"}
