"""Texts as data: words, vocabulary, splits by topic, windows, and the tasks made of them."""

from pathlib import Path

import pytest
import torch
from pydoc_data.topics import topics

from lossland.splits import Split
from lossland.tasks import Task, load_task
from lossland.texts import END, SHARES, UNKNOWN, read_pydoc, split_topics, split_words, vocabulary_of, windows

TEXTS = {"train": "the cat sat\n\nthe dog sat on the cat\n", "valid": "a cat sat on the mat\n",
         "test": "the dog\nthe cat\n"}


def write(folder: Path, **changes: str) -> Path:
    for name, text in {**TEXTS, **changes}.items():
        (folder / f"{name}.txt").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def pydoc() -> Task:
    return load_task("pydoc", device="cpu", vocabulary=200, window=20)


def spelled(task: Task, numbers: torch.Tensor) -> list[str]:
    return [task.words[i] for i in numbers.flatten().tolist()]


# words and vocabulary

def test_words_are_lower_case_without_punctuation_and_numbers_are_one_word() -> None:
    assert split_words("It's 3.5, __len__!\n\n2 x") == ["it", "s", "N", "__len__", END, "N", "x", END]
    assert split_words("\n *** \n\n ... \n") == []
    assert split_words("a\nline\n \na paragraph") == ["a", "line", END, "a", "paragraph", END]


def test_vocabulary_is_the_most_frequent_words_and_ties_are_in_alphabetical_order() -> None:
    words = "c a b b c d <eos> <unk> <eos> <eos>".split()
    assert vocabulary_of(words, 5) == (UNKNOWN, END, "b", "c", "a")
    assert vocabulary_of(reversed(words), 5) == vocabulary_of(words, 5)
    assert vocabulary_of(words, 100) == (UNKNOWN, END, "b", "c", "a", "d")


def test_vocabulary_too_small_is_refused() -> None:
    with pytest.raises(ValueError, match=r"vocabulary must be >= 3: <unk>, <eos> and one word of the text, got 2"):
        load_task("pydoc", device="cpu", vocabulary=2)


# windows

def test_targets_are_the_inputs_one_word_later() -> None:
    words = [str(i) for i in range(11)]
    vocabulary = (UNKNOWN, *words)
    inputs, targets = windows(words, vocabulary, 3, "train")
    assert inputs.shape == targets.shape == (3, 3)
    assert [vocabulary[i] for i in inputs.ravel()] == words[:9]
    assert [vocabulary[i] for i in targets.ravel()] == words[1:10]
    assert windows(words, vocabulary, 10, "train")[1].shape == (1, 10)


def test_words_outside_the_vocabulary_are_unknown() -> None:
    inputs, targets = windows(["a", "b", "c"], (UNKNOWN, "a"), 2, "train")
    assert inputs.tolist() == [[1, 0]] and targets.tolist() == [[0, 0]]


@pytest.mark.parametrize("length", [0, 3, 4])
def test_window_longer_than_the_text_is_refused(length: int) -> None:
    with pytest.raises(ValueError, match=rf"window must be in 1..2 for the 3 words of the test split, got {length}"):
        windows(["a", "b", "c"], (UNKNOWN, "a"), length, "test")


# splits by topic

def planted(n: int = 40) -> dict[str, str]:
    own = {f"t{i:02}": " ".join(f"w{i}x{j}" for j in range(10 + 7 * i % 50)) + "." for i in range(n)}
    return {topic: f"{text}\n\nA paragraph in every topic." for topic, text in own.items()}


def test_every_topic_is_in_one_split_and_none_is_lost() -> None:
    parts = split_topics(planted())
    assert sorted(topic for part in parts.values() for topic in part) == sorted(planted())
    own = [{word for words in part.values() for word in words if "x" in word} for part in parts.values()]
    assert sum(map(len, own)) == len(set.union(*own))


def test_paragraph_of_several_topics_is_kept_once() -> None:
    words = [word for part in split_topics(planted()).values() for text in part.values() for word in text]
    assert words.count("every") == 1


def test_splits_have_their_shares_of_the_words_whatever_the_order_of_topics() -> None:
    parts = split_topics(planted())
    assert split_topics(dict(reversed(planted().items()))) == parts
    sizes = {split: sum(map(len, part.values())) for split, part in parts.items()}
    for split, share in SHARES.items():
        assert abs(sizes[split] / sum(sizes.values()) - share) < 0.02


