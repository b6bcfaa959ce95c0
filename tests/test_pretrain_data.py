"""Text: which files, in which order, the split, and batches as a function of seed and step."""

from __future__ import annotations

import pytest
import torch

from frugalore.pretrain.data import Batches, load_corpus, standard_library_files
from frugalore.pretrain.errors import DataError


def test_a_folder_is_joined_in_sorted_order_with_zero_bytes_between(tmp_path):
    (tmp_path / "b.txt").write_bytes(b"second " * 30)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "z.txt").write_bytes(b"first " * 30)
    (tmp_path / "image.bin").write_bytes(b"\x89\0\0data" * 100)
    (tmp_path / ".hidden").write_bytes(b"hidden" * 100)
    corpus = load_corpus(str(tmp_path), 8)
    whole = torch.cat([corpus.train, corpus.validation]).numpy().tobytes()
    assert whole == b"first " * 30 + b"\0" + b"second " * 30
    assert corpus.files == 2


def test_the_split_is_95_to_5_by_position(tmp_path):
    path = tmp_path / "text"
    path.write_bytes(bytes(range(200)) * 5)
    corpus = load_corpus(str(path), 8)
    assert corpus.train.numel() == 950
    assert corpus.validation.tolist() == [v % 200 for v in range(950, 1000)]


def test_a_single_file_is_taken_as_it_is(tmp_path):
    path = tmp_path / ".binary"
    path.write_bytes(b"\0\1\2\3" * 100)
    assert load_corpus(str(path), 8).size == 400


def test_the_standard_library_is_sorted_and_without_tests_and_installed_packages():
    files = [path.as_posix() for path in standard_library_files()]
    assert any(name.endswith("/argparse.py") for name in files)
    assert all(name.endswith(".py") for name in files)
    for skipped in ("/site-packages/", "/dist-packages/", "/test/", "/idlelib/"):
        assert not any(skipped in name for name in files)
    assert files == [path.as_posix() for path in standard_library_files()]


def test_standard_library_files_are_sorted_by_their_path_below_the_top(tmp_path):
    for name in ("b.py", "a/x.py", "a.py", "test/t.py", "a/tests/t.py", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text("pass\n")
    names = [path.relative_to(tmp_path).as_posix() for path in standard_library_files(str(tmp_path))]
    assert names == ["a.py", "a/x.py", "b.py"]


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "text"
    path.write_bytes(bytes(torch.randint(256, (5000,), generator=torch.Generator().manual_seed(0)).tolist()))
    return load_corpus(str(path), 16)


def test_batches_depend_on_seed_and_step_alone(corpus):
    forward = Batches(corpus, 4, 16, seed=3)
    drawn = [forward.train(step) for step in range(1, 6)]
    again = Batches(corpus, 4, 16, seed=3)
    for step in (5, 1, 3):  # any order
        assert torch.equal(again.train(step), drawn[step - 1])
    assert not torch.equal(drawn[0], drawn[1])
    assert not torch.equal(Batches(corpus, 4, 16, seed=4).train(1), drawn[0])


def test_batches_do_not_touch_the_global_generator(corpus):
    before = torch.get_rng_state()
    Batches(corpus, 4, 16, seed=3).train(1)
    assert torch.equal(torch.get_rng_state(), before)


def test_training_batches_are_runs_of_the_training_part(corpus):
    batch = Batches(corpus, 64, 16, seed=0).train(1)
    assert batch.shape == (64, 17)
    assert batch.dtype == torch.int64
    windows = corpus.train.long().unfold(0, 17, 1)
    for row in batch:
        assert (windows == row).all(1).any()


def test_validation_covers_the_whole_part_and_is_fixed(corpus):
    batches = Batches(corpus, 4, 16, seed=0)
    first = list(batches.validation(3))
    assert [b.shape for b in first] == [(4, 17)] * 3
    assert torch.equal(first[0][0], corpus.validation[:17].long())
    assert torch.equal(first[-1][-1], corpus.validation[-17:].long())
    assert torch.equal(torch.cat(first), torch.cat(list(Batches(corpus, 4, 16, seed=9).validation(3))))


def test_the_shortest_text_gives_one_sequence(tmp_path):
    path = tmp_path / "text"
    path.write_bytes(b"x" * 180)  # 9 bytes to validate on
    batches = Batches(load_corpus(str(path), 8), 2, 8, seed=0)
    assert next(batches.validation(1)).shape == (2, 9)
    path.write_bytes(b"x" * 160)
    with pytest.raises(DataError, match="160 bytes, 8 of them to validate on: too short"):
        load_corpus(str(path), 8)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: p.mkdir(), "no text files in"),
        (lambda p: p.write_bytes(b""), "is empty"),
        (lambda p: p.write_bytes(b"short"), "too short"),
        (lambda p: None, "no such file or folder"),
    ],
)
def test_bad_text_is_refused_by_name(tmp_path, make, message):
    path = tmp_path / "text"
    make(path)
    with pytest.raises(DataError, match=message) as caught:
        load_corpus(str(path), 8)
    assert str(path) in str(caught.value)
