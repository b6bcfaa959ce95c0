"""per_layer_updates: the same training, one parameter's gradient at a time."""

from __future__ import annotations

import copy
import io
import math
import pickle

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import frugalore
from qgalore_helpers import equal, loss_of, make_model, make_optimizer, snapshot, train


def pair(dtype=torch.float32, quantized=True, device="cpu", accumulation_steps=1, max_norm=None, **options):
    model = make_model(dtype, quantized).to(device)
    optimizer = make_optimizer(model, **{"seed": 3, "weight_decay": 0.1, **options})
    return model, optimizer, frugalore.per_layer_updates(optimizer, accumulation_steps, max_norm)


def rounds(model, optimizer, numbers, accumulation_steps, device="cpu"):
    for number in numbers:
        for k in range(accumulation_steps):
            (loss_of(model, accumulation_steps * number + k, device) / accumulation_steps).backward()
        optimizer.step()
        optimizer.zero_grad()


def same_state(a, b):
    a, b = a.state_dict(), b.state_dict()
    for key, state in a["state"].items():
        for name, value in state.items():
            other = b["state"][key][name]
            same = torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other
            assert same, (key, name)
    assert a["state"].keys() == b["state"].keys()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("quantized", [True, False])
@pytest.mark.parametrize("state_bits", [8, 32])
def test_weights_and_state_equal_the_standard_mode(dtype, quantized, state_bits, device):
    """INT8 or float matrices in the subspace, embedding, norm, biases and head."""
    standard = make_model(dtype, quantized).to(device)
    reference = make_optimizer(standard, seed=3, weight_decay=0.1, state_bits=state_bits)
    model, optimizer, _ = pair(dtype, quantized, device, state_bits=state_bits)
    before = snapshot(model)
    assert train(standard, reference, range(8), device) == train(model, optimizer, range(8), device)
    assert equal(snapshot(standard), snapshot(model))
    same_state(reference, optimizer)
    for name, value in model.state_dict().items():
        unchanged = name.endswith((".scale", ".zero")) or value.dtype == torch.int64  # the format record
        assert unchanged or not torch.equal(before[name], value), name


def test_int8_without_rank_equals_the_standard_mode(device):
    def run(per_layer):
        model = make_model().to(device)
        optimizer = frugalore.FusedQGaLore(model.parameters(), lr=1e-3, seed=1)
        if per_layer:
            frugalore.per_layer_updates(optimizer)
        train(model, optimizer, range(4), device)
        return snapshot(model)

    assert equal(run(True), run(False))


def test_one_gradient_lives_at_a_time(device):
    model, _, _ = pair(device=device)
    alive = []
    for p in model.parameters():
        p.register_hook(lambda g: alive.append(sum(q.grad is not None for q in model.parameters())))
    loss_of(model, 0, device).backward()
    assert alive == [0] * len(list(model.parameters()))
    assert all(p.grad is None for p in model.parameters())


def test_accumulation_is_the_sum_of_projections():
    model, optimizer, handle = pair(accumulation_steps=3, cos_threshold=None)
    twin = make_model()  # for its gradients only
    weight = model.attn.weight
    for number in range(5):
        for p in twin.parameters():
            p.grad = None
        parts = []
        for k in range(3):
            before = {n: p.grad.clone() for n, p in twin.named_parameters() if p.grad is not None}
            loss_of(twin, 3 * number + k).backward()
            parts.append(twin.attn.weight.grad - before.get("attn.weight", 0))
            loss_of(model, 3 * number + k).backward()
            if k < 2:
                state = optimizer.state[weight]
                project = optimizer._treatments[0].subspace.project
                group = optimizer.param_groups[handle._group_of[weight]]
                expected = sum(project(g, state, group) for g in parts)
                torch.testing.assert_close(handle._accumulated[weight], expected, rtol=1e-4, atol=1e-6)
                assert torch.equal(handle._accumulated[model.norm.weight], twin.norm.weight.grad)
        assert not handle._accumulated
        optimizer.step()
        twin.load_state_dict(model.state_dict())
    assert optimizer.statistics()["attn.weight"] == {"applied": 5, "skipped": 0, "refreshes": 2, "gap": 3}


