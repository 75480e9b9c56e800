"""Parameters of any layer are pruned where ``prunable=`` asks for them."""

import copy
import warnings

import pytest
import torch
from problems import classes, small_net
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from dynprune.core import InvalidInputError, NumericalWarning
from dynprune.operators import HessianOperator
from dynprune.pruning import (
    early_bird,
    edge_popup,
    erk,
    force,
    from_scores,
    gem_miner,
    gradual_magnitude,
    grasp,
    imp,
    iterative_snip,
    lamp,
    magnitude,
    obd,
    obs,
    random,
    rigl,
    sanity_check,
    snip,
    snip_scores,
    sparse_evolution,
    sparsegpt,
    synflow,
    synflow_scores,
)
from dynprune.system import GradientSystem
from dynprune.tickets import Ticket, compare, to_sparse
from dynprune.tickets._layer_forms import LayerForms
from dynprune.training import Recipe

CE = nn.functional.cross_entropy
ASKED = ("own", "table.weight", "rnn.weight_*", "out.*")
NAMES = (
    "own",
    "table.weight",
    "rnn.weight_ih_l0",
    "rnn.weight_hh_l0",
    "out.weight",
    "out.bias",
)
RECIPE = Recipe(lambda p: torch.optim.SGD(p, lr=0.2, momentum=0.9), steps=12)


class Reader(nn.Module):
    """Reads tokens by a table, an LSTM, a matrix of its own, and a linear layer."""

    def __init__(self):
        nn.Module.__init__(self)
        self.table, self.rnn = nn.Embedding(9, 4), nn.LSTM(4, 5, batch_first=True)
        self.own, self.out = nn.Parameter(torch.randn(5, 6)), nn.Linear(6, 3)

    def forward(self, x):
        return self.out(torch.tanh(self.rnn(self.table(x))[0][:, -1] @ self.own))


def system_of(net: nn.Module | None = None, **kwargs) -> GradientSystem:
    with torch.random.fork_rng():
        torch.random.default_generator.manual_seed(0)
        net = Reader().double() if net is None else net
        data = torch.randint(9, (60, 3)), torch.randint(3, (60,))
    return GradientSystem(net, CE, data, **({"prunable": ASKED} | kwargs))


def test_patterns_choose_among_the_selected_parameters():
    system = system_of()
    assert system.prunable == NAMES
    for twin in (
        system.with_state(system.state),
        system.double(),
        system.with_data(system.data),
        system.with_ticket(magnitude(system, density=0.5)),
    ):
        assert twin.prunable == NAMES
    assert system_of(prunable="out.bias").prunable == ("out.bias",)
    assert system_of(prunable=None).prunable == ("out.weight",)
    part = system_of(parameters="rnn.*", prunable="*weight*")
    assert part.prunable == ("rnn.weight_ih_l0", "rnn.weight_hh_l0")


def test_what_cannot_be_asked_for():
    with pytest.raises(InvalidInputError, match="No selected parameter matches 'lstm"):
        system_of(prunable=["own", "lstm.*"])
    with pytest.raises(InvalidInputError, match="No selected parameter matches 'out"):
        system_of(parameters="rnn.*", prunable="out.weight")
    with pytest.raises(InvalidInputError, match="prunable is a list without a name"):
        system_of(prunable=[])
    with pytest.raises(InvalidInputError, match="prunable is a int"):
        system_of(prunable=3)
    net = Reader().double()
    net.own.requires_grad_(False)
    with pytest.raises(InvalidInputError, match="own is frozen"):
        system_of(net, prunable="own")


def test_magnitude_is_top_k_over_all_that_was_asked_for():
    system = system_of()
    own = system.unflatten(system.state)
    flat = torch.cat([own[name].abs().reshape(-1) for name in NAMES])
    count = int(0.3 * len(flat) + 0.5)
    kept = flat >= flat.sort(descending=True).values[count - 1]
    masks = magnitude(system, density=0.3).masks
    assert torch.equal(torch.cat([masks[n].reshape(-1) for n in NAMES]), kept)


