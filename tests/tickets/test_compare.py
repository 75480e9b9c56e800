"""What a comparison measures, returns, draws and refuses."""

import functools
import math
from dataclasses import FrozenInstanceError
from types import SimpleNamespace

import matplotlib as mpl
import numpy as np
import pytest
import torch
from problems import classes, dense_hessian, small_net
from torch import nn

from dynprune.core import (
    InvalidInputError,
    cite,
    derive_seed,
    load_tensors,
    save_tensors,
)
from dynprune.pruning import imp, magnitude, random, snip
from dynprune.spectral import eigenpairs
from dynprune.system import GradientSystem
from dynprune.tasks import Problem
from dynprune.tickets import (
    Comparison,
    Ticket,
    compare,
    effective_density,
    error_barrier,
    graph_measures,
    path_norm,
    shuffle,
    zeros_where_pruned,
)
from dynprune.tickets._locality import locality
from dynprune.training import Recipe

CE = nn.functional.cross_entropy


@pytest.fixture(autouse=True)
def _no_window():
    import matplotlib.pyplot as plt

    mpl.use("Agg")
    yield
    plt.close("all")


def problem():
    model, data = small_net(widths=(6, 12, 9, 3)), classes(20, 6, 3)
    return GradientSystem(model, CE, data)


def three(system, density=0.4):
    return {
        "snip": snip(system, density=density),
        "magnitude": magnitude(system, density=density),
        "random": random(system, density=density),
    }


def reading(found, measure, layer, *tickets):
    (one,) = [
        r
        for r in found.readings
        if (r.measure, r.layer, r.tickets) == (measure, layer, tickets)
    ]
    return one


def test_values_are_those_of_the_single_measures():
    system = problem()
    tickets = three(system)
    found = compare(tickets, system=system, shuffles=0)
    example = torch.zeros(1, 6)
    for label, ticket in tickets.items():
        graph = graph_measures(ticket)
        assert reading(found, "clustering", "all", label).value == graph.clustering
        for layer, value in zip(graph.layers, graph.ramanujan_s, strict=True):
            one = reading(found, "ramanujan_s", layer, label).value
            assert one == pytest.approx(value, nan_ok=True)
        alive = effective_density(ticket, system.model, example=example)
        for layer, value in alive.items():
            assert reading(found, "effective_density", layer, label).value == value
        norm = path_norm(ticket, system.model, example=example)
        assert reading(found, "path_norm", "all", label).value == pytest.approx(norm)
        assert reading(found, "density", "all", label).value == ticket.density


def test_convolutions_with_batch_norm():
    with torch.random.fork_rng():
        net = nn.Sequential(
            nn.Conv2d(1, 8, 3),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(8, 3),
        )
    net[1].running_var.fill_(4.0)
    x, y = classes(12, 16, 3)
    system = GradientSystem(net, CE, (x.float().view(12, 1, 4, 4), y))
    tickets = three(system, density=0.3)
    found = compare(tickets, system=system, shuffles=2)
    assert found.notes == ()
    assert found.layers == ("0.weight", "5.weight")
    for label, ticket in tickets.items():
        # each of 4 positions of a channel sees 9 pixels, times its sum of weights
        conv, last = (ticket.masked_state[n].double().abs() for n in found.layers)
        scale = 1.0 / (4.0 + net[1].eps) ** 0.5
        expected = float((4 * conv.sum((1, 2, 3)) * scale * last.sum(0)).sum())
        one = reading(found, "path_norm", "all", label)
        assert one.value == pytest.approx(expected, rel=1e-9)
    table = found.similarity("input_correlation", layer="5.weight")
    assert np.isfinite(table.to_numpy()).all()


def test_gradient_flow_and_hessian_are_those_of_the_masked_system():
    system = problem()
    tickets = {n: three(system)[n] for n in ("snip", "random")}
    found = compare(tickets, system=system, shuffles=0, eigenvalues=2)
    for label, ticket in tickets.items():
        masked = system.with_ticket(ticket)
        flow = masked.gradient().square().sum()
        assert reading(found, "gradient_flow", "all", label).value == pytest.approx(
            float(flow)
        )
        values = torch.linalg.eigvalsh(dense_hessian(masked, masked.state)).flip(0)
        for index in range(2):
            one = reading(found, f"hessian_eigenvalue_{index + 1}", "all", label)
            assert one.value == pytest.approx(float(values[index]), rel=1e-3)
    assert found.cost.gradients == 2
    assert found.cost.hvps > 0


