"""Controls and observables on layers whose flow is known in closed form."""

import math
from types import SimpleNamespace as Space

import numpy as np
import pytest
import torch
from torch import nn

from dynprune import rgflow
from dynprune.core import InvalidInputError
from dynprune.system import GradientSystem
from dynprune.training import Recipe

SCALES = (0.02, 0.05, 0.1, 0.2)
DENSITIES = [0.8**n for n in range(8)]
# sizes -> exponents of THEORY.md section 5, from one sample of the weights
TABLE = {
    (200_000, 50_000, 20_000, 5_000): (-0.411, 0.126, 0.239, 0.276),
    (50_000, 50_000, 50_000, 50_000): (-2.67, -0.62, -0.04, 0.17),
}


def laplace_exponents(sizes):
    """Infinite layers: |w| > t holds N exp(-t/b) weights that sum to it times t + b."""
    from scipy.optimize import brentq

    b, N = np.array(SCALES), np.array(sizes)
    rows = []
    for d in DENSITIES:
        root = (
            0.0
            if d == 1
            else brentq(lambda t: (N * np.exp(-t / b)).sum() / N.sum() - d, 0, 10)  # noqa: B023
        )
        sums = N * np.exp(-root / b) * (root + b)
        rows.append(sums / sums.sum())
    flow, d = torch.tensor(np.array(rows)), torch.tensor(DENSITIES).double()
    return rgflow.exponents(flow, d).exponents[0]


def run_of(states, densities):
    """An IMP run with masks of the exact counts, first weights first."""
    first = states[0]
    total = sum(value.numel() for value in first.values())
    tickets = []
    for density in densities:
        left, masks = max(1, math.floor(density * total + 0.5)), {}
        for name, value in first.items():
            mask = torch.arange(value.numel()).view(value.shape) < left
            masks[name] = mask
            left -= int(mask.sum())
        tickets.append(Space(masks=masks, state=first, buffers={}))
    return Space(tickets=tickets, levels=[Space(state=state) for state in states])


def laplace_run(sizes, seed):
    draw = torch.Generator().manual_seed(seed)
    weights = {}
    for i, (b, size) in enumerate(zip(SCALES, sizes, strict=True)):
        signs = 1 - 2 * torch.randint(0, 2, (size,), generator=draw)
        draws = torch.empty(size).exponential_(generator=draw)
        weights[f"layer{i}"] = b * draws * signs
    return run_of([weights] * len(DENSITIES), DENSITIES)


def fake_system(run):
    names = tuple(run.tickets[0].masks)
    return Space(prunable=names, dtype=torch.float32, device="cpu")


@pytest.mark.parametrize("sizes", TABLE, ids=["shrinking", "equal"])
def test_laplace_layers_flow_without_retraining_as_in_theory(sizes):
    runs = [laplace_run(sizes, seed) for seed in range(4)]
    made = rgflow.controls(fake_system(runs[0]), runs)
    found = rgflow.exponents(made.no_retraining, made.densities).exponents
    exact = laplace_exponents(sizes)
    spread = found.std(0)
    assert bool(((found.mean(0) - exact).abs() <= 4 * spread / 2).all())
    # the theory sheet's numbers are one more sample, printed to three digits
    table = torch.tensor(TABLE[sizes], dtype=torch.float64)
    rounding = 0.005 if sizes[0] == sizes[1] else 0.0005
    assert bool(((table - exact).abs() <= 4 * spread + rounding).all())


def test_random_pruning_is_a_trivial_fixed_point():
    sizes = (4_000, 2_000, 1_000, 1_000)
    runs = [laplace_run(sizes, seed) for seed in range(8)]
    made = rgflow.controls(fake_system(runs[0]), runs)
    for normalisation, target in (("share", 0.0), ("absolute", -1.0)):
        flow = made.observables("random", normalisation=normalisation)
        mean, error = rgflow.over_seeds(
            rgflow.exponents(flow, made.densities).exponents
        )
        assert bool(((mean - target).abs() <= 4 * error).all())
        assert float(error.max()) < 0.05


def test_magnitude_control_keeps_exactly_the_largest():
    state = {"a": torch.tensor([[3.0, -1.0], [1.0, 0.5]]), "b": torch.tensor([1.0, 2])}
    run = run_of([state] * 3, [1.0, 0.5, 1 / 6])
    made = rgflow.controls(fake_system(run), [run])
    absolute = made.observables("no-retraining", normalisation="absolute")
    # three kept: 3, 2 and the first of the tied ones, which is in a
    assert absolute[0].tolist() == [[5.5, 3.0], [4.0, 2.0], [3.0, 0.0]]
    squares = made.observables(
        "no-retraining", normalisation="absolute", magnitude="L2"
    )
    assert squares[0, 1].tolist() == [10.0, 4.0]
    layer = rgflow.controls(fake_system(run), [run], scope="layer")
    flow = layer.observables("no-retraining", normalisation="absolute")
    assert flow[0].tolist() == [[5.5, 3.0], [5.0, 0.0], [3.0, 0.0]]  # run's counts