def test_too_few_topics_are_refused() -> None:
    with pytest.raises(ValueError, match="topics must be enough for 3 splits, got 2"):
        split_topics({"a": "one two", "b": "three"})


def test_python_documentation_is_split_by_topic() -> None:
    parts = split_topics(topics)
    assert sorted(topic for part in parts.values() for topic in part) == sorted(topics)
    corpus = read_pydoc()
    sizes = {split: len(words) for split, words in corpus.splits.items()}
    assert sizes == {split: sum(map(len, part.values())) for split, part in parts.items()}
    for split, share in SHARES.items():
        assert abs(sizes[split] / sum(sizes.values()) - share) < 0.02


# tasks

def test_documentation_of_python_is_a_task(pydoc: Task) -> None:
    assert pydoc.is_text and pydoc.input_shape == (20,) and pydoc.classes == len(pydoc.words) == 200
    for name in ("train", "validation", "test"):
        part = pydoc.split(name)
        torch.testing.assert_close(part.images.flatten()[1:], part.labels.flatten()[:-1], rtol=0, atol=0)
    assert spelled(pydoc, pydoc.train.images)[:50] == [word if word in pydoc.words else UNKNOWN
                                                       for word in read_pydoc().splits["train"][:50]]
    assert "200 words in the vocabulary, windows of 20" in pydoc.note and "topics" in pydoc.note


def test_folder_of_files_is_a_task(tmp_path: Path) -> None:
    task = load_task(write(tmp_path), device="cpu", window=3)
    assert task.name == tmp_path.name and task.words == (UNKNOWN, END, "the", "cat", "sat", "dog", "on")
    assert spelled(task, task.train.images) == "the cat sat <eos> the dog sat on the".split()
    assert spelled(task, task.train.labels) == "cat sat <eos> the dog sat on the cat".split()
    assert spelled(task, task.validation.images) == "<unk> cat sat on the <unk>".split()
    assert load_task(tmp_path.name, data_dir=tmp_path.parent, device="cpu", window=3).fingerprint == task.fingerprint


def test_batches_are_words_and_next_words_in_the_order_of_the_generator(pydoc: Task) -> None:
    batches = list(pydoc.batches(batch_size=100, generator=torch.Generator().manual_seed(0)))
    words, following = (torch.cat(part) for part in zip(*batches, strict=True))
    assert words.dtype == torch.int64 and not words.equal(pydoc.train.images)
    torch.testing.assert_close(words[:, 1:], following[:, :-1], rtol=0, atol=0)
    assert sorted(words.tolist()) == sorted(pydoc.train.images.tolist())


def test_fingerprint_belongs_to_words_and_windows(tmp_path: Path, pydoc: Task) -> None:
    prints = {load_task("pydoc", device="cpu", vocabulary=v, window=w).fingerprint
              for v, w in ((200, 20), (201, 20), (200, 21))}
    assert len(prints) == 3 and pydoc.fingerprint in prints
    before = load_task(write(tmp_path), device="cpu", window=2).fingerprint
    assert load_task(write(tmp_path, test="the dog\nthe dog\n"), device="cpu", window=2).fingerprint != before


def test_subset_of_a_text_is_its_beginning(pydoc: Task) -> None:
    small = pydoc.subset(train=7, test=3)
    torch.testing.assert_close(small.train.labels, pydoc.train.labels[:7], rtol=0, atol=0)
    assert (len(small.test), small.classes, small.words) == (3, pydoc.classes, pydoc.words)
    assert small.note.endswith("the first 7 train windows, 3 test windows")
    assert small.fingerprint != pydoc.fingerprint
    with pytest.raises(ValueError, match=rf"train must be a number of windows in 1..{len(pydoc.train)}, got 0"):
        pydoc.subset(train=0)


def test_words_are_not_normalised(pydoc: Task) -> None:
    words = pydoc.test.images[:2]
    assert pydoc.prepare(words, torch.float64) is words
    with pytest.raises(TypeError, match="words must be int64, got torch.float32"):
        pydoc.prepare(words.float())
    with pytest.raises(ValueError, match=r"images must be \(n, 20\), got int64 \(2, 19\)"):
        pydoc.prepare(words[:, 1:])


