import pytest
import yaml

from lossland import published, records

TABLE = {"unit": "per cent", "columns": ["train", "test"], "rows": {"Linear": ["1", "2"], "VGG, Arc": ["3", None]}}


@pytest.fixture
def book(tmp_path, monkeypatch):
    folder = tmp_path / "book"
    (folder / "papers").mkdir(parents=True)
    monkeypatch.setenv("LOSSLAND_BOOK", str(folder))
    monkeypatch.setenv("LOSSLAND_RECORD", str(folder / "results"))

    def write(*sources):
        text = yaml.safe_dump({"tables": {"Table 1": {**TABLE, "sources": list(sources)}}})
        (folder / "papers" / "p.yml").write_text(text)
    return write


def source(**changes):
    return {"chapter": "05", "columns": {"train": "{row} train", "test": "{row} test"}, "comparable": "yes", **changes}


def test_every_printed_number_is_a_row_and_what_is_missing_says_so(book):
    book()
    found = published.cells("p", "Table 1")
    assert found[["row", "column", "paper"]].values.tolist() == [
        ["Linear", "train", "1"], ["Linear", "test", "2"], ["VGG, Arc", "train", "3"]]
    assert set(found.recorded) == set(found.run) == {"not run"} and set(found.comparable) == {"no: not run"}


def test_a_recorded_run_fills_its_cells_with_its_provenance(book):
    book(source(dataset="mnist"), source(rows=["VGG, Arc"], columns={"train": "{tail} of {head}"}, comparable="no: x"))
    records.record("05", "gpu", "mnist", {"Linear train": "1.5"}, {}, device="cpu")
    records.record("05", "gpu", "digits", {"Linear test": "9.9", "Arc of VGG": "2.5"}, {}, device="cpu")
    found = published.cells("p", "Table 1", {("Table 1", "Linear", "test"): "7"}, like="shape only: digits")
    assert [text.partition(" (")[0] for text in found.recorded] == ["1.5", "not run", "2.5"]
    assert found.recorded[0].startswith("1.5 (mnist, scale gpu, on cpu, 20")
    assert found.run.tolist() == ["not run", "7", "not run"]
    assert found.comparable.tolist() == ["yes", "shape only: digits", "no: x"]


def test_rows_may_have_another_name_in_the_record(book):
    book(source(names={"Linear": "straight"}))
    records.record("05", "gpu", "mnist", {"straight test": "4"}, {}, device="cpu")
    assert published.cells("p", "Table 1").recorded[1].startswith("4 (")


def test_an_edited_record_is_flagged_in_its_cell(book, tmp_path):
    book(source())
    file = records.record("05", "gpu", "mnist", {"Linear test": "41"}, {}, device="cpu")
    file.write_text(file.read_text().replace('"41"', '"99"'))
    assert published.cells("p", "Table 1").recorded[1].startswith("99 [edited by hand] (")


def test_folds_say_how_much_has_been_run(book):
    book(source())
    records.record("05", "gpu", "mnist", {"Linear test": "4"}, {}, device="cpu")
    folds = published.side_by_side("p", {("Table 1", "Linear", "test"): "7"})
    assert repr(folds) == "Table 1: 3 cells, 1 recorded, 1 in this run"
    assert "VGG, Arc, train" in folds._repr_html_()


@pytest.mark.parametrize("sources, run, message", [
    ([source(rows=["Linea"])], {}, "row of a source must be one of .*did you mean 'Linear'"),
    ([source(names={"Arc": "a"})], {}, "row of a source must be one of"),
    ([source(columns={"tset": "x"})], {}, "column of a source must be one of .*did you mean 'test'"),
    ([], {("Table 1", "Linea", "test"): "1"}, "row of run must be one of"),
    ([], {("Table 1", "Linear", "tset"): "1"}, "column of run must be one of"),
])
def test_a_place_that_the_table_does_not_have_is_refused(book, sources, run, message):
    book(*sources)
    with pytest.raises(ValueError, match=message):
        published.cells("p", "Table 1", run)


def test_an_unknown_paper_or_table_is_refused(book):
    book()
    with pytest.raises(ValueError, match="paper must be one of 'p'"):
        published.printed("q")
    with pytest.raises(ValueError, match="table must be one of 'Table 1'"):
        published.cells("p", "Table 2")


@pytest.mark.parametrize("paper", ["ay20", "g18", "w21"])
def test_every_source_of_the_book_fills_a_cell(paper):
    dead = []
    for name, table in published.printed(paper).items():
        for number, one in enumerate(table.get("sources", ())):
            alone = published._cells({**table, "sources": [one]}, {}, "no")
            dead += [] if (alone.recorded != "not run").any() else [f"{name}, source {number}"]
    assert not dead
