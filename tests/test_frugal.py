"""FrugalAdamW, FrugalSGDM, FrugalLion beside their specification and beside other optimizers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import frugalore
from frugal_helpers import PRESETS, feed, gradients, make_frugal, make_model, parameters, train
from frugal_oracle import spec_trajectory, whole_tensors
from frugalore.subspace.blocks import active_blocks_by_bytes

GAP = 4
SEED = 11


def optimizer_over(params, preset="adamw", *, lr=1e-2, weight_decay=0.0, seed=SEED, **options):
    group = {"params": params, "density": 0.25, "update_gap": GAP, **options}
    return PRESETS[preset]([group], lr=lr, weight_decay=weight_decay, seed=seed)


def assert_follows(params, optimizer, spec, grads, tolerance=2e-6):
    for of_step, expected in zip(grads, spec, strict=True):
        feed(optimizer, params, of_step)
        for p, snapshot in zip(params, expected, strict=True):
            torch.testing.assert_close(p.detach().cpu().double(), snapshot.weight, rtol=0, atol=tolerance)


class TestSpecification:
    """The rest of it: tests/test_frugal_trajectories.py."""

    def test_blocks_by_bytes(self):
        shapes = [(8, 8), (32, 32), (4, 4), (16, 16), (8, 16)]
        params, grads = parameters(shapes), gradients(12, shapes)
        sizes = [p.numel() for p in params]

        def subspaces(period):
            taken = active_blocks_by_bytes("ascending", sizes, 0.4, period, seed=SEED)
            return whole_tensors(taken, len(shapes))

        spec = spec_trajectory([p.detach() for p in params], grads, subspaces, update_gap=GAP, lr=1e-2)
        options = {"subspace": "blocks", "density": 0.4, "block_order": "ascending", "block_budget": "bytes"}
        assert_follows(params, optimizer_over(params, **options), spec, grads)


class TestEquivalences:
    def test_density_0_is_sign_sgd(self, device):
        params, grads = parameters(device=device), gradients(7)
        twins = [p.detach().clone() for p in params]
        optimizer = optimizer_over(params, density=0.0, weight_decay=0.1)
        for of_step in grads:
            feed(optimizer, params, of_step)
            for twin, grad in zip(twins, of_step, strict=True):
                twin.mul_(1 - 1e-3).sub_(1e-2 * grad.to(device).sign())
        for p, twin in zip(params, twins, strict=True):
            torch.testing.assert_close(p.detach(), twin, rtol=0, atol=1e-6)
        assert optimizer.state_bytes()["moments"] == 0

    @pytest.mark.parametrize("subspace", ["columns", "rows", "randk", "randperm", "blocks"])
    def test_density_1_is_adamw(self, subspace, device):
        """With the moments kept; a reset begins AdamW anew in every period."""
        params, grads = parameters(device=device), gradients(10)
        twins = [nn.Parameter(p.detach().clone()) for p in params]
        options = {"density": 1.0, "subspace": subspace, "moments_at_refresh": "rotate"}
        optimizer = optimizer_over(params, weight_decay=0.1, **options)
        torch_adamw = torch.optim.AdamW(twins, lr=1e-2, weight_decay=0.1)
        for of_step in grads:
            feed(optimizer, params, of_step)
            feed(torch_adamw, twins, of_step)
        for p, twin in zip(params, twins, strict=True):
            torch.testing.assert_close(p.detach(), twin.detach(), rtol=0, atol=4e-6)

    def test_nothing_outside_an_svd_subspace_with_kept_moments_is_galore(self, device):
        shapes = [(24, 40), (40, 24)]
        grads = gradients(9, shapes)
        ours, theirs = parameters(shapes, device=device), parameters(shapes, device=device)
        options = {
            "subspace": "svd",
            "inactive_update_rule": "no",
            "moments_at_refresh": "keep",
            "proj_params_lr_scale": 0.25,
        }
        frugal = frugalore.FrugalAdamW(
            [{"params": ours, "density": 0.25, "update_gap": GAP, **options}], lr=1e-2, eps=1e-12, seed=SEED
        )
        groups = []
        for p in theirs:  # one rank a shape
            rank = round(0.25 * min(p.shape))
            groups.append({"params": [p], "rank": rank, "update_proj_gap": GAP, "stagger": False})
        galore = frugalore.GaLoreAdamW(groups, lr=1e-2, eps=1e-12, seed=SEED)
        for of_step in grads:
            feed(frugal, ours, of_step)
            feed(galore, theirs, of_step)
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a.detach(), b.detach(), rtol=0, atol=2e-6)

    def test_regular_groups_are_adamw(self):
        params, grads = parameters(), gradients(6)
        twins = [nn.Parameter(p.detach().clone()) for p in params]
        groups = [{"params": params[:3]}, {"params": params[3:], "density": 0.25}]
        optimizer = frugalore.FrugalAdamW(groups, lr=1e-2, weight_decay=0.1, seed=0)
        torch_adamw = torch.optim.AdamW(twins, lr=1e-2, weight_decay=0.1)
        for of_step in grads:
            feed(optimizer, params, of_step)
            feed(torch_adamw, twins, of_step)
        for p, twin in zip(params[:3], twins[:3], strict=True):
            torch.testing.assert_close(p.detach(), twin.detach(), rtol=0, atol=2e-6)

    @pytest.mark.parametrize("subspace", ["columns", "blocks"])
    def test_the_sign_part_does_not_see_the_scale_of_a_gradient(self, subspace):
        options = {"subspace": subspace, "density": 0.0}
        one, other = parameters(), parameters()
        a, b = optimizer_over(one, **options), optimizer_over(other, **options)
        for of_step in gradients(5):
            feed(a, one, of_step)
            feed(b, other, [grad / 1024 for grad in of_step])
        assert all(torch.equal(p, q) for p, q in zip(one, other, strict=True))

    @pytest.mark.parametrize("subspace", ["columns", "rows", "randk", "blocks", "svd", "random"])
    def test_int8_weights_follow_float_ones(self, subspace, device):
        losses = {}
        for quantized in (False, True):
            model = make_model(quantized=quantized, device=device)
            optimizer = make_frugal(model, subspace=subspace, state_bits=8 if quantized else 32)
            losses[quantized] = train(model, optimizer, range(25))
        assert losses[False][-1] < 0.75 * losses[False][0]
        assert losses[True][-1] < 0.75 * losses[True][0]

    def test_8_bit_state_follows_float32_state(self, device):
        losses = []
        for bits in (32, 8, 4):
            model = make_model(device=device)
            losses.append(train(model, make_frugal(model, state_bits=bits), range(20))[-1])
        assert losses[1] == pytest.approx(losses[0], rel=0.05)
        assert losses[2] == pytest.approx(losses[0], rel=0.1)


class TestConvergence:
    """Algorithm 2 and theorem 5.2 of the paper: SGD with momentum inside, SGD outside."""

    @pytest.mark.parametrize("density", [0.0, 0.25, 1.0])
    @pytest.mark.parametrize("subspace", ["columns", "randk"])
    def test_a_quadratic_at_the_published_step_bound(self, subspace, density):
        """Without noise the mean squared gradient is at most 2 (f(x_1) - f*) / (K alpha)."""
        beta, steps = 0.9, 400
        generator = torch.Generator().manual_seed(3)
        curvature = torch.logspace(-2, 0, 256).view(16, 16)[torch.randperm(16, generator=generator)] * 5.0
        smoothness = float(curvature.max())
        lr = (1 - beta) / (smoothness * (4 - beta + beta**2))
        x = nn.Parameter(torch.randn(16, 16, generator=generator))
        optimizer = frugalore.FrugalSGDM(
            [{"params": [x], "density": density, "update_gap": 1, "subspace": subspace}],
            lr=lr,
            momentum=beta,
            dampening=beta,
            seed=5,
            inactive_update_rule="sgd",
            moments_at_refresh="rotate",
        )
        values, squares = [], []
        for _ in range(steps):
            values.append(float((0.5 * curvature * x.detach().square()).sum()))
            x.grad = curvature * x.detach()
            squares.append(float(x.grad.square().sum()))
            optimizer.step()
        assert sum(squares) / steps <= 2 * values[0] / (steps * lr)
        assert all(later <= values[0] * 1.001 for later in values)
        assert values[-1] < 0.3 * values[0]

    def test_beyond_the_stable_step_it_diverges(self):
        """So the test above can fail: without a subspace gradient descent diverges above 2 / L."""
        x = nn.Parameter(torch.ones(4, 4))
        optimizer = frugalore.FrugalSGDM(
            [{"params": [x], "density": 0.0, "inactive_update_rule": "sgd"}], lr=2.2, seed=0
        )
        for _ in range(40):
            x.grad = x.detach().clone()
            optimizer.step()
        assert float(x.detach().abs().max()) > 100


class TestPeriods:
    def test_the_counter_does_not_need_the_first_parameter(self):
        """The second parameter's trajectory is the same whether or not the first one has gradients."""
        with_first, without = parameters(), parameters()
        a, b = optimizer_over(with_first), optimizer_over(without)
        for of_step in gradients(10):
            feed(a, with_first, of_step)
            feed(b, without, [None, *of_step[1:]])
        assert all(torch.equal(p, q) for p, q in zip(with_first[1:], without[1:], strict=True))
        assert torch.equal(without[0], parameters()[0]) and without[0] not in b.state
        assert b.param_groups[0]["period"] == 2 and b.param_groups[0]["period_calls"] == 2

    def test_a_parameter_that_skips_periods_enters_the_present_one(self):
        params = parameters()
        optimizer = optimizer_over(params)
        grads = gradients(14)
        for step, of_step in enumerate(grads):
            feed(optimizer, params, of_step if step in (0, 13) else [None, *of_step[1:]])
        state = optimizer.state[params[0]]
        assert state["period"] == 3 and int(state["progress"][0]) == 2
        # Its moments began anew: one update of this period.
        assert state["beta_powers"].tolist() == pytest.approx([0.9, 0.999])

    def test_equal_seeds_choose_alike_whatever_torchs_generator(self):
        results = []
        for seed in (1, 2):
            params = parameters()
            optimizer = optimizer_over(params, subspace="columns")
            torch.manual_seed(seed)
            for of_step in gradients(9):
                torch.rand(seed)
                feed(optimizer, params, of_step)
            results.append([p.detach().clone() for p in params])
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))

    def test_other_seeds_periods_and_parameters_choose_otherwise(self):
        params = [*parameters([(4, 400)]), *parameters([(4, 400)], seed=4)]
        optimizer = optimizer_over(params)
        seen = []
        for of_step in gradients(2 * GAP, [(4, 400)] * 2):
            feed(optimizer, params, of_step)
            treatment = optimizer.treatment(optimizer.param_groups[0])
            seen.append([treatment._selections[p].chosen.tolist() for p in params])
        assert seen[0] == seen[GAP - 1] and seen[0][0] != seen[0][1]
        assert seen[GAP] != seen[0]

    def test_density_and_gap_may_change(self):
        """As AdaFRUGAL (arXiv 2601.11568) does: a new density holds from the next choice on."""
        params = parameters([(8, 40)])
        optimizer = optimizer_over(params)
        group = optimizer.param_groups[0]
        widths = []
        for step, of_step in enumerate(gradients(14, [(8, 40)])):
            if step == 1:
                group["density"] = 0.1
            if step == 5:
                group["update_gap"] = 2
            feed(optimizer, params, of_step)
            widths.append(optimizer.state[params[0]]["exp_avg"].shape[1])
        assert widths == [10] * 4 + [4] * 10
        assert group["period"] == 1 + 5 and group["period_calls"] == 0

    def test_first_update_after_a_reset_is_the_sign(self):
        params, grads = parameters(), gradients(GAP + 1)
        optimizer = optimizer_over(params, inactive_lr_scale=1.0)
        for of_step in grads[:-1]:
            feed(optimizer, params, of_step)
        before = [p.detach().clone() for p in params]
        feed(optimizer, params, grads[-1])
        for p, old, grad in zip(params, before, grads[-1], strict=True):
            torch.testing.assert_close(p.detach(), old - 1e-2 * grad.sign(), rtol=0, atol=1e-5)


