import json

import pytest
import yaml

from lossland import records


@pytest.fixture
def book(tmp_path, monkeypatch):
    (tmp_path / "book" / "papers").mkdir(parents=True)
    table = {"tables": {"Table 1": {"columns": ["train", "test"], "rows": {"Linear": ["1 ± 2", None]}}}}
    (tmp_path / "book" / "papers" / "ay20.yml").write_text(yaml.safe_dump(table))
    monkeypatch.setenv("LOSSLAND_BOOK", str(tmp_path / "book"))
    return tmp_path / "book"


def test_quotes_are_as_printed(book):
    assert records.quoted("ay20", "Table 1", "Linear", "train") == "1 ± 2"
    assert records.quoted("ay20", "Table 1", "Linear", "test") == "not given"


@pytest.mark.parametrize("place, message", [
    (("ay2", "Table 1", "Linear", "train"), "paper must be one of .*did you mean 'ay20'"),
    (("ay20", "Table 2", "Linear", "train"), "table must be one of"),
    (("ay20", "Table 1", "Linea", "train"), "row must be one of .*did you mean 'Linear'"),
    (("ay20", "Table 1", "Linear", "tset"), "column must be one of .*did you mean 'test'"),
])
def test_a_place_that_does_not_exist_is_refused(book, place, message):
    with pytest.raises(ValueError, match=message):
        records.quoted(*place)


def test_without_a_book_the_page_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("LOSSLAND_BOOK", str(tmp_path / "book"))
    assert records.quoted("ay20", "Table 1", "Linear", "train") == "book not at hand"
    assert records.recorded("02", "Arc") == "not run"


def test_a_record_is_found_again_with_its_provenance(book, monkeypatch):
    monkeypatch.setenv("LOSSLAND_RECORD", str(book / "results"))
    records.record("02", "laptop", "mnist", {"Arc": "97.0 ± 0.1"}, {"seeds": [1, 2]}, device="cpu")
    text = records.recorded("02", "Arc")
    assert text.startswith("97.0 ± 0.1 (mnist, scale laptop, on cpu, 20")
    assert records.recorded("02", "Linear") == "not run"
    assert records.recorded("02", "Arc", dataset="digits") == "not run"
    assert records.records("02")[0]["settings"] == {"seeds": [1, 2]}


def test_nothing_is_written_unless_asked(book, monkeypatch):
    monkeypatch.delenv("LOSSLAND_RECORD", raising=False)
    assert records.record("02", "tiny", "digits", {}, {}, device="cpu") is None and not (book / "results").exists()


@pytest.mark.parametrize("text", ["{", json.dumps({"values": {}})])
def test_a_damaged_record_is_named(book, text):
    (book / "results" / "02").mkdir(parents=True)
    (book / "results" / "02" / "tiny.json").write_text(text)
    with pytest.raises(ValueError, match="recorded run tiny.json of 02 cannot be read"):
        records.recorded("02", "Arc")


def test_the_quoted_tables_are_rectangular():
    folder = records.book_folder()
    assert folder is not None
    for file in (folder / "papers").glob("*.yml"):
        for name, table in yaml.safe_load(file.read_text())["tables"].items():
            assert table["unit"] and all(len(row) == len(table["columns"]) for row in table["rows"].values()), (file, name)
