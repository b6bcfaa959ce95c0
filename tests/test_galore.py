"""GaLoreAdamW and GaLoreAdamW8bit: the published trajectory, projection types, what a refresh does."""

from __future__ import annotations

import io

import pytest
import torch
from torch import nn

import frugalore
from frugalore.ops.projection import short_side
from frugalore.reference import galore as reference
from qgalore_helpers import equal, loss_of, make_model, snapshot, train

PROJ_TYPES = ("std", "reverse_std", "left", "right", "full")


def make_optimizer(model, kind=frugalore.GaLoreAdamW, lr=2e-2, **options):
    names = (
        "rank",
        "update_proj_gap",
        "scale",
        "proj_type",
        "quant",
        "stagger",
        "moments_at_refresh",
        "cos_threshold",
    )
    group = {"rank": 16, "update_proj_gap": 3, "scale": 0.5}
    group |= {name: options.pop(name) for name in names if name in options}
    return kind(frugalore.param_groups(model, ["attn", "mlp"], **group), lr=lr, **options)


def bases_of(state, proj_type, shape):
    """left and right as the reference takes them, in float32."""
    if proj_type == "full":
        return state["basis_left"], state["basis"]
    side = {"std": short_side(shape), "reverse_std": {"left": "right", "right": "left"}[short_side(shape)]}
    on_the_right = side.get(proj_type, proj_type) == "right"
    return (None, state["basis"]) if on_the_right else (state["basis"], None)


def gradients_of(model, step):
    model.zero_grad()
    loss_of(model, step).backward()


# ---- the published trajectory -------------------------------------------------------------------------


@pytest.mark.parametrize("proj_type", PROJ_TYPES)
def test_a_trajectory_is_the_published_one_given_the_bases(proj_type):
    model = make_model(quantized=False)
    # With "full" the first R is a diagonal and rounding noise, which a small eps would turn into signs.
    eps = 1e-3 if proj_type == "full" else 1e-6
    options = {"proj_type": proj_type, "update_proj_gap": 7, "weight_decay": 0.1, "eps": eps}
    optimizer = make_optimizer(model, lr=1e-2, **options)
    spec = {}
    for step in range(1, 26):
        gradients_of(model, step)
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        optimizer.step()
        for name, p in model.named_parameters():
            state = optimizer.state[p]
            left, right = bases_of(state, proj_type, p.shape) if "basis" in state else (None, None)
            if name not in spec:
                spec[name] = (before[name].double(), *(torch.zeros(2, *state["exp_avg"].shape).double()))
            left, right = (None if b is None else b.double() for b in (left, right))
            weight = spec[name][0]
            reference.galore_adamw_step_(
                weight,
                p.grad.double(),
                *spec[name][1:],
                step=step,
                lr=1e-2,
                eps=eps,
                weight_decay=0.1,
                scale=0.5 if "basis" in state else 1.0,
                left=left,
                right=right,
            )
            error = (p.detach().double() - weight).abs().max() / weight.abs().max()
            assert error < 2e-6, (name, step)
    assert max(entry.get("refreshes", 0) for entry in optimizer.statistics().values()) >= 4