class TestNotFinite:
    @pytest.mark.parametrize("quantized", [False, True])
    @pytest.mark.parametrize("subspace", ["columns", "rows", "randk", "blocks", "svd", "random"])
    def test_it_reaches_neither_weights_nor_state(self, subspace, quantized, device):
        model = make_model(quantized=quantized, device=device)
        optimizer = make_frugal(model, subspace=subspace, state_bits=8 if quantized else 32)
        train(model, optimizer, range(2))
        for value in (math.nan, math.inf):
            before = model.layers[0].attn.weight.detach().clone().float()
            for p in model.parameters():
                p.grad = torch.full(p.shape, 1e-3, dtype=torch.float32, device=p.device)
            model.layers[0].attn.weight.grad[1, 2] = value
            optimizer.step()
            optimizer.zero_grad()
            after = model.layers[0].attn.weight.detach().float()
            # An INT8 group may get another grid, on which the element has another rounding.
            assert after.isfinite().all() and abs(after[1, 2] - before[1, 2]) <= 2e-3 * quantized
        for state in optimizer.state.values():
            for tensor in state.values():
                assert not isinstance(tensor, torch.Tensor) or tensor.isfinite().all()
        assert optimizer.statistics()["layers.0.attn.weight"]["skipped"] >= (0 if quantized else 2)
        assert math.isfinite(train(model, optimizer, range(2))[-1])


