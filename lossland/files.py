"""Bytes that can be trusted: canonical JSON, files that carry their own hash, writes that are whole or nothing."""

import hashlib
import json
import math
import os
import re
import warnings
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor


class Corrupt(Exception):
    """A file is not what was written there."""


def cache_folder() -> Path:
    """Return the folder for files that can be made again: ``$XDG_CACHE_HOME/lossland``, else ``~/.cache/lossland``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lossland"


def installed_version() -> str:
    """Return the version of this package, "not installed" where it runs from its source alone."""
    try:
        return metadata.version("lossland")
    except metadata.PackageNotFoundError:
        return "not installed"


def plain(value: Any, where: str) -> Any:
    """Return the value made of JSON types only, tuples as lists.

    Args:
        value: Strings, finite numbers, bools, None, lists, tuples and mappings with strings as keys, nested.
        where: What the value is, for messages.

    Raises:
        ValueError: Anything else; the message names its place, such as ``recipe.schedule[2]``.
    """
    if value is None or isinstance(value, bool):
        return value
    for kind in (str, int, float):
        if isinstance(value, kind):
            if kind is float and not math.isfinite(value):
                raise ValueError(f"{where} must be finite, got {value!r}")
            return kind(value)
    if isinstance(value, (list, tuple)):
        return [plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, Mapping):
        for name in value:
            if not isinstance(name, str):
                raise ValueError(f"{where} must have strings as keys, got {name!r}")
        return {name: plain(item, f"{where}.{name}") for name, item in value.items()}
    raise ValueError(f"{where} must be a JSON value (string, number, bool, None, list, mapping), "
                     f"got {value!r} ({type(value).__name__})")


def canonical(value: Any, where: str) -> bytes:
    """Return the one JSON text of the value: sorted keys, no spaces, shortest floats. 1 and 1.0 differ.

    Raises:
        ValueError: As in `plain`.
    """
    return json.dumps(plain(value, where), sort_keys=True, separators=(",", ":")).encode()


def copied(tensors: Mapping[str, Tensor], what: str) -> dict[str, Tensor]:
    """Return contiguous copies on the CPU that share no memory (views of one buffer cannot be saved).

    Raises:
        TypeError: A value is no tensor.
        ValueError: A tensor holds NaN or an infinite number.
    """
    copies = {}
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{what} {name!r} must be a tensor, got {type(tensor).__name__}")
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{what} {name!r} must be finite, got NaN or infinite values; nothing is stored")
        copies[name] = tensor.detach().to("cpu", copy=True).contiguous()
    return copies


def pack(tensors: dict[str, Tensor], header: dict[str, Any]) -> bytes:
    """Return a safetensors file of CPU tensors that share no memory, their order and a JSON header."""
    texts = {"lossland": json.dumps({"order": list(tensors), "header": header}), "sha256": "0" * 64}
    return safetensors.torch.save(tensors, metadata=texts)


def unpack(data: bytes) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return tensors in their first order (safetensors sorts them) and header.

    Args:
        data: What `pack` returned; the caller has checked its hash.
    """
    size = int.from_bytes(data[:8], "little")
    ours = json.loads(json.loads(data[8:8 + size])["__metadata__"]["lossland"])
    tensors = safetensors.torch.load(data)
    return {name: tensors[name] for name in ours["order"]}, ours["header"]


_SEAL = re.compile(rb'"sha256":"([0-9a-f]{64})"')  # in any other text of the header the quotes are escaped


def sealed(data: bytes) -> bytes:
    """Return `pack`'s file with the sha256 of all its bytes, taken while the field is zero, in its own header."""
    found = _SEAL.search(data)
    assert found is not None
    return data[:found.start(1)] + hashlib.sha256(data).hexdigest().encode() + data[found.end(1):]


def unsealed(data: bytes) -> bytes:
    """Return what `sealed` was given.

    Raises:
        Corrupt: Any byte differs from what `sealed` returned.
    """
    found = _SEAL.search(data)
    if found is not None:
        zeroed = data[:found.start(1)] + b"0" * 64 + data[found.end(1):]
        if hashlib.sha256(zeroed).hexdigest().encode() == found[1]:
            return zeroed
    raise Corrupt("does not match its hash")


def sealed_record(record: Mapping[str, Any]) -> bytes:
    """Return the readable JSON text of a record, with the sha256 of its canonical text as ``record_sha256``.

    Raises:
        ValueError: As in `plain`.
    """
    whole = {**record, "record_sha256": hashlib.sha256(canonical(record, "record")).hexdigest()}
    return json.dumps(whole, indent=2, ensure_ascii=False).encode("utf-8", "surrogatepass")


def opened_record(text: bytes) -> dict[str, Any]:
    """Return the record that `sealed_record` wrote, its hash included.

    Raises:
        Corrupt: The text is no such record, or a value was changed.
    """
    try:
        record = json.loads(text)
        rest = {name: value for name, value in record.items() if name != "record_sha256"}
        digest = hashlib.sha256(canonical(rest, "record")).hexdigest()
    except (ValueError, AttributeError) as error:
        raise Corrupt(f"record cannot be read ({error})") from error
    if record.get("record_sha256") != digest:
        raise Corrupt("record does not match its hash")
    return record


def write_whole(file: Path, data: bytes) -> None:
    """Write the file whole or not at all, also if the process or the machine stops in between.

    The temporary file beside it is called ``.<name>.<process>.tmp``.
    """
    beside = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    with beside.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(beside, file)


def set_aside(folder: Path, names: list[str], reason: str) -> None:
    """Move files of the folder into its first free ``corrupt-<n>``, with a warning that tells why; nothing is lost."""
    number = 1
    while (folder / f"corrupt-{number}").exists():
        number += 1
    aside = folder / f"corrupt-{number}"
    aside.mkdir()
    for name in names:
        if (folder / name).exists():
            os.replace(folder / name, aside / name)
    warnings.warn(f"{folder}: {reason}; moved to {aside.name}, to be made again", stacklevel=3)