def test_accumulated_whole_parameters_move_as_in_the_standard_mode(device):
    def run(per_layer):
        model = make_model(quantized=False).to(device)
        optimizer = frugalore.FusedQGaLore(model.parameters(), lr=1e-3, seed=1)
        if per_layer:
            frugalore.per_layer_updates(optimizer, 3)
        rounds(model, optimizer, range(3), 3, device)
        return snapshot(model)

    assert equal(run(True), run(False))


def test_a_refresh_is_made_of_the_rounds_first_usable_gradient():
    weight = nn.Parameter(torch.randn(32, 48))
    optimizer = frugalore.FusedQGaLore([{"params": [weight], "rank": 4, "quant": False}], seed=0)
    handle = frugalore.per_layer_updates(optimizer, 3)
    a, b = torch.randn(32, 2) @ torch.randn(2, 48), torch.randn(32, 48)
    for gradient in (torch.zeros(32, 48), a, b):
        (weight * gradient).sum().backward()
        if handle._accumulated:
            basis = optimizer.state[weight]["basis"].clone()
    # The rows of the basis hold the left singular vectors of a, and b did not change them.
    assert torch.linalg.norm(basis @ a) == pytest.approx(torch.linalg.norm(a).item(), rel=1e-4)
    assert torch.equal(optimizer.state[weight]["basis"], basis)
    assert optimizer.statistics()["parameter 0"]["refreshes"] == 1


class Experts(nn.Module):
    def __init__(self):
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(64, 64) for _ in range(2))

    def forward(self, x, chosen):
        return self.experts[chosen](x)


@pytest.mark.parametrize("accumulation_steps", [1, 2])
def test_an_expert_without_a_gradient_is_skipped(accumulation_steps):
    torch.manual_seed(0)
    model = frugalore.quantize_(Experts(), "all-linear")
    optimizer = frugalore.FusedQGaLore(frugalore.param_groups(model, "all-linear", rank=8), lr=1e-2)
    frugalore.per_layer_updates(optimizer, accumulation_steps)
    idle, partly = model.experts[1].weight, model.experts[0].weight
    before = idle.codes.clone(), partly.codes.clone()
    model(torch.randn(4, 64), 0).square().sum().backward()  # of two, where there are two
    optimizer.step()
    assert torch.equal(idle.codes, before[0]) and idle not in optimizer.state
    assert not torch.equal(partly.codes, before[1])
    assert optimizer.statistics()["experts.0.weight"]["applied"] == 1
    for _ in range(accumulation_steps):
        model(torch.randn(4, 64), 1).square().sum().backward()
    optimizer.step()
    counted = optimizer.statistics()
    assert [counted[f"experts.{i}.weight"]["applied"] for i in (0, 1)] == [1, 1]


class Tied(nn.Module):
    """Embedding and head share a weight, and one layer is used twice."""

    def __init__(self, recompute):
        super().__init__()
        self.embed, self.attn = nn.Embedding(50, 64), nn.Linear(64, 64)
        self.head = nn.Linear(64, 50, bias=False)
        self.head.weight = self.embed.weight
        self.recompute = recompute

    def layer(self, x):
        return x + torch.tanh(self.attn(x))

    def forward(self, tokens):
        x = self.embed(tokens)
        for _ in range(2):
            x = checkpoint(self.layer, x, use_reentrant=False) if self.recompute else self.layer(x)
        return self.head(x)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("quantized", [False, True])
def test_shared_weights_and_activation_checkpointing(recompute, quantized, device):
    def run(per_layer, recompute):
        torch.manual_seed(0)
        model = Tied(recompute).to(device)
        if quantized:
            frugalore.quantize_(model, ["attn"])
        optimizer = frugalore.FusedQGaLore(frugalore.param_groups(model, ["attn"], rank=8), lr=1e-2, seed=0)
        if per_layer:
            frugalore.per_layer_updates(optimizer)
        losses = train(model, optimizer, range(4), device)
        assert {entry["applied"] for n, entry in optimizer.statistics().items() if "attn.weight" in n} == {4}
        return losses, snapshot(model)

    standard, ours = run(False, False), run(True, recompute)
    assert standard[0] == ours[0] and equal(standard[1], ours[1])


def test_reentrant_checkpointing_of_a_shared_weight_is_refused():
    linear = nn.Linear(64, 64)
    optimizer = frugalore.FusedQGaLore(linear.parameters())
    frugalore.per_layer_updates(optimizer)
    x = torch.randn(4, 64, requires_grad=True)
    y = checkpoint(linear, checkpoint(linear, x, use_reentrant=True), use_reentrant=True)
    with pytest.raises(RuntimeError, match="use_reentrant=False"):
        y.sum().backward()