@pytest.mark.parametrize("missing", ["train", "valid", "test"])
def test_folder_without_one_of_its_files_is_refused_by_name(tmp_path: Path, missing: str) -> None:
    (write(tmp_path) / f"{missing}.txt").unlink()
    with pytest.raises(FileNotFoundError, match=rf"must have train.txt, valid.txt, test.txt, got no {missing}.txt$"):
        load_task(tmp_path, device="cpu")


@pytest.mark.parametrize(("name", "text"), [("train", ""), ("valid", " \n\n"), ("test", "\t")])
def test_empty_file_is_refused_by_name(tmp_path: Path, name: str, text: str) -> None:
    with pytest.raises(ValueError, match=rf"{name}\.txt must have words, got an empty file"):
        load_task(write(tmp_path, **{name: text}), device="cpu")


def test_file_that_is_no_text_is_refused_by_name(tmp_path: Path) -> None:
    (write(tmp_path) / "valid.txt").write_bytes(b"caf\xe9 \xff")
    with pytest.raises(ValueError, match=r"valid\.txt must be text in UTF-8"):
        load_task(tmp_path, device="cpu")


def test_folder_that_is_not_there_is_no_task() -> None:
    with pytest.raises(ValueError, match=r"a folder with train.txt, valid.txt and test.txt, or .*; got 'no/such/folder'"):
        load_task("no/such/folder")


@pytest.mark.parametrize("option", [{"label_noise": 0.1}, {"validation": 0.1}, {"augment": "flip-crop"},
                                    {"normalise": "unit"}])
def test_options_of_images_are_refused_for_a_text(option: dict) -> None:
    (name, value), = option.items()
    with pytest.raises(ValueError, match=rf"'pydoc' is a text: .* must be left out, got {name}={value!r}"):
        load_task("pydoc", device="cpu", **option)
    assert load_task("pydoc", device="cpu", augment="none").augment == "none"


@pytest.mark.parametrize("option", ["vocabulary", "window"])
def test_options_of_texts_are_refused_for_images(option: str) -> None:
    with pytest.raises(ValueError, match="vocabulary and window are for texts, got .* for 'digits'"):
        load_task("digits", device="cpu", **{option: 10})


def test_an_unknown_name_is_named_before_its_options() -> None:
    with pytest.raises(ValueError, match="name must be one of .*'pydoc'.* got 'pidoc'"):
        load_task("pidoc", device="cpu", vocabulary=10, window=5)


@pytest.mark.parametrize(("change", "says"), [
    ({"augment": "flip-crop"}, "a text must have augment 'none' and 200 words"),
    ({"words": ("a", "b")}, "one per class, got 'none' and 2 words"),
    ({"mean": (0.0,), "std": (1.0,)}, r"one value per channel \(0\)"),
    ({"classes": 150, "words": ("x",) * 150}, r"train images must be in 0..149, got 199"),
])
def test_inconsistent_text_is_refused(pydoc: Task, change: dict, says: str) -> None:
    from dataclasses import replace

    with pytest.raises(ValueError, match=says):
        replace(pydoc, **change)


@pytest.mark.parametrize(("images", "labels", "says"), [
    (torch.zeros(2, 5).long(), torch.zeros(2).long(), r"each of the 10 words and at least one, got int64 \(2,\)"),
    (torch.zeros(2, 5).long(), torch.zeros(2, 4).long(), r"one for each of the 10 words"),
    (torch.zeros(2, 5), torch.zeros(2, 5).long(), r"or the words of a text as int64 \(n, L\), got float32 \(2, 5\)"),
    (torch.zeros(2, 0).long(), torch.zeros(2, 0).long(), r"and at least one"),
])
def test_bad_split_of_a_text_is_refused(images: torch.Tensor, labels: torch.Tensor, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Split(images, labels)


def test_split_of_a_text_says_what_it_is(pydoc: Task) -> None:
    assert repr(pydoc.subset(test=3).test) == "Split(3 windows, 20, on cpu)"
    assert "Split(3 windows" in repr(pydoc.subset(test=3)) and repr(END) not in repr(pydoc)