def test_eigenvalues_that_do_not_converge_are_left_out(monkeypatch):
    system, calls = problem(), []

    def scarce(*args, **kwargs):
        # one shuffle of four has products for none of its pairs
        calls.append(kwargs)
        few = {"max_matvecs": 3, "basis_size": 6} if len(calls) == 3 else {}
        return eigenpairs(*args, **kwargs | few)

    monkeypatch.setattr("dynprune.tickets._measures.eigenpairs", scarce)
    pair = {n: three(system)[n] for n in ("snip", "random")}
    found = compare(pair, system=system, shuffles=4, eigenvalues=2)
    assert len(calls) == 10
    said = [note for note in found.notes if "converge" in note]
    assert len(said) == 1
    assert said[0].startswith("hessian_eigenvalue: 2 of 20 ")
    own = reading(found, "hessian_eigenvalue_1", "all", "snip")
    assert math.isfinite(own.null_sd)  # of the three others
    assert own.p in {1 / 4, 2 / 4, 3 / 4, 1.0}
    assert reading(found, "hessian_eigenvalue_1", "all", "random").p >= 1 / 5


def test_an_eigenvalue_of_the_ticket_that_does_not_converge_is_none(monkeypatch):
    few = functools.partial(eigenpairs, max_matvecs=3, basis_size=6)
    monkeypatch.setattr("dynprune.tickets._measures.eigenpairs", few)
    system = problem()
    pair = {n: three(system)[n] for n in ("snip", "random")}
    found = compare(pair, system=system, shuffles=0, eigenvalues=2)
    value = reading(found, "hessian_eigenvalue_2", "all", "snip").value
    assert math.isnan(value)
    assert any("hessian_eigenvalue: 4 of 4 " in note for note in found.notes)
    found.summary(), found.plot()


def test_null_is_that_of_the_shuffles_and_shared_by_all_measures():
    system = problem()
    tickets = three(system)
    found = compare(tickets, system=system, shuffles=5, seed=3)

    for index, (label, ticket) in enumerate(tickets.items()):
        mixed = [
            shuffle(ticket, seed=derive_seed("tickets.compare", 3, index, draw))
            for draw in range(5)
        ]
        norms = [path_norm(m, system.model, example=torch.zeros(1, 6)) for m in mixed]
        one = reading(found, "path_norm", "all", label)
        assert one.null_mean == pytest.approx(np.mean(norms))
        assert one.null_sd == pytest.approx(np.std(norms, ddof=1))
        assert one.z == pytest.approx((one.value - one.null_mean) / one.null_sd)
        centre = np.mean([*norms, one.value])
        beyond = sum(abs(n - centre) >= abs(one.value - centre) for n in norms)
        assert one.p == pytest.approx((1 + beyond) / 6)
        weights = mixed[0].masks["0.weight"]
        assert weights.sum() == ticket.masks["0.weight"].sum()


def test_random_tickets_are_at_chance_and_a_ticket_is_nested_in_itself():
    state = {"a": torch.ones(80, 80), "b": torch.ones(40, 80)}
    draw = torch.Generator().manual_seed(0)
    masks = [
        {
            name: torch.rand(part.shape, generator=draw) < 0.2
            for name, part in state.items()
        }
        for _ in range(4)
    ]
    made = [Ticket.make(mask, state) for mask in masks]
    made.append(Ticket.make(masks[0], state))
    found = compare(made, shuffles=0)
    pairs = [r for r in found.readings if r.measure == "jaccard" and r.layer == "all"]
    zs = [r.z for r in pairs if r.value < 1]
    assert max(abs(z) for z in zs) < 4
    (own,) = [r for r in pairs if r.value == 1]
    assert own.z > 20
    assert own.p < 1e-12
    table = found.similarity()
    assert table.iloc[0, 4] == 1.0
    assert abs(table.iloc[0, 1]) < 0.1


def test_same_units_without_the_same_weights():
    # both keep weights of the first ten inputs only, elsewhere at random
    state = {"w": torch.ones(60, 40)}
    draw = torch.Generator().manual_seed(0)
    masks = []
    for _ in range(2):
        mask = torch.rand(60, 40, generator=draw) < 0.5
        mask[:, 10:] = False
        masks.append({"w": mask})
    found = compare(*(Ticket.make(m, state) for m in masks), labels="pq")
    inputs = reading(found, "input_correlation", "w", "p", "q")
    counts = [m["w"].double().sum(0).numpy() for m in masks]
    assert inputs.value == pytest.approx(np.corrcoef(*counts)[0, 1])
    assert inputs.z > 4
    assert inputs.p == pytest.approx(1 / 21)
    outputs = reading(found, "output_correlation", "w", "p", "q")
    assert abs(outputs.z) < 4


