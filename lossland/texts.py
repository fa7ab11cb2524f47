"""Texts as data: a folder as the Penn Treebank comes, or Python's own documentation; words, vocabulary, windows."""

from __future__ import annotations

import platform
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

FILES = {"train": "train.txt", "validation": "valid.txt", "test": "test.txt"}
SHARES = {"train": 0.8, "validation": 0.1, "test": 0.1}  # of the words of `split_topics`
UNKNOWN, END = "<unk>", "<eos>"
VOCABULARY, WINDOW = 10_000, 35  # words, as in G18's experiment

_PARAGRAPH = re.compile(r"\n\s*\n")
_SENTENCE = re.compile(r"[.!?:](?=\s)")
_TOKEN = re.compile(r"(?P<number>\d[\w.]*)|\w+")


class Text(NamedTuple):
    """A text as numbers.

    Attributes:
        name: of the text, or of its folder.
        words: the vocabulary.
        splits: "train", "validation" and "test" -> inputs and targets (n, L) int64, places in `words`.
        note: one sentence about the text.
    """

    name: str
    words: tuple[str, ...]
    splits: dict[str, tuple[np.ndarray, np.ndarray]]
    note: str


class Corpus(NamedTuple):
    """A text in three splits.

    Attributes:
        name: of the text, or of its folder.
        splits: "train", "validation" and "test" -> words in their order, `END` after every line or sentence.
        note: one sentence about the text.
    """

    name: str
    splits: dict[str, list[str]]
    note: str


def read_text(name: str | Path, folder: Path, vocabulary: int | None = None, window: int | None = None) -> Text | None:
    """Return a text cut into windows; None where `name` is no text: neither "pydoc" nor a folder.

    Args:
        name: "pydoc", or the path of a folder for `read_folder`.
        folder: where a relative path is looked for too.
        vocabulary: largest number of words (`vocabulary_of`); None: 10,000.
        window: words per window (`windows`); None: 35.

    Raises:
        FileNotFoundError, ValueError: as `read_folder`, `vocabulary_of` and `windows`.
    """
    if name == "pydoc":
        corpus = read_pydoc()
    else:
        places = (Path(name).expanduser(), folder / name)
        found = next((place for place in places if place.is_dir()), None)
        if found is None:
            return None
        corpus = read_folder(found)
    length = WINDOW if window is None else window
    words = vocabulary_of(corpus.splits["train"], VOCABULARY if vocabulary is None else vocabulary)
    splits = {split: windows(text, words, length, split) for split, text in corpus.splits.items()}
    note = f"{corpus.note}; {len(words):,} words in the vocabulary, windows of {length}"
    return Text(corpus.name, words, splits, note)


def _neither(folder: Path) -> str:
    """Return what to say of a folder that holds neither a text nor images in folders of their classes."""
    inside = sorted(each.name for each in folder.iterdir())
    nearer = folder.parent if (folder.parent / "train").is_dir() else next(
        (folder / name for name in inside if (folder / name / "train").is_dir()), None)
    found = ", ".join(inside[:5]) + (f" and {len(inside) - 5} more" if len(inside) > 5 else "") if inside else "nothing"
    return (f"{folder} must have train/<class>/... and val/<class>/... (or test) for images, or "
            f"{', '.join(FILES.values())} for a text; got {found}" + (f"; did you mean {nearer}?" if nearer else ""))


def read_folder(folder: Path) -> Corpus:
    """Return the text of ``train.txt``, ``valid.txt`` and ``test.txt`` in a folder.

    Words are what white space separates, as in the Penn Treebank files; `END` follows every line that has words.

    Raises:
        FileNotFoundError: a file is missing, naming it; where all are, saying what a folder of images has instead.
        ValueError: a file has no words, or is not UTF-8, naming it.
    """
    missing = [file for file in FILES.values() if not (folder / file).is_file()]
    if len(missing) == len(FILES):
        raise FileNotFoundError(_neither(folder))
    if missing:
        raise FileNotFoundError(f"{folder} must have {', '.join(FILES.values())}, got no {' and no '.join(missing)}")
    splits = {}
    for split, file in FILES.items():
        try:
            lines = (folder / file).read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError as error:
            raise ValueError(f"{folder / file} must be text in UTF-8: {error}") from error
        splits[split] = [word for line in lines if line.split() for word in (*line.split(), END)]
        if not splits[split]:
            raise ValueError(f"{folder / file} must have words, got an empty file" + " of white space" * bool(lines))
    return Corpus(folder.name, splits, f"the text of the folder {folder.name}: "
                  f"{', '.join(f'{len(words):,} {split}' for split, words in splits.items())} words")


