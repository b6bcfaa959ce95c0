"""What FRUGAL's presets and Fira refuse, and what they warn of."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

import frugalore
from frugal_helpers import make_frugal, make_model, train


def group(**options):
    return {"params": [nn.Parameter(torch.zeros(8, 12))], "density": 0.25, **options}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"density": -0.1}, r"density: a number in \[0, 1\] expected, got -0.1"),
        ({"density": 1.01}, r"density: a number in \[0, 1\] expected, got 1.01"),
        ({"density": float("nan")}, r"density: a number in \[0, 1\] expected, got nan"),
        ({"density": "a quarter"}, r"density: a number in \[0, 1\] expected, got 'a quarter'"),
        ({"density": True}, r"density: a number in \[0, 1\] expected, got True"),
        ({"update_gap": 0}, "update_gap: a positive integer expected, got 0"),
        ({"update_gap": 2.5}, "update_gap: a positive integer expected, got 2.5"),
        ({"subspace": "diagonal"}, "subspace: one of columns, rows, randk, .* expected, got 'diagonal'"),
        ({"inactive_update_rule": "same"}, "inactive_update_rule: one of sign_sgd, sgd, no.* got 'same'"),
        ({"inactive_lr_scale": -1}, "inactive_lr_scale: zero or more expected, got -1"),
        ({"proj_params_lr_scale": float("inf")}, "proj_params_lr_scale: zero or more expected, got inf"),
        ({"moments_at_refresh": "forget"}, "moments_at_refresh: one of keep, rotate, reset expected"),
        ({"subspace": "blocks", "block_order": "up"}, "block_order: one of random, .* got 'up'"),
        ({"subspace": "blocks", "block_budget": "time"}, "block_budget: one of count, bytes expected"),
        ({"subspace": "blocks", "moments_at_refresh": "keep"}, "'reset' or 'rotate' expected with blocks"),
        ({"subspace": "blocks", "active_blocks": 0}, "active_blocks: a positive integer expected, got 0"),
        ({"subspace": "blocks", "active_blocks": 2}, "active_blocks: at most 1 expected, as there are 1"),
        ({"subspace": "blocks", "block_order": "shuffle"}, "active_blocks: 1 expected with block_order"),
        ({"subspace": "columns", "inactive_update_rule": "fira"}, "inactive_update_rule: one of"),
        (
            {"subspace": "svd", "inactive_update_rule": "fira", "inactive_lr_scale": 0.5},
            "inactive_lr_scale: 1 expected with the rule 'fira', got 0.5",
        ),
        ({"subspace": "svd", "inactive_update_rule": "fira", "proj_type": "full"}, "proj_type: one side"),
        ({"subspace": "svd", "inactive_update_rule": "fira", "fira_limit": 0.9}, "fira_limit: 1 or more"),
        ({"rank": 8}, "rank: density expected in a group of FrugalAdamW, got rank 8"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        frugalore.FrugalAdamW([group(**options)])


@pytest.mark.parametrize("option", ["density", "update_gap"])
def test_an_option_that_goes_wrong_later_changes_nothing(option):
    model = make_model()
    optimizer = make_frugal(model)
    train(model, optimizer, range(1))
    optimizer.param_groups[1][option] = -1
    before = [p.detach().clone() for p in model.parameters()]
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    with pytest.raises(ValueError, match=f"param group 1: {option}: "):
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize("preset", [frugalore.FrugalSGDM, frugalore.FrugalLion])
def test_fira_needs_adamw(preset):
    with pytest.raises(ValueError, match="'fira' goes with AdamW inside"):
        preset([group(subspace="svd", inactive_update_rule="fira")])


def test_density_for_a_preset_with_rank():
    with pytest.raises(
        ValueError, match=r"density: rank expected in a group of GaLoreAdamW, got density 0.25"
    ):
        frugalore.GaLoreAdamW([group()])
    with pytest.raises(ValueError, match="density: one of rank and density expected"):
        frugalore.param_groups(make_model(), rank=4, density=0.25)


def test_an_unknown_option_of_the_constructor():
    with pytest.raises(TypeError, match="update_proj_gap: no option of FrugalAdamW"):
        frugalore.FrugalAdamW([group()], update_proj_gap=10)


def test_all_parameters_frozen():
    p = nn.Parameter(torch.zeros(4, 4), requires_grad=False)
    with pytest.raises(
        ValueError, match="params: all 1 parameters of the group are frozen, parameter 0 first"
    ):
        frugalore.FrugalAdamW([{"params": [p], "density": 0.5}])


def test_a_vector_needs_blocks():
    vector = nn.Parameter(torch.zeros(8))
    with pytest.raises(ValueError, match="two dimensions or more expected in a group with density"):
        frugalore.FrugalAdamW([{"params": [vector], "density": 0.5}])
    frugalore.FrugalAdamW([{"params": [vector], "density": 0.5, "subspace": "blocks"}])


def test_groups_without_density_are_told_of():
    with pytest.warns(UserWarning, match="no param group has a density"):
        frugalore.FrugalAdamW(make_model().parameters())


def test_the_published_marker_of_a_group():
    model = make_model()
    groups = [
        {"params": [model.lm_head.weight], "is_proj_params": False},
        {"params": [model.layers[0].attn.weight], "is_proj_params": True},
    ]
    optimizer = frugalore.FrugalAdamW(groups, density=0.5, update_gap=7)
    assert "density" not in optimizer.param_groups[0]
    assert optimizer.param_groups[1]["density"] == 0.5 and optimizer.param_groups[1]["update_gap"] == 7


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_mirror_with_any_number_of_blocks(count):
    """Published, an odd number of active blocks is an assertion."""
    params = [nn.Parameter(torch.zeros(4, 4)) for _ in range(5)]
    options = {"subspace": "blocks", "block_order": "mirror", "active_blocks": count, "update_gap": 1}
    optimizer = frugalore.FrugalAdamW([{"params": params, "density": 1.0, **options}], seed=0)
    group, visited = optimizer.param_groups[0], set()
    for _ in range(5):
        active = {i for i, p in enumerate(params) if not optimizer.treatment(group).is_state_free(p, group)}
        assert len(active) == count
        visited |= active
        for p in params:
            p.grad = torch.ones_like(p)
        optimizer.step()
    assert visited == set(range(5))


def test_a_block_that_never_has_a_gradient_is_named_once():
    used, unused = nn.Parameter(torch.zeros(4, 4)), nn.Parameter(torch.zeros(4, 4))
    named = [("used", used), ("lost", unused)]
    options = {"subspace": "blocks", "block_order": "ascending", "update_gap": 2}
    optimizer = frugalore.FrugalAdamW([{"params": named, "density": 0.5, **options}], seed=0)

    def steps(count):
        for _ in range(count):
            used.grad = torch.ones_like(used)
            optimizer.step()

    steps(2)
    with pytest.warns(UserWarning, match="lost: active for 2 steps and never had a gradient"):
        steps(2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        steps(4)


class TestFira:
    def test_alpha_is_scale(self):
        p = nn.Parameter(torch.zeros(8, 12))
        optimizer = frugalore.Fira([{"params": [p], "rank": 2, "alpha": 0.5, "update_proj_gap": 10}])
        assert optimizer.param_groups[0]["scale"] == 0.5
        with pytest.raises(ValueError, match=r"alpha: 0\.5 beside scale 0\.25"):
            frugalore.Fira([{"params": [p], "rank": 2, "alpha": 0.5, "scale": 0.25}])

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"fira_mode": "book"}, "fira_mode: one of code, paper expected, got 'book'"),
            ({"fira_limit": 0.5}, "fira_limit: 1 or more expected, got 0.5"),
            ({"proj_type": "full"}, "proj_type: one side expected"),
        ],
    )
    def test_options(self, options, message):
        with pytest.raises(ValueError, match=message):
            frugalore.Fira([{"params": [nn.Parameter(torch.zeros(8, 12))], "rank": 2, **options}])