def test_memory_of_the_state():
    """Bytes of FRUGAL's state for each element of the matrices, density .25."""
    p = nn.Parameter(torch.zeros(512, 1024))
    found = {}
    for name, bits, density in (("32", 32, 0.25), ("8", 8, 0.25), ("4", 4, 0.25), ("0", 32, 0.0)):
        optimizer = frugalore.FrugalAdamW([{"params": [p], "density": density}], state_bits=bits, seed=0)
        p.grad = torch.ones_like(p)
        optimizer.step()
        found[name] = optimizer.state_bytes()["moments"] / p.numel()
    assert found["32"] == 2.0 and found["0"] == 0.0
    assert found["8"] == pytest.approx(0.5 + 2 * 4 / 256 / 4)
    assert found["4"] == pytest.approx(0.25 + 2 * 4 / 128 / 4)


@pytest.mark.parametrize("quant", [False, True])
@pytest.mark.parametrize("subspace", ["svd", "random"])
@pytest.mark.parametrize(
    ("shape", "density"), [((16, 24), 1.0), ((24, 16), 1.0), ((1, 9), 0.25), ((9, 1), 0.25)]
)
def test_the_residual_of_a_whole_basis_moves_nothing(shape, density, subspace, quant, device):
    """It is made of rounding errors, whose signs would count as much as those of gradients."""
    results = []
    for outside in ("sign_sgd", "no"):
        params = parameters([shape], device=device)
        options = {"density": density, "subspace": subspace, "quant": quant}
        optimizer = optimizer_over(params, inactive_update_rule=outside, **options)
        for of_step in gradients(6, [shape]):
            feed(optimizer, params, of_step)
        results.append(params[0].detach())
    torch.testing.assert_close(*results, rtol=0, atol=2e-6)


@pytest.mark.parametrize("shape", [(64, 96), (96, 64)])
def test_weights_without_gradient_rest_in_singular_vectors(shape, device):
    """Rows and columns of zeros, on either side."""
    params = parameters([shape], device=device)
    before = params[0].detach().clone()
    optimizer = optimizer_over(params, subspace="svd", update_gap=2)
    for (grad,) in gradients(6, [shape]):
        grad[5], grad[:, 7] = 0, 0
        feed(optimizer, params, [grad])
    moved = params[0].detach() != before
    assert not moved[5].any() and not moved[:, 7].any()
    assert moved.sum() == (shape[0] - 1) * (shape[1] - 1)