@pytest.mark.parametrize("proj_type", PROJ_TYPES)
def test_the_published_package_moves_alike_given_our_bases(proj_type):
    """galore-torch runs its own step on the same gradients; only its SVD is replaced by our basis."""
    galore_torch = pytest.importorskip("galore_torch")
    if not hasattr(galore_torch.GaLoreAdamW, "step"):
        pytest.skip("this galore_torch is a stand-in")
    model = make_model(quantized=False)
    eps = 1e-3 if proj_type == "full" else 1e-6
    options = {"proj_type": proj_type, "update_proj_gap": 8, "weight_decay": 0.05, "eps": eps}
    optimizer = make_optimizer(model, lr=1e-2, **options)
    ours = list(model.parameters())
    theirs = [nn.Parameter(p.detach().clone()) for p in ours]
    twin = dict(zip(ours, theirs, strict=True))
    groups = [
        {key: group[key] for key in ("rank", "update_proj_gap", "scale", "proj_type") if key in group}
        | {"params": [twin[p] for p in group["params"]]}
        for group in optimizer.param_groups
    ]
    published = galore_torch.GaLoreAdamW(
        groups, lr=1e-2, eps=eps, weight_decay=0.05, no_deprecation_warning=True
    )
    for step in range(24):
        gradients_of(model, step)
        optimizer.step()
        for p in ours:
            twin[p].grad = p.grad.clone()
            if "basis" in optimizer.state[p]:
                published.state[twin[p]].setdefault("step", 0)
                published.state[twin[p]]["projector"] = _Projector(p, optimizer.state[p], proj_type)
        published.step()
        for p in ours:
            error = (p - twin[p]).abs().max() / p.abs().max()
            assert error < 1e-6 * (step + 1) ** 0.5 + 1e-6, step


class _Projector:
    """What the published optimizer asks of a projector, with a given basis and scale 0.5."""

    def __init__(self, p, state, proj_type):
        self._bases = bases_of(state, proj_type, p.shape)

    def project(self, grad, iteration):
        return reference.project(grad, *self._bases)

    def project_back(self, r):
        return reference.project_back(r, *self._bases) * 0.5


# ---- projection types ---------------------------------------------------------------------------------


@pytest.mark.parametrize("proj_type", PROJ_TYPES)
@pytest.mark.parametrize("quant", [False, True])
@pytest.mark.parametrize("kind", [frugalore.GaLoreAdamW, frugalore.GaLoreAdamW8bit, frugalore.FusedQGaLore])
def test_every_projection_type_trains(kind, quant, proj_type, device):
    model = make_model(quantized=False).to(device)
    optimizer = make_optimizer(model, kind, proj_type=proj_type, quant=quant, seed=3)
    losses = train(model, optimizer, range(50), device)
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("quantized", [True, False])
@pytest.mark.parametrize("proj_type", ["reverse_std", "full"])
def test_every_weight_dtype_trains(dtype, quantized, proj_type, device):
    model = make_model(dtype, quantized).to(device)
    optimizer = make_optimizer(model, proj_type=proj_type, seed=3)
    losses = train(model, optimizer, range(50), device)
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])


@pytest.mark.parametrize(("m", "n"), [(96, 64), (64, 96), (64, 64)])
@pytest.mark.parametrize("proj_type", PROJ_TYPES)
def test_shapes_and_bytes_of_the_state(m, n, proj_type):
    p = nn.Parameter(torch.randn(m, n))
    optimizer = frugalore.GaLoreAdamW([{"params": [p], "rank": 8, "proj_type": proj_type}])
    p.grad = torch.randn(m, n)
    optimizer.step()
    state = optimizer.state[p]
    right = {"std": m >= n, "reverse_std": m < n, "left": False, "right": True}
    shape = (8, 8) if proj_type == "full" else (m, 8) if right[proj_type] else (8, n)
    assert state["exp_avg"].shape == shape
    for name in ("basis", "basis_left"):
        if name in state:  # the published code keeps the whole factor of the SVD alive
            basis = state[name]
            assert basis.untyped_storage().nbytes() == basis.numel() * 4
            assert torch.allclose(basis @ basis.t(), torch.eye(8), atol=1e-5)


def test_a_rank_above_the_short_side_is_clipped_for_every_type():
    for proj_type in PROJ_TYPES:
        for shape in ((32, 48), (48, 32)):
            p = nn.Parameter(torch.randn(shape))
            with pytest.warns(UserWarning, match="rank 128 is larger than the short side"):
                optimizer = frugalore.GaLoreAdamW([{"params": [p], "rank": 128, "proj_type": proj_type}])
            p.grad = torch.randn(shape)
            optimizer.step()
            assert bool(p.isfinite().all()) and 32 in optimizer.state[p]["exp_avg"].shape


