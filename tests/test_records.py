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


def planted(book, monkeypatch, **changes):
    """Record a run, change its file by hand, and return what a page says."""
    monkeypatch.setenv("LOSSLAND_RECORD", str(book / "results"))
    file = records.record("02", "laptop", "mnist", {"Arc": "97.0"}, {"widths": (1, 2)}, device="cpu")
    run = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps(run | changes), encoding="utf-8")
    return records.recorded("02", "Arc")


def test_a_record_as_it_was_written_has_no_fault(book, monkeypatch):
    assert planted(book, monkeypatch).startswith("97.0 (mnist, scale laptop")
    assert [run["faults"] for run in records.recorded_runs()] == [[]]


@pytest.mark.parametrize("change, said", [
    ({"values": {"Arc": "99.9"}}, "99.9 [edited by hand] (mnist, "),
    ({"settings": {"widths": [1, 3]}}, "97.0 [edited by hand] (mnist, "),
    ({"checksum": "0" * 16}, "97.0 [edited by hand] (mnist, "),
])
def test_a_record_edited_by_hand_is_flagged_behind_its_value(book, monkeypatch, change, said):
    assert planted(book, monkeypatch, **change).startswith(said)


def test_a_record_of_another_version_or_without_checksum_is_flagged(book, monkeypatch):
    said = planted(book, monkeypatch)
    monkeypatch.setattr(records, "installed_version", lambda: "9.0")
    ours = records.records("02")[0]["versions"]["lossland"]
    assert records.recorded("02", "Arc") == said.replace(" (", f" [made with lossland {ours}, this is 9.0] (", 1)
    file = book / "results" / "02" / "laptop-mnist.json"
    run = json.loads(file.read_text(encoding="utf-8"))
    del run["checksum"], run["versions"]["lossland"]
    file.write_text(json.dumps(run), encoding="utf-8")
    assert records.recorded("02", "Arc") == said.replace(" (", " [no checksum] (", 1)


def test_provenance_of_make_record_is_kept_and_sealed(book, monkeypatch):
    (book / "chapters").mkdir()
    chapter = book / "chapters" / "02.ipynb"
    chapter.write_text(json.dumps({"cells": [{"cell_type": "code", "source": ["a = 1"]}]}), encoding="utf-8")
    known = {"commit": "abc", "code_of": str(chapter), "began": 0.0}
    monkeypatch.setenv("LOSSLAND_PROVENANCE", json.dumps(known))
    planted(book, monkeypatch)
    run, = records.recorded_runs()
    assert (run["commit"], run["file"], run["faults"]) == ("abc", "laptop-mnist.json", []) and run["seconds"] > 1e9
    chapter.write_text(json.dumps({"cells": [{"cell_type": "code", "source": ["a = 2"]}]}), encoding="utf-8")
    assert records.recorded_runs()[0]["faults"] == ["the chapter has changed since"]


def test_no_record_of_the_book_was_edited_by_hand():
    found = {f"{run['chapter']}/{run['file']}": set(run["faults"]) & {"edited by hand", "no checksum"}
             for run in records.recorded_runs()}
    assert found and not any(found.values()), found