def test_locality_of_the_first_layer():
    state = {"w": torch.tensor([[3.0, -3.0, 1.0, 5.0]] * 2), "v": torch.ones(3, 2)}
    kept = {
        "w": torch.tensor([[True, True, False, False], [False, False, False, True]])
    }
    kept["v"] = torch.ones(3, 2).bool()
    ticket = Ticket.make(kept, state)
    found = compare(ticket, ticket, shuffles=0, labels="pq")
    assert reading(found, "locality", "w", "p").value == 0.75  # (1/2 + 1) / 2
    assert not [r for r in found.readings if (r.measure, r.layer) == ("locality", "v")]


def test_inverse_participation_ratio_of_unequal_weights():
    # (1 + 16) / (1 + 4)², whatever the scale
    for scale in (1.0, 1e-30, 1e30):
        assert locality(torch.tensor([[1.0, 2.0]]) * scale) == pytest.approx(17 / 25)


def test_paths_without_a_model_are_not_guessed():
    tickets = three(problem())
    found = compare(tickets, shuffles=0)
    assert "effective_density" not in found.measures
    assert any("pass system=" in note for note in found.notes)
    chain = compare(tickets, shuffles=0, model="chain")
    for label, ticket in tickets.items():
        value = reading(chain, "effective_density", "all", label).value
        assert value == effective_density(ticket)["all"]
    (note,) = [note for note in chain.notes if note.startswith("path_norm")]
    assert note == "path_norm: pass model= or system="
    both = compare(tickets, shuffles=0, model="chain", system=problem())
    assert "path_norm: leave out model='chain'" in both.notes
    with_model = compare(
        tickets, shuffles=0, model=problem().model, example=torch.zeros(1, 6)
    )
    assert "path_norm" in with_model.measures
    assert "gradient_flow" not in with_model.measures


def test_model_without_a_path_norm_says_so():
    with torch.random.fork_rng():
        net = nn.Sequential(nn.Linear(3, 8), nn.LayerNorm(8), nn.Linear(8, 3)).double()
    system = GradientSystem(net, CE, classes(9, 3, 3))
    pair = magnitude(system, density=0.5), random(system, density=0.5)
    found = compare(*pair, system=system, shuffles=2)
    assert "path_norm" not in found.measures
    assert "effective_density" in found.measures
    assert any("LayerNorm" in note for note in found.notes)


def trained():
    x, y = classes(40, 6, 3)
    whole = Problem(
        make_model=lambda seed: small_net(widths=(6, 12, 3), seed=seed),
        loss_fn=CE,
        train=(x, y),
        validation=(x, y),
        test=(x, y),
    )
    system = GradientSystem(whole.model(0), CE, whole.train)
    recipe = Recipe(lambda p: torch.optim.SGD(p, lr=0.5), steps=20)
    run = imp(system, densities=(1.0, 0.5, 0.2), train=recipe)
    return whole, run


def test_barriers_between_runs():
    whole, run = trained()
    found = compare(
        run.tickets, runs=run.levels, problem=whole, points=5, shuffles=0, labels="abc"
    )
    alone = error_barrier(run.levels[0], run.levels[2], whole, points=5)
    one = reading(found, "error_barrier", "all", "a", "c")
    assert one.value == alone.error_barrier
    assert math.isnan(one.null_mean)
    assert reading(found, "loss_barrier", "all", "a", "c").value == alone.loss_barrier
    assert found.cost.forwards == 3 * 5
    weights = run.levels[2].state["0.weight"]
    local = reading(found, "locality_trained", "0.weight", "c")
    assert local.value == locality(weights)
    again = compare(
        run.tickets, runs=run.levels, problem=whole, points=3, shuffles=9, labels="abc"
    )
    local = reading(again, "locality_trained", "0.weight", "c")
    draw, mixed = torch.Generator().manual_seed(5), []
    for _ in range(200):  # the null of permutations, to 5 of its standard errors
        order = torch.randperm(weights.numel(), generator=draw)
        mixed.append(locality(weights.reshape(-1)[order].view(weights.shape)))
    assert abs(local.null_mean - np.mean(mixed)) < 5 * np.std(mixed) / 3
    table = found.similarity("loss_barrier")
    assert table.loc["a", "a"] == 0.0
    assert table.loc["c", "a"] == table.loc["a", "c"] == alone.loss_barrier


