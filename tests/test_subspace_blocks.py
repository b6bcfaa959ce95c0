"""Block schedules: which tensors are active in a period (FRUGAL), which layer is trained (BAdam)."""

from __future__ import annotations

import math

import pytest

from frugalore.reference.selection import select
from frugalore.subspace.blocks import (
    MODES,
    ORDERS,
    active_blocks,
    active_blocks_by_bytes,
    block_count,
    cycle_block,
    layer_blocks,
)

LLAMA = [
    "model.embed_tokens.weight",
    *(
        f"model.layers.{i}.{leaf}.weight"
        for i in range(12)
        for leaf in ("self_attn.q_proj", "mlp.up_proj", "input_layernorm")
    ),
    "model.norm.weight",
    "lm_head.weight",
]


def masks(order, n, density, periods, seed=0):
    count = block_count(n, density)
    chosen = [active_blocks(order, n, count, period, seed=seed) for period in range(periods)]
    return ["".join("1" if i in active else "0" for i in range(n)) for active in chosen]


# ---- FRUGAL, by count ---------------------------------------------------------------------------------


def test_descending_goes_round_as_published():
    assert masks("descending", 7, 0.3, 7) == [
        *("0000011", "0001100", "0110000", "1000001", "0000110", "0011000", "1100000")
    ]


def test_ascending_goes_round_as_published():
    assert masks("ascending", 7, 0.3, 5) == ["1100000", "0011000", "0000110", "1000001", "0110000"]
    assert masks("ascending", 5, 1.0, 3) == ["11111"] * 3


def test_mirror_takes_as_many_from_each_end():
    assert masks("mirror", 8, 0.5, 3) == ["11000011", "00111100", "11000011"]
    assert masks("mirror", 10, 0.4, 3) == ["1100000011", "0011001100", "1000110001"]


def test_mirror_with_an_odd_count_takes_the_odd_one_from_alternating_ends():
    assert masks("mirror", 8, 0.375, 3) == ["11000001", "00100110", "10011000"]
    assert masks("mirror", 4, 0.25, 4) == ["1000", "0001", "0100", "0010"]