def test_a_convolution_trains_as_a_matrix_of_its_output_channels():
    torch.manual_seed(0)
    conv, flat = nn.Conv2d(6, 32, 3), nn.Linear(54, 32)
    with torch.no_grad():
        flat.weight.copy_(conv.weight.flatten(1))
    optimizers = [
        frugalore.GaLoreAdamW([{"params": [layer.weight], "rank": 4, "update_proj_gap": 2}], lr=1e-2, seed=0)
        for layer in (conv, flat)
    ]
    for _ in range(5):
        grad = torch.randn(32, 6, 3, 3)
        conv.weight.grad, flat.weight.grad = grad, grad.flatten(1)
        for optimizer in optimizers:
            optimizer.step()
    assert torch.equal(conv.weight.flatten(1), flat.weight)
    state = optimizers[0].state_dict()
    optimizers[0].load_state_dict(state)


# ---- what a refresh does ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [frugalore.GaLoreAdamW, frugalore.GaLoreAdamW8bit])
@pytest.mark.parametrize("moments", ["keep", "rotate", "reset"])
@pytest.mark.parametrize("proj_type", ["std", "full"])
def test_moments_at_refresh(kind, moments, proj_type):
    torch.manual_seed(0)
    p = nn.Parameter(torch.randn(160, 128))
    options = {"rank": 64, "update_proj_gap": 4, "stagger": False, "moments_at_refresh": moments}
    optimizer = kind([{"params": [p], "proj_type": proj_type, **options}], lr=1e-3, seed=0)
    rule, shape = (
        optimizer._treatments[0].inside,
        optimizer._treatments[0].subspace.low_rank_shape(p.shape, optimizer.param_groups[0]),
    )
    target = torch.randn(160, 128)
    for _ in range(4):
        p.grad = target + 0.3 * torch.randn_like(target)
        optimizer.step()
    state = optimizer.state[p]
    m, v = (x.clone() for x in rule.moments(state, shape))
    old = bases_of({k: x.clone() for k, x in state.items() if k.startswith("basis")}, proj_type, p.shape)
    p.grad = target + 0.3 * torch.randn_like(target)
    optimizer.step()
    after, after_sq = rule.moments(state, shape)
    r = reference.project(p.grad, *bases_of(state, proj_type, p.shape))
    began = (after - 0.1 * r) / 0.9  # the first moment that this step began with
    began_sq = (after_sq - 0.001 * r * r) / 0.999
    bound = 0.03 * m.abs().max() if kind is frugalore.GaLoreAdamW8bit else 1e-5 * m.abs().max()
    if moments == "keep":
        assert torch.allclose(began, m, atol=float(bound))
    elif moments == "reset":
        assert float(began.abs().max()) <= bound
        assert state["beta_powers"].tolist() == pytest.approx([0.9, 0.999])
        assert int(state["progress"][0]) == 5
    else:
        # The same vector in the weights' space, but for what the new subspace does not hold.
        lifted = reference.project_back(m, *old)
        held = reference.project(lifted, *bases_of(state, proj_type, p.shape))
        assert torch.allclose(began, held, atol=float(bound))
        assert not torch.allclose(began, m, atol=float(bound))
        if kind is frugalore.GaLoreAdamW:
            assert float(began_sq.min()) >= -1e-6
            assert float(began_sq.mean()) == pytest.approx(float(v.mean()), rel=0.2)


@pytest.mark.parametrize("moments", ["rotate", "reset"])
def test_a_refresh_that_meets_a_bad_gradient_leaves_moments_and_basis(moments):
    p = nn.Parameter(torch.randn(64, 96))
    options = {"rank": 8, "update_proj_gap": 2, "stagger": False, "moments_at_refresh": moments}
    optimizer = frugalore.GaLoreAdamW([{"params": [p], **options}], seed=0)
    for _ in range(2):
        p.grad = torch.randn(64, 96)
        optimizer.step()
    names = ("basis", "exp_avg", "exp_avg_sq", "beta_powers")
    before = {name: optimizer.state[p][name].clone() for name in names}
    weight = p.detach().clone()
    p.grad = torch.full((64, 96), torch.nan)
    optimizer.step()
    assert torch.equal(p, weight)
    assert all(torch.equal(before[name], optimizer.state[p][name]) for name in names)
    assert optimizer.statistics()["parameter 0"]["skipped"] == 1


