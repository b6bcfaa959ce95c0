"""rademacher_, and the random stream that every op shares."""

from __future__ import annotations

import pytest
import torch

from frugalore import ops
from frugalore.reference import sketch as reference
from frugalore.reference.philox import philox4x32, random_words

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
STREAM = {"seed": 1, "tensor_id": 2, "period": 3}


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        (0, 0, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        (0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    ],
)
def test_philox_known_answers(counter, key, words):
    """The vectors of Random123 (Salmon et al., SC 2011)."""
    result = philox4x32([torch.tensor([counter])] * 4, key)
    assert tuple(int(word) for word in result) == words


@pytest.mark.parametrize("shape", [(), (1,), (5, 333), (0, 4), (2, 3, 700)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("first_index", [0, 1, 2, 3, 2**32 - 6, 2**40 + 1])
def test_equals_reference_to_the_bit(shape, dtype, first_index, device):
    out = torch.full(shape, 7.0, dtype=dtype, device=device)
    assert ops.rademacher_(out, first_index=first_index, **STREAM) is out
    spec = reference.rademacher_(torch.empty(shape, dtype=dtype), first_index=first_index, **STREAM)
    assert torch.equal(out.cpu(), spec)


@pytest.mark.parametrize("first_index", [0, 3, 2**34 - 5])
def test_every_instruction_set_gives_the_same_bytes(isa, first_index):
    out = ops.rademacher_(torch.empty(3001), first_index=first_index, **STREAM)
    assert torch.equal(out, reference.rademacher_(torch.empty(3001), first_index=first_index, **STREAM))


def test_thread_count_does_not_matter():
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = ops.rademacher_(torch.empty(300_001), **STREAM)
        torch.set_num_threads(5)
        five = ops.rademacher_(torch.empty(300_001), **STREAM)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(one, five)


def test_signs_are_balanced_and_independent(device):
    signs = ops.rademacher_(torch.empty(64, 4096, device=device), **STREAM).double()
    count = signs.numel()
    assert signs.abs().eq(1).all()
    assert abs(signs.sum().item()) < 4 * count**0.5
    gram = signs @ signs.t() / 4096**0.5
    assert (gram - torch.diag(gram.diag())).abs().max() < 6


def test_each_name_is_another_stream(device):
    first = ops.rademacher_(torch.empty(1000, device=device), **STREAM)
    for change in ({"seed": 2}, {"tensor_id": 3}, {"period": 4}, {"first_index": 4}, {"seed": 1 + 2**32}):
        other = ops.rademacher_(torch.empty(1000, device=device), **(STREAM | change))
        assert abs((first * other).sum().item()) < 4 * 1000**0.5
    same = ops.rademacher_(torch.empty(1000, device=device), **(STREAM | {"period": 3 + 2**28}))
    assert torch.equal(first, same)


def test_words_of_a_run_do_not_depend_on_where_it_is_cut():
    whole = random_words(100, 9, 8, 7, 3, first_index=2**33 - 50)
    parts = [random_words(n, 9, 8, 7, 3, first_index=2**33 - 50 + i) for i, n in ((0, 3), (3, 60), (63, 37))]
    assert torch.equal(whole, torch.cat(parts))


@pytest.mark.parametrize(
    ("out", "change", "error", "message"),
    [
        (torch.empty(4, dtype=torch.float64), {}, TypeError, "out: dtype .* got float64"),
        (torch.empty(4, 4).t(), {}, ValueError, "out: a contiguous tensor expected"),
        (torch.empty(4), {"tensor_id": 2**32}, ValueError, "tensor_id: .* got 4294967296"),
        (torch.empty(4), {"first_index": -1}, ValueError, "first_index: zero or more expected, got -1"),
    ],
    ids=str,
)
def test_bad_input_is_refused(out, change, error, message):
    with pytest.raises(error, match=message):
        ops.rademacher_(out, **(STREAM | change))


def test_autograd_sees_the_write(device):
    out = torch.empty(8, device=device)
    version = out._version
    ops.rademacher_(out, **STREAM)
    assert out._version > version


def test_opcheck():
    torch.library.opcheck(torch.ops.frugalore.rademacher_.default, (torch.empty(130), 1, 2, 3, 0))