def test_ties_go_to_the_lower_flat_index():
    state = {"a": torch.ones(50, 40), "b": torch.ones(3000)}
    run = run_of([state] * 2, [1.0, 0.5])
    made = rgflow.controls(fake_system(run), [run])
    absolute = made.observables("no-retraining", normalisation="absolute")
    assert absolute[0, 1].tolist() == [2000.0, 500.0]


def test_controls_obey_the_seed_and_touch_nothing(untouched):
    run = laplace_run((400, 200, 100, 100), 0)
    before = {name: value.clone() for name, value in run.levels[0].state.items()}
    with untouched():
        a, b, c = (rgflow.controls(fake_system(run), [run], seed=s) for s in (1, 1, 2))
    assert torch.equal(a.random, b.random)
    assert not torch.equal(a.random, c.random)
    assert torch.equal(a.no_retraining, c.no_retraining)
    twice = rgflow.controls(fake_system(run), [run, run])
    assert not torch.equal(twice.random[0], twice.random[1])
    for name, value in before.items():
        assert torch.equal(value, run.levels[0].state[name])


def test_random_masks_are_nested():
    run = laplace_run((40, 20, 10, 10), 0)
    for scope in ("global", "layer"):
        made = rgflow.controls(fake_system(run), [run], scope=scope)
        sums = made.observables("random", normalisation="absolute")
        assert bool((sums[:, 1:] <= sums[:, :-1]).all())


def test_observables_of_both_stages_and_magnitudes():
    states = [
        {"a": torch.tensor([1.0, -2.0, 3.0]), "b": torch.tensor([4.0])},
        {"a": torch.tensor([2.0, -3.0, 9.0]), "b": torch.tensor([9.0])},
    ]
    run = run_of(states, [1.0, 0.5])
    found = rgflow.observables(run, normalisation="absolute")
    assert found.values.tolist() == [[6.0, 4.0], [5.0, 0.0]]
    assert (found.densities.tolist(), found.groups) == ([1.0, 0.5], ("a", "b"))
    after = rgflow.observables(run, stage="after", normalisation="absolute")
    assert (after.values.tolist(), after.densities.tolist()) == ([[3.0, 0.0]], [0.5])
    squares = rgflow.observables(run, magnitude="L2", normalisation="absolute")
    assert squares.values.tolist() == [[14.0, 16.0], [13.0, 0.0]]
    merged = rgflow.observables(run, groups={"a": "all", "b": "all"})
    assert (merged.groups, merged.values.tolist()) == (("all",), [[1.0], [1.0]])
    chosen = rgflow.observables(run, groups={"a": "x", "b": None})
    assert (chosen.groups, chosen.values.tolist()) == (("x",), [[1.0], [1.0]])


def test_group_shares_are_sums_of_tensor_shares():
    run = laplace_run((40, 30, 20, 10), 0)
    fine = rgflow.observables(run).values
    names = run.tickets[0].masks
    coarse = rgflow.observables(
        run, groups=dict(zip(names, ["x", "y", "x", "y"], strict=True))
    ).values
    torch.testing.assert_close(coarse, fine.view(-1, 2, 2).sum(1), rtol=0, atol=1e-15)


def test_controls_survive_a_file(tmp_path):
    run = laplace_run((40, 30, 20, 10), 0)
    made = rgflow.controls(fake_system(run), [run], seed=4)
    made.save(tmp_path / "c.safetensors")
    read = rgflow.Controls.load(tmp_path / "c.safetensors")
    assert repr(read) == "Controls(1 seeds, 8 levels, 4 tensors)"
    assert torch.equal(read.random, made.random)
    assert torch.equal(read.densities, made.densities)
    assert read.provenance == made.provenance