def test_result_is_frozen_tidy_and_says_what_it_is():
    system = problem()
    found = compare(three(system), system=system, shuffles=3)
    with pytest.raises(FrozenInstanceError):
        found.labels = ()
    frame = found.to_frame()
    assert list(frame.columns) == [
        "measure",
        "layer",
        "ticket",
        "other",
        "value",
        "null_mean",
        "null_sd",
        "z",
        "p",
    ]
    assert not frame.duplicated(["measure", "layer", "ticket", "other"]).any()
    assert len(frame) == len(found.readings)
    p = frame["p"].dropna()
    assert ((p >= 0) & (p <= 1 + 1e-12)).all()
    assert "3 tickets" in found.summary()
    assert "\n" not in repr(found)
    for word in ("{R}amanujan", "Graph Structure", "Effective", "Norm-Based"):
        assert word in cite(found)
    assert "Effective" not in cite(compare(three(system), shuffles=0))
    table = found.similarity("hamming", layer="0.weight")
    assert (table.to_numpy() == table.to_numpy().T).all()
    assert (np.diag(table) == 0).all()


def test_round_trip_through_a_file(tmp_path):
    system = problem()
    found = compare(three(system), system=system, shuffles=3)
    found.save(tmp_path / "a")
    read = Comparison.load(tmp_path / "a")
    assert read.to_frame().equals(found.to_frame())
    assert (read.labels, read.layers, read.densities) == (
        found.labels,
        found.layers,
        found.densities,
    )
    assert (read.notes, read.cost) == (found.notes, found.cost)
    assert cite(read) == cite(found)
    read.save(tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    snip(system, density=0.4).save(tmp_path / "c")
    with pytest.raises(InvalidInputError, match="'ticket', not a comparison"):
        Comparison.load(tmp_path / "c")


def test_same_seed_same_result():
    system = problem()
    a, b = (compare(three(system), system=system, shuffles=3, seed=s) for s in (1, 1))
    other = compare(three(system), system=system, shuffles=3, seed=2)
    frames = [one.to_frame() for one in (a, b, other)]
    assert frames[0].equals(frames[1])
    assert not frames[0].equals(frames[2])


def test_order_of_masks_does_not_matter():
    first = magnitude(problem(), density=0.4)
    turned = Ticket.make(
        dict(reversed(first.masks.items())), first.state, first.buffers
    )
    found = compare(first, turned, shuffles=0, labels="pq")
    assert found.similarity("jaccard").loc["p", "q"] == 1.0
    value = reading(found, "ramanujan_r", "2.weight", "q").value
    assert value == reading(found, "ramanujan_r", "2.weight", "p").value


def test_default_labels_are_readable_and_different():
    first = snip(problem(), density=0.4)
    found = compare([first, first, shuffle(first)], shuffles=0)
    assert found.labels == ("snip 40.1 %", "snip 40.1 % #2", "snip shuffled 40.1 %")


def test_warns_of_unequal_densities_and_of_empty_layers():
    state = {"w": torch.ones(4, 5), "v": torch.ones(3, 4)}
    full = {name: torch.ones_like(part).bool() for name, part in state.items()}
    gone = full | {"w": torch.zeros(4, 5).bool()}
    found = compare(Ticket.make(full, state), Ticket.make(gone, state), labels="pq")
    assert any("densities from" in note for note in found.notes)
    assert any("q keeps nothing of w" in note for note in found.notes)
    assert math.isnan(reading(found, "excess_overlap", "w", "p", "q").value)
    found.plot()


@pytest.mark.parametrize("trained", [True, False], ids=["trained", "start"])
def test_a_state_of_zeros_where_pruned_is_noted(trained):
    # the path norm of its shuffles is that of another kind of network
    system = problem()
    found = snip(system, density=0.4)
    state = found.masked_state if trained else found.state
    sparse = Ticket.make(found.masks, state)
    assert zeros_where_pruned(sparse) == (tuple(found.masks) if trained else ())
    pair = {"sparse": sparse, "dense": random(system, density=0.4)}
    notes = compare(pair, system=system, shuffles=0).notes
    said = [note for note in notes if "zero where it prunes" in note]
    assert len(said) == trained
    for note in said:
        assert note.startswith("sparse has a state that is zero where it prunes, in 0.")


def test_zeros_where_pruned_asks_for_most_of_a_layer():
    mask = {"w": torch.tensor([True, True, False, False, False, False])}
    for state, bare in (
        ([1.0, 1.0, 0.0, 0.0, 1.0, 1.0], False),  # half of the pruned ones
        ([1.0, 1.0, 0.0, 0.0, 0.0, 1.0], True),
        ([1.0, 0.0, 0.0, 0.0, 0.0, 1.0], True),
        ([0.0, 0.0, 0.0, 0.0, 0.0, 0.0], False),  # kept ones as well
    ):
        ticket = Ticket.make(mask, {"w": torch.tensor(state)})
        assert zeros_where_pruned(ticket) == (("w",) if bare else ())
    for fill in (True, False):
        whole = {"w": torch.full((6,), fill), "v": torch.tensor([True])}
        state = {"w": torch.zeros(6), "v": torch.ones(1)}
        assert zeros_where_pruned(Ticket.make(whole, state)) == ()


def test_figure():
    system = problem()
    found = compare(three(system), system=system, shuffles=0)
    before = dict(mpl.rcParams)
    ax = found.plot()
    assert dict(mpl.rcParams) == before
    names = [label.get_text() for label in ax.get_yticklabels()]
    assert sorted(names) == sorted(found.labels)
    order = [found.labels.index(name) for name in names]
    shown = np.asarray(ax.images[0].get_array())
    table = found.similarity().to_numpy()
    assert np.allclose(shown, table[order][:, order])
    tree, heat, layers = ax.figure.axes[:3]
    assert heat is ax
    assert "beyond chance" in tree.get_title(loc="left")
    columns = [label.get_text() for label in layers.get_xticklabels()]
    assert columns == ["all", "0", "2", "4"]
    kept = np.asarray(layers.images[0].get_array())
    expected = 100 * np.array(found.densities)[order]
    assert np.allclose(kept, expected)
    ax.figure.canvas.draw()
    alone = found.plot(ax, measure="hamming", layer="2.weight")
    assert alone is ax
    assert "2.weight" in ax.get_title(loc="left")


def test_cluster_order_puts_like_tickets_together():
    state = {"w": torch.ones(50, 50)}
    draw = torch.Generator().manual_seed(0)
    centres = [torch.rand(50, 50, generator=draw) < 0.3 for _ in range(2)]
    made = {}
    for k in range(3):
        for c, centre in enumerate(centres):
            flips = torch.rand(50, 50, generator=draw) < 0.05
            made[f"{'ab'[c]}{k}"] = Ticket.make({"w": centre ^ flips}, state)
    ax = compare(made, shuffles=0).plot()
    names = [label.get_text()[0] for label in ax.get_yticklabels()]
    assert "".join(names) in {"aaabbb", "bbbaaa"}


def one_ticket(shape=(4, 5), name="w", state=None):
    state = state or {name: torch.ones(shape)}
    return Ticket.make({name: torch.ones(shape).bool()}, state)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda t: compare(t), "asked of 1 ticket"),
        (lambda t: compare(SimpleNamespace(), t), "asked of a SimpleNamespace"),
        (lambda t: compare(t, SimpleNamespace()), "asked of a SimpleNamespace"),
        (lambda t: compare(t, one_ticket((5, 5))), r"w is \(4, 5\) in .* \(5, 5\) in"),
        (lambda t: compare(t, one_ticket(name="v")), "w is .* and no mask in"),
        (
            lambda t: compare(
                t, one_ticket(state={"w": torch.ones(4, 5), "b": torch.ones(2)})
            ),
            "different models.*missing in the ticket: b",
        ),
        (lambda t: compare(t, t, labels=("a",)), "2 tickets were given 1 labels"),
        (lambda t: compare(t, t, labels=("a", "a")), "1 of them different"),
        (lambda t: compare(t, t, shuffles=1), "shuffles is 1. Pass at least 2"),
        (lambda t: compare(t, t, groups=2), "groups is 2"),
        (lambda t: compare(t, t, power=3), "power 3"),
        (lambda t: compare(t, t, eigenvalues=3), "without a system"),
        (lambda t: compare(t, t, runs=(1,)), "2 tickets were given 1 runs"),
        (lambda t: compare(t, t, runs=(1, 2)), "without a problem"),
        (lambda t: compare(t, t, model="mlp"), "Pass a module, or 'chain'"),
        (lambda t: compare(t, t, model=nn.Linear(5, 4)), "missing there: w"),
        (lambda t: compare(t, t, system=problem()), r"masks w \(4, 5\)"),
    ],
    ids=lambda part: part if isinstance(part, str) else "",
)
def test_refusals(call, says):
    with pytest.raises(InvalidInputError, match=says):
        call(one_ticket())