def test_snip_scores_of_any_parameter():
    system = system_of()
    net = copy.deepcopy(system.module)
    CE(net(system.data[0]), system.data[1]).backward()
    own = dict(net.named_parameters())
    for name, score in snip_scores(system).items():
        expected = (own[name] * own[name].grad).abs()
        torch.testing.assert_close(score.to(expected), expected, rtol=1e-9, atol=0)


def test_levels_of_imp_are_masked_training():
    system = system_of()
    run = imp(system, densities=(1.0, 0.5, 0.25), train=RECIPE)
    ticket, level = run.tickets[-1], run.levels[-1]
    net = copy.deepcopy(system.module)
    own = dict(net.named_parameters())
    with torch.no_grad():
        for name, part in own.items():
            part.copy_(ticket.state[name])
            part.mul_(ticket.masks.get(name, torch.ones_like(part)))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.2, momentum=0.9)
    for _ in range(12):
        optimizer.zero_grad()
        CE(net(system.data[0]), system.data[1]).backward()
        for name, mask in ticket.masks.items():
            own[name].grad.mul_(mask)
        optimizer.step()
    for name, part in level.state.items():
        torch.testing.assert_close(own[name].detach(), part, rtol=1e-10, atol=1e-12)
        if name in ticket.masks:
            assert not part[~ticket.masks[name]].any()


PRUNERS = {
    "random": random,
    "lamp": lamp,
    "erk": erk,
    "snip": snip,
    "iterative_snip": iterative_snip,
    "force": force,
    "grasp": grasp,
    "obs": obs,
    "obd": lambda s, density: obd(s, density=density, matvecs=400),
    "gem_miner": lambda s, density: gem_miner(
        s, density=density, epochs=12, weights="own", rule="exact"
    ),
    "gradual_magnitude": lambda s, density: (
        gradual_magnitude(s, density=density, train=RECIPE, update_every=2).ticket
    ),
    "rigl": lambda s, density: (
        rigl(s, density=density, train=RECIPE, update_every=2).ticket
    ),
    "sparse_evolution": lambda s, density: (
        sparse_evolution(s, density=density, train=RECIPE, update_every=2).ticket
    ),
    "early_bird": lambda s, density: (
        early_bird(s, density=density, train=RECIPE, unit="weight").ticket
    ),
    "from_scores": lambda s, density: from_scores(
        s, {n: s.unflatten(s.state)[n] for n in s.prunable}, density=density
    ),
}


@pytest.mark.parametrize("prune", PRUNERS.values(), ids=PRUNERS.keys())
def test_pruners_keep_the_count(prune):
    system = system_of()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ticket = prune(system, density=0.4)
    assert tuple(ticket.masks) == NAMES
    total = sum(mask.numel() for mask in ticket.masks.values())
    kept = sum(int(mask.sum()) for mask in ticket.masks.values())
    assert abs(kept - 0.4 * total) < 1.0
    assert system.with_ticket(ticket).size == system.size - total + kept


class Last(nn.Module):
    """The last output of a rectified recurrent layer."""

    def __init__(self):
        nn.Module.__init__(self)
        self.rnn = nn.RNN(3, 4, nonlinearity="relu", batch_first=True)

    def forward(self, x):
        return self.rnn(x)[0][:, -1]


def test_synflow_flows_through_a_recurrent_layer():
    net = Last().double()
    x, y = classes(12, 6, 4)
    data = x.view(12, 2, 3), y
    system = GradientSystem(net, CE, data, prunable="rnn.weight_*")
    scores = synflow_scores(system)
    twin = copy.deepcopy(net)
    with torch.no_grad():
        for part in twin.parameters():
            part.abs_()
    twin(torch.ones(1, 2, 3, dtype=torch.float64)).sum().backward()
    for name in system.prunable:
        part = twin.get_parameter(name)
        expected = (part * part.grad).abs()
        torch.testing.assert_close(scores[name], expected, rtol=1e-9, atol=0)