def test_refreshes_are_spread_and_the_published_schedule_is_there():
    def refreshing_steps(stagger):
        torch.manual_seed(0)
        params = [nn.Parameter(torch.randn(16, 16)) for _ in range(12)]
        options = {"rank": 4, "update_proj_gap": 12, "stagger": stagger}
        optimizer = frugalore.GaLoreAdamW([{"params": params, **options}], seed=0)
        counts, before = [], 0
        for _ in range(37):
            for p in params:
                p.grad = torch.randn(16, 16)
            optimizer.step()
            total = sum(state["refreshes"] for state in optimizer.state.values())
            counts.append(total - before)
            before = total
        return counts

    together = refreshing_steps(False)
    assert [i for i, count in enumerate(together) if count] == [0, 12, 24, 36]
    assert set(together) == {0, 12}
    spread = refreshing_steps(True)
    assert spread[0] == 12 and max(spread[1:]) <= 2
    assert sum(spread[13:25]) == sum(spread[25:37]) == 12  # each once in a gap


def test_a_subspace_that_moved_is_turned_further():
    schedule = frugalore.subspace.RefreshSchedule()
    assert schedule.power_iterations({"similarity": 0.9}) == 1
    assert schedule.power_iterations({"similarity": 0.1}) == 2


# ---- checkpoints --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [frugalore.GaLoreAdamW, frugalore.GaLoreAdamW8bit])
@pytest.mark.parametrize("proj_type", ["reverse_std", "full"])
@pytest.mark.parametrize("moments", ["keep", "rotate"])
def test_resume_is_exact_through_weights_only(kind, proj_type, moments, device):
    options = {"proj_type": proj_type, "moments_at_refresh": moments}
    straight = make_model(quantized=False).to(device)
    optimizer = make_optimizer(straight, kind, seed=4, **options)
    train(straight, optimizer, range(5), device)
    file = io.BytesIO()
    torch.save({"model": straight.state_dict(), "optimizer": optimizer.state_dict()}, file)
    rest = train(straight, optimizer, range(5, 14), device)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed = make_model(quantized=False, seed=99).to(device)
    again = make_optimizer(resumed, kind, **options)
    resumed.load_state_dict(saved["model"])
    again.load_state_dict(saved["optimizer"])
    assert train(resumed, again, range(5, 14), device) == rest
    assert equal(snapshot(straight), snapshot(resumed))


def test_a_state_of_another_projection_is_refused_whole():
    model = make_model(quantized=False)
    optimizer = make_optimizer(model, proj_type="full")
    train(model, optimizer, range(3))
    saved = optimizer.state_dict()
    other = make_optimizer(make_model(quantized=False), proj_type="std")
    broken = {**saved, "param_groups": [dict(g) for g in saved["param_groups"]]}
    broken["param_groups"][-1]["proj_type"] = "std"
    with pytest.raises(ValueError, match=r"attn\.weight: "):
        other.load_state_dict(broken)
    assert not other.state


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"proj_type": "svd"}, "proj_type: one of std, reverse_std, left, right, full expected, got 'svd'"),
        ({"moments_at_refresh": "forget"}, "moments_at_refresh: one of keep, rotate, reset expected"),
        ({"stagger": 3}, "stagger: True or False expected, got 3"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        frugalore.GaLoreAdamW([{"params": [nn.Parameter(torch.zeros(4, 4))], "rank": 2, **options}])


def test_vectors_are_refused_in_a_group_with_rank():
    with pytest.raises(ValueError, match=r"two dimensions or more expected .* got shape \(8,\)"):
        frugalore.GaLoreAdamW([{"params": [nn.Parameter(torch.zeros(8))], "rank": 2}])
