"""Text as bytes: a corpus with a fixed split, and batches that depend on the seed and the step alone.

The vocabulary is the 256 byte values, so there is no tokenizer and nothing to download. Files are joined
in sorted order with a zero byte between them; the first 95 % of the bytes train, the rest validate.
"""

from __future__ import annotations

import hashlib
import os
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from frugalore.pretrain.errors import DataError

VOCABULARY = 256
TRAIN_SHARE = (95, 100)
SEPARATOR = b"\0"

# Not the library proper: tests, vendored packages, installed packages, generated files.
_STDLIB_SKIPPED = frozenset(
    {"site-packages", "dist-packages", "test", "tests", "__pycache__", "idlelib", "lib2to3", "turtledemo"}
)


@dataclass(frozen=True)
class Corpus:
    """The bytes of all files, split by position."""

    train: Tensor  #: uint8 [bytes]
    validation: Tensor  #: uint8 [bytes]
    files: int
    sha256: str  #: of the joined bytes, before the split

    @property
    def size(self) -> int:
        return self.train.numel() + self.validation.numel()


def load_corpus(path: str | None, sequence_length: int) -> Corpus:
    """Read a text file, a folder of text, or (None) the Python standard library's own source.

    Args:
        path: a file, taken as it is; a folder, searched for files that are not hidden and not binary.
        sequence_length: in bytes; both parts of the split must hold a sequence and its next byte.

    Raises:
        DataError: missing, empty, or too short for one sequence.
    """
    files = list(standard_library_files() if path is None else _text_files(Path(path)))
    name = "the Python standard library" if path is None else path
    if not files:
        raise DataError(f"data: no text files in {name}")
    joined = SEPARATOR.join(file.read_bytes() for file in files)
    if not joined.strip(SEPARATOR):
        raise DataError(f"data: {name} is empty")
    cut = len(joined) * TRAIN_SHARE[0] // TRAIN_SHARE[1]
    if min(cut, len(joined) - cut) < sequence_length + 1:
        raise DataError(
            f"data: {name} has {len(joined)} bytes, {len(joined) - cut} of them to validate on: too short "
            f"for one sequence of sequence_length {sequence_length} and its next byte"
        )
    data = torch.frombuffer(bytearray(joined), dtype=torch.uint8)
    return Corpus(data[:cut], data[cut:], len(files), hashlib.sha256(joined).hexdigest())


def standard_library_files(root: str | None = None) -> Iterator[Path]:
    """The ``.py`` files of the standard library, sorted by their path below it."""
    top = Path(root or sysconfig.get_path("stdlib"))
    return _walk(top, lambda folder: folder in _STDLIB_SKIPPED, lambda file: file.suffix == ".py")


def _text_files(path: Path) -> Iterator[Path]:
    if path.is_file():
        return iter([path])
    if not path.is_dir():
        raise DataError(f"data: no such file or folder: {path}")
    return _walk(path, lambda folder: folder.startswith("."), _is_text)


def _is_text(path: Path) -> bool:
    # A zero byte near the start marks a binary file, as git has it.
    with path.open("rb") as file:
        return not path.name.startswith(".") and b"\0" not in file.read(8192)


def _walk(top: Path, skip_folder, keep_file) -> Iterator[Path]:
    found = []
    for folder, subfolders, names in os.walk(top):
        subfolders[:] = [name for name in subfolders if not skip_folder(name)]
        found += [path for name in names if (path := Path(folder, name)).is_file() and keep_file(path)]
    return iter(sorted(found, key=lambda path: path.relative_to(top).as_posix()))


class Batches:
    """Sequences of the corpus, int64 ``[batch_size, sequence_length + 1]``: inputs and targets in one."""

    def __init__(self, corpus: Corpus, batch_size: int, sequence_length: int, seed: int):
        self._corpus = corpus
        self._batch_size = batch_size
        self._sequence = torch.arange(sequence_length + 1)
        self._seed = seed

    def train(self, step: int) -> Tensor:
        """The batch of one step: a function of (seed, step), so a resumed run draws what was next."""
        key = hashlib.blake2b(f"{self._seed}:{step}".encode(), digest_size=8).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(key, "little"))
        last = self._corpus.train.numel() - self._sequence.numel()
        starts = torch.randint(last + 1, (self._batch_size,), generator=generator)
        return self._take(self._corpus.train, starts)

    def validation(self, count: int) -> Iterator[Tensor]:
        """``count`` batches at evenly spaced positions, the same ones every time."""
        last = self._corpus.validation.numel() - self._sequence.numel()
        total = count * self._batch_size
        starts = torch.arange(total) * last // max(total - 1, 1)
        for batch in starts.split(self._batch_size):
            yield self._take(self._corpus.validation, batch)

    def _take(self, data: Tensor, starts: Tensor) -> Tensor:
        return data[starts[:, None] + self._sequence].long()