class Bracketed(nn.Module):
    """A parameter whose name is a pattern that does not match itself."""

    def __init__(self):
        nn.Module.__init__(self)
        self.own = nn.ParameterDict({"w[0]": torch.ones(3)})
        self.last = nn.Linear(3, 3)

    def forward(self, x):
        return self.last(x) * self.own["w[0]"]


def test_names_with_brackets_and_computed_weights():
    data = classes(12, 3, 3)
    asked = ["own.w[0]", "last.bias"]
    system = GradientSystem(Bracketed().double(), CE, data, prunable=asked)
    assert system.prunable == tuple(asked)
    normed = nn.Sequential(weight_norm(nn.Linear(3, 3)), nn.Linear(3, 3)).double()
    with pytest.raises(InvalidInputError, match=r"0\.weight is computed of other"):
        GradientSystem(normed, CE, data, prunable="0.weight")
    system = GradientSystem(normed, CE, data, prunable="*.weight")
    with pytest.warns(NumericalWarning, match=r"0\.weight, computed of"):
        assert system.prunable == ("1.weight",)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        asked = GradientSystem(normed, CE, data, prunable="1.weight")
        magnitude(asked, density=0.5)
        magnitude(system_of(prunable="out.weight"), density=0.5)  # the LSTM stays


def test_an_embedding_pruned_whole_cuts_the_network():
    system = system_of()
    scores = {n: s.abs() for n, s in system.unflatten(system.state).items()}
    scores = {n: scores[n] * (1e-6 if "table" in n else 1.0) for n in NAMES}
    with pytest.raises(InvalidInputError, match=r"no path of .*table"):
        from_scores(system, scores, density=0.3)
    with pytest.warns(NumericalWarning, match=r"no path of .*'table\.weight'"):
        ticket = from_scores(system, scores, density=0.3, collapse="warn")
    assert not ticket.masks["table.weight"].any()
    scores["table.weight"].view(-1)[0] = 10.0
    kept = from_scores(system, scores, density=0.3)  # one path is enough
    assert int(kept.masks["table.weight"].sum()) == 1