@pytest.mark.parametrize("order", ["ascending", "descending", "mirror"])
@pytest.mark.parametrize("n", [1, 2, 7, 8, 13])
def test_every_block_has_as_many_turns(order, n):
    for count in range(1, n + 1):
        periods = n // math.gcd(n, count)
        turns = [b for period in range(periods) for b in active_blocks(order, n, count, period, seed=0)]
        assert sorted(turns) == sorted(list(range(n)) * (periods * count // n))


def test_the_count_is_rounded():
    assert block_count(7, 0.3) == 2
    assert block_count(168, 0.25) == 42
    assert [block_count(10, d) for d in (0.0, 0.25, 0.35, 1.0)] == [0, 2, 4, 10]
    assert block_count(10, 0.07) == 1


def test_random_blocks_are_those_with_the_smallest_words():
    for period in range(5):
        blocks = active_blocks("random", 23, 6, period, seed=9, tensor_id=3)
        assert blocks == select(23, 6, seed=9, tensor_id=3, period=period)[1].tolist()


def test_random_blocks_are_reproducible_and_even():
    draws = [active_blocks("random", 12, 3, period, seed=5) for period in range(2000)]
    assert draws == [active_blocks("random", 12, 3, period, seed=5) for period in range(2000)]
    assert all(len(set(blocks)) == 3 and blocks == sorted(blocks) for blocks in draws)
    assert draws[:50] != [active_blocks("random", 12, 3, period, seed=6) for period in range(50)]
    share = 3 / 12
    error = math.sqrt(share * (1 - share) / 2000)
    for block in range(12):
        assert abs(sum(block in blocks for blocks in draws) / 2000 - share) < 4 * error


@pytest.mark.parametrize("order", ORDERS)
def test_none_and_all(order):
    for period in range(3):
        assert active_blocks(order, 5, 0, period, seed=0) == []
        assert active_blocks(order, 5, 5, period, seed=0) == [0, 1, 2, 3, 4]
        assert active_blocks(order, 0, 0, period, seed=0) == []
        assert active_blocks_by_bytes(order, [3, 4], 0.0, period, seed=0) == []
        assert active_blocks_by_bytes(order, [3, 4], 1.0, period, seed=0) == [0, 1]
        assert active_blocks_by_bytes(order, [], 0.5, period, seed=0) == []


# ---- FRUGAL, by bytes ---------------------------------------------------------------------------------


def by_bytes(order, sizes, density, periods, seed=0):
    return [active_blocks_by_bytes(order, sizes, density, p, seed=seed) for p in range(periods)]


def test_blocks_are_taken_while_their_bytes_fit_and_the_next_period_continues():
    sizes = [4, 4, 10, 2, 4, 8, 8]  # 40 bytes, of which 10 may be active
    assert by_bytes("ascending", sizes, 0.25, 6) == [[0, 1], [2], [3, 4], [5], [6], [0, 1]]
    assert by_bytes("descending", sizes, 0.25, 6) == [[6], [5], [3, 4], [2], [0, 1], [6]]
    assert by_bytes("mirror", sizes, 0.25, 4) == [[0], [6], [1], [5]]
    assert by_bytes("mirror", sizes, 0.3, 3) == [[0, 6], [1, 5], [2]]


def test_a_block_above_the_budget_is_taken_alone():
    assert by_bytes("ascending", [1, 30, 1], 0.1, 4) == [[0], [1], [0, 2], [1]]


def test_a_piece_never_holds_a_block_twice():
    assert by_bytes("ascending", [1, 2, 3], 0.9, 4) == [[0, 1], [0, 2], [1, 2], [0, 1]]
    assert by_bytes("ascending", [1, 1, 6], 1.0, 4) == [[0, 1, 2]] * 4


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("density", [0.1, 0.25, 0.6])
def test_bytes_stay_within_the_budget_and_every_block_has_turns(order, density):
    sizes = [16, 16, 16, 16, 43, 43, 43] * 3
    budget = density * sum(sizes)
    seen = set()
    for period in range(200):
        active = active_blocks_by_bytes(order, sizes, density, period, seed=1)
        taken = sum(sizes[i] for i in active)
        assert active == sorted(set(active)) and active
        assert taken <= budget + 0.5
        assert taken > budget - 43 - 0.5
        seen |= set(active)
    assert seen == set(range(len(sizes)))


def test_equal_sizes_are_a_count():
    for order in ORDERS:
        for period in range(9):
            counted = active_blocks(order, 8, 2, period, seed=3)
            assert active_blocks_by_bytes(order, [100] * 8, 0.25, period, seed=3) == counted


# ---- BAdam --------------------------------------------------------------------------------------------


def blocks_of(mode, n, periods, **options):
    return [cycle_block(mode, n, period, **options) for period in range(periods)]


def test_a_cycle_goes_round():
    assert blocks_of("ascending", 3, 5) == [0, 1, 2, 0, 1]
    assert blocks_of("descending", 3, 5) == [2, 1, 0, 2, 1]
    assert blocks_of("descending", 3, 4, start=0) == [0, 2, 1, 0]
    assert blocks_of("fixed", 3, 3) == [0, 0, 0]
    assert blocks_of("fixed", 3, 3, start=2) == [2, 2, 2]


def test_random_goes_through_a_new_permutation_each_time():
    order = blocks_of("random", 8, 80, seed=4)
    rounds = [order[i : i + 8] for i in range(0, 80, 8)]
    assert all(sorted(r) == list(range(8)) for r in rounds)
    assert len({tuple(r) for r in rounds}) == 10
    assert order != blocks_of("random", 8, 80, seed=5)
    begun = blocks_of("random", 8, 80, seed=4, start=5)
    assert begun[0] == 5 and sorted(begun[:8]) == list(range(8)) and begun[8:] == order[8:]


def test_one_block_is_always_it():
    assert all(blocks_of(mode, 1, 4, seed=2) == [0] * 4 for mode in MODES)


# ---- layers -------------------------------------------------------------------------------------------


def named(names, blocks):
    return [[names[i] for i in block] for block in blocks]


def test_layers_are_found_by_their_number():
    blocks = layer_blocks(LLAMA)
    assert len(blocks) == 12
    assert named(LLAMA, blocks)[1] == [
        f"model.layers.1.{leaf}.weight" for leaf in ("self_attn.q_proj", "mlp.up_proj", "input_layernorm")
    ]
    assert [i for block in blocks for i in block] == list(range(1, 37))


def test_embedding_and_head_are_blocks_on_request():
    assert layer_blocks(LLAMA, include_embedding=True)[0] == [0]
    assert layer_blocks(LLAMA, include_lm_head=True)[-1] == [37, 38]
    both = layer_blocks(LLAMA, include_embedding=True, include_lm_head=True)
    assert sorted(i for block in both for i in block) == list(range(len(LLAMA)))


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["transformer.wte.weight", "transformer.h.0.a.b", "transformer.h.10.a.b"], [[1], [2]]),
        (["0.weight", "0.bias", "2.weight"], [[0, 1], [2]]),
        (["m.layers.0.experts.0.w", "m.layers.0.experts.1.w", "m.layers.1.experts.0.w"], [[0, 1], [2]]),
        (["encoder.block.0.w", "decoder.block.0.w"], [[0], [1]]),
        (["layers.0.embed.weight", "layers.1.embed.weight"], [[0], [1]]),
    ],
)
def test_other_models(names, expected):
    assert layer_blocks(names) == expected