@pytest.mark.parametrize("middle", [0, 1, 2, 3], ids=lambda k: f"after-gradient-{k}")
@pytest.mark.parametrize("installed_first", [True, False])
def test_resume_is_exact_also_in_the_middle_of_a_round(middle, installed_first, device):
    steps, options = 3, {"accumulation_steps": 3, "max_norm": 0.3}

    def run(model, optimizer, gradients):
        for number in gradients:
            (loss_of(model, number, device) / steps).backward()
            if number % steps == steps - 1:
                optimizer.step()

    straight, optimizer, handle = pair(device=device, **options)
    run(straight, optimizer, range(6 + min(middle, 2)))
    if middle == 3:  # all three gradients, before step()
        (loss_of(straight, 8, device) / steps).backward()
    file = io.BytesIO()
    torch.save({"model": straight.state_dict(), "optimizer": optimizer.state_dict()}, file)
    if middle == 3:
        optimizer.step()
    run(straight, optimizer, range(6 + middle, 15))

    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed = make_model(seed=99).to(device)
    again = make_optimizer(resumed)
    resumed.load_state_dict(saved["model"])
    if installed_first:
        other = frugalore.per_layer_updates(again, **options)
        again.load_state_dict(saved["optimizer"])
    else:
        again.load_state_dict(saved["optimizer"])
        other = frugalore.per_layer_updates(again, **options)
    if middle == 3:
        again.step()
    run(resumed, again, range(6 + middle, 15))
    assert equal(snapshot(straight), snapshot(resumed))
    same_state(optimizer, again)
    assert torch.equal(handle.gradient_norm, other.gradient_norm)


def test_states_with_and_without_per_layer_load_into_each_other():
    model, optimizer, _ = pair()
    train(model, optimizer, range(3))
    standard = make_optimizer(make_model(), seed=3, weight_decay=0.1)
    standard.load_state_dict(optimizer.state_dict())
    _, other, _ = pair()
    other.load_state_dict(standard.state_dict())
    same_state(optimizer, other)


def test_a_state_from_the_middle_of_a_round_is_refused_where_it_cannot_continue():
    model, optimizer, _ = pair(accumulation_steps=2)
    loss_of(model, 0).backward()
    saved = optimizer.state_dict()
    standard = make_optimizer(make_model())
    standard.load_state_dict(saved)
    with pytest.raises(RuntimeError, match="middle of a round"):
        standard.step()
    with pytest.raises(ValueError, match=r"accumulation_steps: 2 expected.*got 3"):
        frugalore.per_layer_updates(standard, 3)
    _, other, _ = pair(accumulation_steps=4)
    with pytest.raises(ValueError, match=r"accumulation_steps: 2 expected.*got 4"):
        other.load_state_dict(saved)
    assert not other.state


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gradients": {99: 1}}, "of parameter 99"),
        ({"gradients": {0: 5}}, "5 gradients of parameter 0 in a round of 2"),
        ({"accumulated": {0: torch.zeros(3)}}, "accumulated gradient .* got .3,"),
        ({"accumulated": {0: 1.0}}, "accumulated gradient .* got 1.0"),
        ({"last_norm": 1.0}, "last_norm as a float64 scalar"),
        ({"accumulation_steps": None}, "accumulation_steps as int"),
    ],
)
def test_a_damaged_state_is_named_and_changes_nothing(change, message):
    model, optimizer, _ = pair(accumulation_steps=2)
    loss_of(model, 0).backward()
    saved = optimizer.state_dict()
    saved["per_layer"] = {**saved["per_layer"], **change}
    _, other, handle = pair(accumulation_steps=2)
    with pytest.raises(ValueError, match=message):
        other.load_state_dict(saved)
    assert not other.state and not handle._gradients


def global_norm(model, number):
    copied = copy.deepcopy(model)
    loss_of(copied, number).backward()
    return math.sqrt(sum(p.grad.double().square().sum().item() for p in copied.parameters()))