def test_sparse_embeddings_have_dense_gradients_and_sparse_optimisers():
    dense, sparse = Reader().double(), Reader().double()
    sparse.load_state_dict(dense.state_dict())
    sparse.table.sparse = True
    one, other = system_of(dense), system_of(sparse)
    assert torch.equal(one.gradient(), other.gradient())
    ones = torch.ones(one.size, dtype=torch.float64)
    assert torch.equal(HessianOperator(one) @ ones, HessianOperator(other) @ ones)
    for prune in ("obs", "obd", "rigl", "grasp"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            masks = [PRUNERS[prune](s, density=0.4).masks for s in (one, other)]
        for name in NAMES:
            assert torch.equal(masks[0][name], masks[1][name])
    assert sparse.table.sparse
    table = other.with_state(other.state)
    recipe = Recipe(lambda p: torch.optim.SparseAdam(p, lr=0.1), steps=3)
    own = GradientSystem(sparse, CE, other.data, parameters="table.weight")
    assert not torch.equal(recipe(own).state, own.state)
    assert table.sparse == ("table",)


def test_embeddings_that_rewrite_themselves_are_refused():
    net = nn.Sequential(nn.Embedding(9, 4, max_norm=1.0), nn.Flatten())
    with pytest.raises(InvalidInputError, match=r"max_norm \(0\).*max_norm=None"):
        system_of(net, prunable=None)


def test_what_needs_a_layer_says_so():
    system = system_of()
    with pytest.raises(InvalidInputError, match=r"fan-in of own, table\.weight, .* is"):
        edge_popup(system, density=0.4, epochs=1)
    with pytest.raises(InvalidInputError, match="or pass weights='own'"):
        gem_miner(system, density=0.4, epochs=12)
    for asked in (ASKED, "*"):
        with pytest.raises(InvalidInputError, match="'own' is applied by no layer"):
            sparsegpt(system_of(prunable=asked), density=0.4)
    other = Reader().double()
    other.own.requires_grad_(False)
    both = {"ids": system.data[0], "y": system.data[1]}
    named = GradientSystem(
        other,
        None,
        [both],
        prunable="out.weight",
        batch_loss=lambda net, batch: CE(net(batch["ids"]), batch["y"]),
    )
    with pytest.raises(InvalidInputError, match="not defined for a network that takes"):
        synflow(named, density=0.5)


def test_tickets_of_them_travel(tmp_path):
    system = system_of()
    made = magnitude(system, density=0.4)
    made.save(tmp_path / "ticket.safetensors")
    ticket = Ticket.load(tmp_path / "ticket.safetensors")
    for name, mask in made.masks.items():
        assert torch.equal(ticket.masks[name], mask)
    pruned = ticket.to_torch_prune(copy.deepcopy(system.model))
    back = Ticket.from_torch_prune(pruned)
    assert back.masks.keys() == ticket.masks.keys()
    for name, mask in ticket.masks.items():
        assert torch.equal(back.masks[name], mask)
    dense = ticket.to_dense(system.model)
    x = system.data[0]
    torch.testing.assert_close(pruned.eval()(x), dense.eval()(x))
    made = to_sparse(ticket, dense, example=x)
    assert dict((name, form) for name, form, *_ in made.layers)["own"] == "dense"


def test_comparison_reads_a_table_from_tokens_to_units():
    system = system_of()
    mask = torch.zeros(9, 4, dtype=torch.bool)
    mask[2] = True
    forms = LayerForms(system.model)
    assert torch.equal(forms.straight("table.weight", mask), mask.T)
    assert torch.equal(forms.own("table.weight", mask.T), mask)
    tied = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 9, bias=False))
    tied[1].weight = tied[0].weight
    assert torch.equal(LayerForms(tied).straight("0.weight", mask), mask)
    tickets = {"a": magnitude(system, density=0.4), "b": random(system, density=0.4)}
    example = system.data[0][:1]
    frame = compare(tickets, model=system.model, example=example, shuffles=2).to_frame()
    rows = frame[(frame.layer == "out.bias") & (frame.measure == "hamming")]
    masks = tickets["a"].masks["out.bias"], tickets["b"].masks["out.bias"]
    assert len(rows) == 1
    (place,) = {row.layer for row in frame.itertuples() if row.measure == "locality"}
    assert place == "table.weight"
    assert rows.value.item() == float((masks[0] != masks[1]).double().mean())


def test_sanity_checks_shuffle_them():
    system = system_of()
    ticket = magnitude(system, density=0.4)
    seen = []

    def train(masked, **kwargs):
        seen.append(masked.masks)
        return RECIPE(masked, **kwargs)

    found = sanity_check(
        ticket,
        system,
        train=train,
        seeds=(0, 1),
        held_out=system.data,
        make_model=lambda seed: Reader().double(),
    )
    assert found.seeds == (0, 1)
    for name, mask in ticket.masks.items():
        assert {int(masks[name].sum()) for masks in seen} == {int(mask.sum())}
    whole = ("table.weight", "rnn.weight_hh_l0", "own")
    for name in whole:  # the ticket's own, its shuffles, and others
        assert len({tuple(masks[name].reshape(-1).tolist()) for masks in seen}) > 2


def test_choosing_the_default_changes_nothing():
    system = GradientSystem(small_net(), CE, classes(12, 3, 3))
    same = GradientSystem(
        small_net(), CE, classes(12, 3, 3), prunable=list(system.prunable)
    )
    one, other = (imp(s, densities=(1.0, 0.5), train=RECIPE) for s in (system, same))
    for name, mask in one.tickets[-1].masks.items():
        assert torch.equal(mask, other.tickets[-1].masks[name])