def test_prefixes_are_whole_parts_of_names():
    blocks = layer_blocks(LLAMA, ["layers.1", "model.layers.11.mlp.", "lm_head"])
    assert named(LLAMA, blocks) == [
        [f"model.layers.1.{x}.weight" for x in ("self_attn.q_proj", "mlp.up_proj", "input_layernorm")],
        ["model.layers.11.mlp.up_proj.weight"],
        ["lm_head.weight"],
    ]


# ---- errors -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: active_blocks("up", 4, 1, 0, seed=0), "block_order: one of random, ascending, .* got 'up'"),
        (lambda: active_blocks("mirror", 4, 5, 0, seed=0), r"count: 0 to 4 expected \(n = 4\), got 5"),
        (lambda: active_blocks("mirror", 4, 1, -1, seed=0), "period: 0 or more expected, got -1"),
        (lambda: block_count(4, 1.5), "density: 0 to 1 expected, got 1.5"),
        (lambda: block_count(4, math.nan), "density: 0 to 1 expected, got nan"),
        (
            lambda: active_blocks_by_bytes("random", [3, 0], 0.5, 0, seed=0),
            r"sizes: positive integers expected, got \[3, 0\]",
        ),
        (lambda: cycle_block("mirror", 4, 0), "mode: one of random, .* got 'mirror'"),
        (lambda: cycle_block("fixed", 4, 0, start=4), r"start: a block in \[0, 4\) expected, got 4"),
        (lambda: cycle_block("fixed", 0, 0), "n: one block or more expected, got 0"),
        (lambda: layer_blocks(["a.weight"]), "names: numbered layers expected, got a.weight"),
        (lambda: layer_blocks(LLAMA, ["layers.99"]), "prefixes: 'layers.99' is in none of the names"),
        (lambda: layer_blocks(LLAMA, []), r"prefixes: a list of prefixes expected, got \[\]"),
        (lambda: layer_blocks(LLAMA, ["layers.1", "mlp"]), "is in two blocks, 'layers.1' and 'mlp'"),
    ],
)
def test_wrong_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()