def test_clipping_uses_the_norm_of_the_round_before():
    """Whole parameters at 32 bits: exp_avg after t steps is a sum of the clipped gradients."""
    model = make_model(quantized=False)
    optimizer = frugalore.FusedQGaLore(model.parameters(), lr=1e-2, state_bits=32, betas=(0.0, 0.9), seed=0)
    handle = frugalore.per_layer_updates(optimizer, max_norm=0.1)
    norm = None
    for number in range(4):
        copied = copy.deepcopy(model)
        loss_of(copied, number).backward()
        expected_norm = global_norm(model, number)
        loss_of(model, number).backward()
        for p, q in zip(model.parameters(), copied.parameters(), strict=True):
            by = q.grad.norm().item() if norm is None else norm
            expected = q.grad * min(1.0, 0.1 / (by + 1e-6))
            torch.testing.assert_close(optimizer.state[p]["exp_avg"], expected, rtol=1e-5, atol=1e-8)
        optimizer.step()
        assert handle.gradient_norm.item() == pytest.approx(expected_norm, rel=1e-5)
        norm = expected_norm


def test_an_infinite_limit_measures_and_does_not_clip():
    plain, reference, _ = pair()
    model, optimizer, handle = pair(max_norm=math.inf)
    train(plain, reference, range(3))
    train(model, optimizer, range(3))
    assert equal(snapshot(plain), snapshot(model)) and 0 < handle.gradient_norm < math.inf


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("accumulation_steps", [1, 2])
def test_a_non_finite_gradient_poisons_nothing(bad, accumulation_steps, device):
    model, optimizer, handle = pair(device=device, accumulation_steps=accumulation_steps, max_norm=1.0)
    poisoned = set()
    model.mlp.weight.register_hook(
        lambda g: g.index_fill(0, torch.tensor([1], device=g.device), bad) if poisoned else g
    )
    model.norm.weight.register_hook(
        lambda g: g.index_fill(0, torch.tensor([2], device=g.device), bad) if poisoned else g
    )
    for number in range(6):
        before = model.mlp.weight.dequantize()
        for k in range(accumulation_steps):
            if number in (0, 3) and k == 0:
                poisoned.add(1)
            loss_of(model, accumulation_steps * number + k, device).backward()
            poisoned.clear()
        optimizer.step()
        assert torch.equal(before, model.mlp.weight.dequantize()) == (number in (0, 3))
        assert handle.gradient_norm.isfinite() == (number not in (0, 3))
    counted = optimizer.statistics()
    assert (counted["mlp.weight"]["applied"], counted["mlp.weight"]["skipped"]) == (4, 2)
    assert counted["norm.weight"]["skipped"] == 2
    assert counted["attn.weight"]["applied"] == 6
    assert all(value.isfinite().all() for value in model.state_dict().values())


def test_a_scheduler_acts_as_in_the_standard_mode():
    def run(per_layer):
        model = make_model()
        optimizer = make_optimizer(model, seed=0)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.1)
        if per_layer:
            frugalore.per_layer_updates(optimizer)
        for number in range(6):
            train(model, optimizer, [number])
            scheduler.step()
        return snapshot(model)

    assert equal(run(True), run(False))


def test_options_are_checked_before_the_first_parameter_moves():
    model, optimizer, _ = pair()
    train(model, optimizer, range(2))
    before = snapshot(model)
    optimizer.param_groups[-1]["lr"] = -1.0
    with pytest.raises(ValueError, match="lr: zero or more expected, got -1"):
        loss_of(model, 2).backward()
    assert equal(before, snapshot(model))
    optimizer.param_groups[-1]["lr"] = 1e-2
    optimizer.zero_grad()
    train(model, optimizer, range(2, 4))
    assert optimizer.statistics()["attn.weight"]["applied"] == 4