def read_pydoc() -> Corpus:
    """Return the text of the documentation that ships with Python, `pydoc_data.topics`, split by topic.

    It differs between versions of Python. Words as in `split_words`, splits as in `split_topics`.
    """
    from pydoc_data.topics import topics  # half a megabyte

    parts = split_topics(topics)
    splits = {split: [word for text in part.values() for word in text] for split, part in parts.items()}
    sizes = ", ".join(f"{len(splits[split]):,} {split} words of {len(part)} topics" for split, part in parts.items())
    version = ".".join(platform.python_version_tuple()[:2])
    return Corpus("pydoc", splits, f"the documentation inside Python {version} (pydoc_data.topics): {sizes}")


def split_words(text: str) -> list[str]:
    """Return the words of a piece of prose.

    Lower case; a word is a run of letters, digits and underscores; numbers become "N"; punctuation is left out, as in
    the Penn Treebank files. `END` follows every sentence (full stop, colon, question or exclamation mark before white
    space) and every paragraph.

    Examples:
        >>> split_words("A list has 3.5 items: see len(). Or not")
        ['a', 'list', 'has', 'N', 'items', '<eos>', 'see', 'len', '<eos>', 'or', 'not', '<eos>']
    """
    words = []
    for sentence in _SENTENCE.split(_PARAGRAPH.sub(". \n", text.lower())):
        found = ["N" if match["number"] else match[0] for match in _TOKEN.finditer(sentence)]
        words += [*found, END] if found else []
    return words


def split_topics(topics: Mapping[str, str]) -> dict[str, dict[str, list[str]]]:
    """Return split -> topic -> words: every topic in one split, every paragraph in one topic.

    Python's topics quote each other. A paragraph that stands in several is kept in the shortest of them only, so that
    no split repeats a paragraph of another. Then the topics, largest first, go where most words are missing for 80 %
    training, 10 % validation and 10 % test.

    Raises:
        ValueError: too few topics to give every split one.
    """
    seen: set[str] = set()
    words: dict[str, list[str]] = {}
    for topic in sorted(topics, key=lambda topic: (len(topics[topic]), topic)):
        paragraphs = dict.fromkeys(" ".join(piece.split()) for piece in _PARAGRAPH.split(topics[topic]))  # in order
        words[topic] = [word for piece in paragraphs if piece not in seen for word in split_words(piece)]
        seen.update(paragraphs)
    total = sum(map(len, words.values()))
    parts: dict[str, dict[str, list[str]]] = {split: {} for split in SHARES}
    missing = {split: share * total for split, share in SHARES.items()}
    for topic in sorted(words, key=lambda topic: (-len(words[topic]), topic)):
        split = max(missing, key=missing.__getitem__)
        parts[split][topic] = words[topic]
        missing[split] -= len(words[topic])
    if not all(any(part.values()) for part in parts.values()):
        raise ValueError(f"topics must be enough for {len(SHARES)} splits, got {len(topics)}")
    return parts


def vocabulary_of(words: Iterable[str], size: int) -> tuple[str, ...]:
    """Return the vocabulary of a training text: `UNKNOWN`, `END`, then its most frequent words.

    Args:
        words: of the training split.
        size: largest number of words, `UNKNOWN` and `END` included; a text with fewer has a smaller vocabulary. Words
            that are equally frequent come in the order of the alphabet.

    Raises:
        ValueError: size < 3: there must be room for one word of the text.

    Examples:
        >>> vocabulary_of("the cat <eos> the dog and the cat <eos>".split(), 5)
        ('<unk>', '<eos>', 'the', 'cat', 'and')
    """
    if size < 3:
        raise ValueError(f"vocabulary must be >= 3: {UNKNOWN}, {END} and one word of the text, got {size}")
    counts = Counter(words)
    ranked = sorted(counts.keys() - {UNKNOWN, END}, key=lambda word: (-counts[word], word))
    return (UNKNOWN, END, *ranked[: size - 2])


def windows(words: Sequence[str], vocabulary: Sequence[str], length: int, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return inputs (n, L) and targets (n, L) int64: a text cut into windows, and the same one word later.

    Every word but the first is a target once; up to L - 1 words at the end of the text are left out.

    Args:
        words: of one split.
        vocabulary: whose places are the numbers; all other words become `UNKNOWN`, which is its first.
        length: L, words per window.
        name: of the split, for the message.

    Raises:
        ValueError: length < 1, or longer than the text.

    Examples:
        >>> inputs, targets = windows("a b a c a".split(), ("<unk>", "a", "b"), 2, "train")
        >>> inputs.tolist(), targets.tolist()
        ([[1, 2], [1, 0]], [[2, 1], [0, 1]])
    """
    if not 1 <= length < len(words):
        raise ValueError(f"window must be in 1..{len(words) - 1} for the {len(words)} words of the {name} split, "
                         f"got {length}")
    places = {word: i for i, word in enumerate(vocabulary)}
    numbers = np.fromiter((places.get(word, 0) for word in words), np.int64, len(words))
    n = (len(numbers) - 1) // length
    return numbers[: n * length].reshape(n, length), numbers[1 : n * length + 1].reshape(n, length)