@pytest.fixture
def trained():
    """A small network and a run of it whose level 0 is trained."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn((32, 3), generator=draw, dtype=torch.float64)
    y = x.prod(1, keepdim=True)
    net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1)).double()
    with torch.no_grad():
        for value in net.parameters():
            value.copy_(torch.randn(value.shape, generator=draw).double())
    system = GradientSystem(net, nn.functional.mse_loss, (x, y))
    recipe = Recipe(lambda p: torch.optim.SGD(p, lr=0.1), steps=20, batch_size=32)
    dense = system.unflatten(recipe(system).state)
    names = ("0.weight", "2.weight")
    run = run_of([{n: dense[n] for n in names}] * 3, [1.0, 0.5, 0.3])
    for ticket in run.tickets:
        ticket.state = system.unflatten(system.state)
    return system, recipe, run


def test_random_pruning_may_be_retrained(trained):
    system, recipe, run = trained
    starts = []
    initial = system.unflatten(system.state)

    def train(masked, *, seed=0, start_step=0, stop_step=None, record=None):
        start = masked.unflatten(masked.state)
        for name, mask in masked.masks.items():
            assert torch.equal(start[name], initial[name] * mask)
        starts.append((start_step, masked.size))
        return recipe(masked, seed=seed, start_step=start_step)

    plain = rgflow.controls(system, [run])
    made = rgflow.controls(system, [run], train=train, rewind_step=5)
    kept = [int(sum(m.sum() for m in t.masks.values())) for t in run.tickets]
    assert starts == [(5, 9 + kept[1]), (5, 9 + kept[2])]
    assert torch.equal(made.no_retraining, plain.no_retraining)
    assert torch.equal(made.random[:, 0], plain.random[:, 0])  # the dense level
    assert not torch.allclose(made.random[:, 1:], plain.random[:, 1:])
    # after pruning is the retrained level under the next mask: one level less
    after = made.observables("random", stage="after", normalisation="absolute")
    before = made.observables("random", normalisation="absolute")
    assert after.shape == (1, 2, 2)
    assert bool((after <= before[:, :-1]).all())


def damaged(run, **changes):
    parts = {"tickets": list(run.tickets), "levels": list(run.levels), **changes}
    return Space(**parts)


def test_refusals_of_runs():
    run = laplace_run((4, 3, 2, 1), 0)
    system = fake_system(run)
    one_less = damaged(run, levels=run.levels[:-1])
    with pytest.raises(InvalidInputError, match="8 tickets and 7 levels"):
        rgflow.observables(one_less)
    with pytest.raises(InvalidInputError, match="No IMP run"):
        rgflow.controls(system, [])
    other = Space(masks={"x": torch.ones(2) > 0})
    with pytest.raises(InvalidInputError, match="Level 1 masks x, level 0 layer0"):
        rgflow.observables(
            damaged(run, tickets=[run.tickets[0], other, *run.tickets[2:]])
        )
    bad = Space(state={**run.levels[0].state, "layer1": torch.ones(9)})
    with pytest.raises(InvalidInputError, match=r"Level 0 has \(9,\) for 'layer1'"):
        rgflow.observables(damaged(run, levels=[bad, *run.levels[1:]]))
    nan = Space(state={n: v * math.nan for n, v in run.levels[0].state.items()})
    with pytest.raises(InvalidInputError, match=r"Level 2 .* not finite"):
        rgflow.observables(damaged(run, levels=[*run.levels[:2], nan, *run.levels[3:]]))
    zero = Space(state={n: v * 0 for n, v in run.levels[0].state.items()})
    with pytest.raises(InvalidInputError, match="zero at some level"):
        rgflow.observables(damaged(run, levels=[zero, *run.levels[1:]]))
    with pytest.raises(InvalidInputError, match="Run 1 has 7 levels"):
        rgflow.controls(
            system,
            [run, damaged(run, levels=run.levels[:-1], tickets=run.tickets[:-1])],
        )
    sparse = damaged(run, levels=run.levels[1:], tickets=run.tickets[1:])
    with pytest.raises(InvalidInputError, match=r"Level 0 has density 0\.8"):
        rgflow.controls(system, [sparse])
    shifted = damaged(run, tickets=[run.tickets[0], *run.tickets[:-1]])
    with pytest.raises(InvalidInputError, match=r"Run 0 has densities .*; run 1 has"):
        rgflow.controls(system, [run, shifted])
    with pytest.raises(InvalidInputError, match="Unknown prunable tensor 'layer0'"):
        rgflow.controls(Space(prunable=("layer", "b")), [run])
    with pytest.raises(InvalidInputError, match="scope='local' was asked"):
        rgflow.controls(system, [run], scope="local")
    single = damaged(run, levels=run.levels[:1], tickets=run.tickets[:1])
    with pytest.raises(InvalidInputError, match="one level, which is never pruned"):
        rgflow.observables(single, stage="after")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"magnitude": "L3"}, "magnitude='L3' .* L1, L2"),
        ({"stage": "during"}, "stage='during'"),
        ({"normalisation": "none"}, "normalisation='none'"),
        ({"groups": "block"}, "groups='block'"),
        ({"groups": {"layer0": "x"}}, "nothing about layer1, layer2, layer3"),
        ({"groups": {"layer9": "x"}}, "Unknown tensor in groups 'layer9'"),
        ({"groups": {f"layer{i}": None for i in range(4)}}, "leaves out all"),
    ],
    ids=["magnitude", "stage", "normalisation", "groups", "missing", "name", "none"],
)
def test_refusals_of_choices(options, message):
    with pytest.raises(InvalidInputError, match=message):
        rgflow.observables(laplace_run((4, 3, 2, 1), 0), **options)