def test_layer_without_weights_is_refused():
    state = {"w": torch.ones(4, 5), "v": torch.ones(0, 4)}
    masks = {name: torch.ones_like(part).bool() for name, part in state.items()}
    ticket = Ticket.make(masks, state)
    with pytest.raises(InvalidInputError, match="Layer v has no weights"):
        compare(ticket, ticket)


def test_masked_system_is_refused():
    system = problem()
    ticket = magnitude(system, density=0.4)
    with pytest.raises(InvalidInputError, match="The system is masked"):
        compare(ticket, ticket, system=system.with_ticket(ticket))


def test_state_of_another_system_is_refused():
    with torch.random.fork_rng():
        net = nn.Linear(5, 4).double()
    system = GradientSystem(net, CE, classes(9, 5, 4))
    ticket = one_ticket(name="weight")
    with pytest.raises(InvalidInputError, match="model has bias, which is not in"):
        compare(ticket, ticket, system=system, labels="pq")


def test_runs_of_other_tickets_are_refused():
    whole, run = trained()
    ticket = one_ticket((12, 6), name="elsewhere")
    with pytest.raises(InvalidInputError, match="no 'elsewhere', which the tickets"):
        compare(
            ticket,
            ticket,
            runs=run.levels[:2],
            problem=whole,
            points=3,
            shuffles=0,
            labels="pq",
        )