def test_an_error_in_backward_leaves_a_round_that_step_ends():
    model, optimizer, _ = pair()
    failing = model.attn.weight.register_hook(lambda g: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        loss_of(model, 0).backward()
    failing.remove()
    optimizer.step()
    train(model, optimizer, range(3))
    counted = optimizer.statistics()
    assert counted["head.weight"]["applied"] == 4 and counted["attn.weight"]["applied"] == 3


def test_order_of_calls():
    model, optimizer, handle = pair(accumulation_steps=2)
    before = snapshot(model)
    optimizer.step()
    assert equal(before, snapshot(model))  # no gradient, no update
    loss_of(model, 0).backward()
    optimizer.zero_grad()
    assert equal(before, snapshot(model)) and handle.accumulated_bytes() > 0
    optimizer.step()  # a short round: what is there
    optimizer.step()
    assert optimizer.statistics()["attn.weight"]["applied"] == 1 and handle.accumulated_bytes() == 0
    for number in range(2):
        loss_of(model, number).backward()
    before = snapshot(model)
    with pytest.raises(RuntimeError, match="gradient 3 in a round of accumulation_steps=2"):
        loss_of(model, 2).backward()
    assert equal(before, snapshot(model))
    handle.discard()
    rounds(model, optimizer, range(2), 2)
    with pytest.raises(ValueError, match="closure: None expected"):
        optimizer.step(lambda: loss_of(model, 0))


def test_removed_it_is_the_standard_mode_again():
    standard = make_model()
    reference = make_optimizer(standard, seed=3, weight_decay=0.1)
    train(standard, reference, range(6))
    model = make_model()
    optimizer = make_optimizer(model, seed=3, weight_decay=0.1)
    train(model, optimizer, range(2))
    optimizer.zero_grad()
    with frugalore.per_layer_updates(optimizer):
        train(model, optimizer, range(2, 4))
    train(model, optimizer, range(4, 6))
    assert all(p.grad is not None for p in model.parameters())
    assert equal(snapshot(standard), snapshot(model))


def test_remove_keeps_no_accumulated_gradient_by_accident():
    model, optimizer, handle = pair(accumulation_steps=2)
    loss_of(model, 0).backward()
    with pytest.raises(RuntimeError, match="hold accumulated gradients"):
        handle.remove()
    handle.discard()
    handle.remove()
    with pytest.raises(ZeroDivisionError), frugalore.per_layer_updates(optimizer, 2):
        loss_of(model, 0).backward()
        raise ZeroDivisionError
    assert optimizer._per_layer is None


def test_frozen_thawed_added_and_hand_set():
    model = make_model()
    model.head.weight.requires_grad_(False)
    optimizer = frugalore.FusedQGaLore(
        [{"params": [p for n, p in model.named_parameters() if n != "norm.weight"], "lr": 1e-2}], seed=0
    )
    frugalore.per_layer_updates(optimizer)
    optimizer.add_param_group({"params": [model.norm.weight]})
    train(model, optimizer, range(2))
    assert model.norm.weight in optimizer.state and model.head.weight not in optimizer.state
    model.head.weight.requires_grad_(True)
    train(model, optimizer, range(2, 4))
    assert model.head.weight in optimizer.state and model.head.weight.grad is None
    before = model.norm.weight.clone()
    model.norm.weight.grad = torch.ones_like(model.norm.weight)
    optimizer.step()
    assert model.norm.weight.grad is None and not torch.equal(before, model.norm.weight)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_a_copy_continues_in_the_middle_of_a_round(copied):
    model, optimizer, _ = pair(accumulation_steps=2, max_norm=1.0)
    rounds(model, optimizer, range(2), 2)
    loss_of(model, 4).backward()
    other_model, other = copied((model, optimizer))
    frugalore.per_layer_updates(other, 2, max_norm=1.0)
    for m, o in ((model, optimizer), (other_model, other)):
        loss_of(m, 5).backward()
        o.step()
        rounds(m, o, range(3, 5), 2)
    assert equal(snapshot(model), snapshot(other_model))


def test_bad_input_is_refused():
    model = make_model()
    optimizer = make_optimizer(model)
    with pytest.raises(TypeError, match="optimizer: one of frugalore's expected, got SGD"):
        frugalore.per_layer_updates(torch.optim.SGD(model.head.parameters()))
    for steps in (0, -1, 1.5, True, None):
        with pytest.raises(ValueError, match="accumulation_steps: a positive integer expected"):
            frugalore.per_layer_updates(optimizer, steps)
    for norm in (0, -1.0, math.nan, "1"):
        with pytest.raises(ValueError, match="max_norm: a positive number or None expected"):
            frugalore.per_layer_updates(optimizer, max_norm=norm)
    loss_of(model, 0).backward()
    with pytest.raises(ValueError, match="gradients are waiting"):
        frugalore.per_layer_updates(optimizer)
    optimizer.zero_grad()
    frugalore.per_layer_updates(optimizer)
    with pytest.raises(ValueError, match="per-layer updates already"):
        frugalore.per_layer_updates(optimizer)