def test_unknown_measures_and_layers_are_refused():
    found = compare(one_ticket(), one_ticket(), shuffles=0)
    with pytest.raises(
        InvalidInputError, match="Unknown measure of two tickets 'jacard'"
    ):
        found.similarity("jacard")
    with pytest.raises(InvalidInputError, match=r"'x' was asked for.*all, w"):
        found.similarity("jaccard", layer="x")


def test_tickets_and_globals_stay(untouched):
    system = problem()
    tickets = three(system)
    before = {name: one.masks for name, one in tickets.items()}
    weights = [part.clone() for part in system.model.parameters()]
    with untouched():
        compare(tickets, system=system, shuffles=2, eigenvalues=1)
    for name, one in tickets.items():
        assert all(torch.equal(one.masks[n], m) for n, m in before[name].items())
    assert all(map(torch.equal, weights, system.model.parameters()))
    assert all(part.grad is None for part in system.model.parameters())


def test_layers_with_a_dollar_in_their_names_are_drawn():
    name = "cost$_{weight$"
    made = [
        Ticket.make({name: mask}, {name: torch.ones(2, 2)})
        for mask in (torch.eye(2).bool(), torch.ones(2, 2).bool())
    ]
    found = compare(*made, labels=("$_{a", "b"), shuffles=0)
    found.plot(layer=name).figure.draw_without_rendering()
    made[0].plot().figure.draw_without_rendering()


DAMAGE = {
    "labels is a word": {"labels": "ab"},
    "labels are numbers": {"labels": [1, 2]},
    "too few labels": {"labels": ["a"]},
    "labels is null": {"labels": None},
    "other labels": {"labels": ["c", "d"]},
    "too few layers": {"layers": []},
    "layers is a number": {"layers": 3},
    "no readings": {"readings": []},
    "readings are words": {"readings": "abc"},
    "a reading is short": {"readings": [["density"]]},
    "notes is a word": {"notes": "none"},
    "cost is a list": {"cost": []},
    "provenance is a list": {"provenance": [1]},
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_file_is_refused(tmp_path, name):
    masks = {"w": torch.tensor([[True, False], [True, True]])}
    ticket = Ticket.make(masks, {"w": torch.ones(2, 2)})
    compare({"a": ticket, "b": ticket}, shuffles=0).save(tmp_path / "whole")
    tensors, metadata = load_tensors(tmp_path / "whole")
    assert Comparison.load(tmp_path / "whole").labels == ("a", "b")
    save_tensors(tmp_path / "damaged", tensors, metadata | DAMAGE[name])
    with pytest.raises(InvalidInputError, match=r"damaged|lacks part of a comparison"):
        Comparison.load(tmp_path / "damaged")
    for part in tensors:
        wrong = {**tensors, part: tensors[part].flatten()[:-1]}
        save_tensors(tmp_path / "damaged", wrong, metadata)
        with pytest.raises(InvalidInputError, match=f"damaged: its {part} are"):
            Comparison.load(tmp_path / "damaged")
