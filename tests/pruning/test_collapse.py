"""Layers that keep nothing, and networks whose output lost its input."""

import copy
import itertools
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from other_models import Skip
from problems import classes, small_net
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from dynprune.core import InvalidInputError, NumericalWarning
from dynprune.pruning import from_scores, magnitude, random, snip
from dynprune.system import GradientSystem

CE = nn.functional.cross_entropy
LOST = "no path of kept weights leads from the input to the output"


def system_of(net: nn.Module, width: int, count: int, **kwargs) -> GradientSystem:
    return GradientSystem(net, CE, classes(9, width, count), **kwargs)


def by_masks(system, masks, **kwargs):
    """Make the ticket that keeps exactly what masks keep."""
    scores = {name: mask.double() for name, mask in masks.items()}
    size = sum(mask.numel() for mask in masks.values())
    kept = sum(int(mask.sum()) for mask in masks.values())
    return from_scores(system, scores, density=kept / size, **kwargs)


def finding(ticket) -> dict:
    return dict(ticket.provenance.settings)["collapse"]


def connected(masks) -> bool:
    """Multiply the 0/1 matrices of a chain: some input reaches some output."""
    counts = torch.ones(masks[0].shape[1], dtype=torch.float64)
    for mask in masks:
        counts = mask.double() @ counts
    return bool(counts.any())


@given(seed=st.integers(0, 10**6), shares=st.tuples(*[st.floats(0.02, 0.6)] * 3))
def test_lost_is_what_the_product_of_the_masks_says(seed, shares):
    net = small_net(widths=(4, 5, 5, 3), activation=nn.ReLU)
    system = system_of(net, 4, 3)
    make = torch.Generator().manual_seed(seed)
    masks = {}
    for name, share in zip(system.prunable, shares, strict=True):
        shape = dict(net.named_parameters())[name].shape
        masks[name] = torch.rand(shape, generator=make) < share
    if not any(mask.any() for mask in masks.values()):
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NumericalWarning)
        if connected(list(masks.values())):
            assert finding(by_masks(system, masks))["dependence"] == "kept"
        else:
            with pytest.raises(InvalidInputError, match=LOST):
                by_masks(system, masks)


def test_an_empty_layer_is_named_with_the_density():
    system = system_of(Skip(), 4, 3)
    masks = {
        "inner.weight": torch.zeros(4, 4, dtype=torch.bool),
        "head.weight": torch.ones(3, 4, dtype=torch.bool),
    }
    with pytest.warns(
        NumericalWarning,
        match=r"Density 0\.428.* keeps no weight of 'inner.weight' \(16",
    ):
        ticket = by_masks(system, masks)
    assert finding(ticket)["dependence"] == "kept"  # the skip is a path
    assert finding(ticket)["empty_layers"] == ["inner.weight"]


def test_what_each_knob_does():
    system = system_of(small_net(widths=(4, 5, 3)), 4, 3)
    masks = {
        "0.weight": torch.zeros(5, 4, dtype=torch.bool),
        "2.weight": torch.ones(3, 5, dtype=torch.bool),
    }
    with pytest.raises(InvalidInputError, match=rf"{LOST} \(empty layers: '0.weight'"):
        by_masks(system, masks)
    with pytest.warns(NumericalWarning, match=LOST):
        ticket = by_masks(system, masks, collapse="warn")
    assert finding(ticket)["dependence"] == "lost"
    # four passes of 8 of the 9 examples, of the masked network from all three starts
    # and of the dense one, which tells that it is the mask's doing
    assert finding(ticket)["check_gradients"] == pytest.approx(4 * 8 / 9)
    quiet = by_masks(system, masks, collapse="ignore")
    assert finding(quiet) == {"dependence": "not tested"}
    assert all(torch.equal(quiet.masks[n], m) for n, m in ticket.masks.items())
    with pytest.raises(InvalidInputError, match="collapse is 'raise'"):
        by_masks(system, masks, collapse="raise")


def test_masks_that_do_not_meet_are_found_without_an_empty_layer():
    masks = {
        "0.weight": torch.eye(5, 4, dtype=torch.bool),
        "2.weight": torch.zeros(3, 5, dtype=torch.bool),
    }
    masks["2.weight"][:, 4] = True  # unit 4 of the hidden layer has no input
    system = system_of(small_net(widths=(4, 5, 3)), 4, 3)
    with pytest.raises(InvalidInputError, match=r"\(empty layers: none\)"):
        by_masks(system, masks)


def test_dead_units_are_no_lost_path():
    net = small_net(widths=(4, 5, 3), activation=nn.ReLU)
    with torch.no_grad():
        net[0].bias.fill_(-1e3)
    ticket = random(system_of(net, 4, 3), density=0.7, seed=1)
    assert finding(ticket)["dependence"] == "kept"
    assert finding(ticket)["check_gradients"] == pytest.approx(2 * 8 / 9)


class Negated(nn.Module):
    """Its rectifier sees the negative of a positive layer."""

    def __init__(self):
        nn.Module.__init__(self)
        self.a, self.b = nn.Linear(4, 5).double(), nn.Linear(5, 3).double()

    def forward(self, x):
        return self.b(torch.relu(-self.a(x)))


class Pixels(nn.Module):
    """It takes 0 to 255, and shifts and scales them itself."""

    def __init__(self):
        nn.Module.__init__(self)
        self.net = small_net(widths=(4, 6, 6, 6, 3), activation=nn.ReLU)

    def forward(self, x):
        return self.net((x - 127.5) / 127.5)


@pytest.mark.parametrize("net", [Negated, Pixels])
def test_a_path_through_a_negation_or_a_shift_is_no_lost_path(net):
    x, y = classes(9, 4, 3)
    if net is Pixels:
        x = 255.0 * (x - x.min()) / (x.max() - x.min())
    model = net()
    with torch.no_grad():  # all units are dead on the data
        for name, part in model.named_parameters():
            if name.endswith("bias"):
                part.fill_(-1e3 if net is Pixels else 1e3)
    system = GradientSystem(model, CE, (x, y))
    shapes = {n: dict(model.named_parameters())[n].shape for n in system.prunable}
    masks = {n: torch.zeros(shape, dtype=torch.bool) for n, shape in shapes.items()}
    for mask in masks.values():
        mask[1, 1] = True  # one path
    assert finding(by_masks(system, masks))["dependence"] == "kept"
    masks[system.prunable[-1]] = ~masks[system.prunable[-1]]
    masks[system.prunable[-1]][:, 1] = False  # and none
    with pytest.raises(InvalidInputError, match=LOST):
        by_masks(system, masks)


class Steps(nn.Module):
    """A recurrent network over sequences, steps first."""

    def __init__(self):
        nn.Module.__init__(self)
        self.rnn, self.head = nn.RNN(3, 4).double(), nn.Linear(4, 4).double()

    def forward(self, x):
        return self.head(self.rnn(x)[0][-1])


class Nodes(nn.Module):
    """Means over the edges of a graph."""

    def __init__(self):
        nn.Module.__init__(self)
        self.a, self.b = nn.Linear(3, 4).double(), nn.Linear(4, 2).double()

    def forward(self, x, edges):
        h = torch.relu(self.a(x))
        return self.b(h.index_add(0, edges[1], h[edges[0]]))


@pytest.mark.parametrize("kind", ["steps first", "graph"])
def test_pairs_that_are_no_examples_are_not_cut(kind):
    draw = torch.Generator().manual_seed(0)
    if kind == "graph":
        x = torch.randn(20, 3, generator=draw, dtype=torch.float64)
        batch = x, torch.randint(0, 20, (2, 50), generator=draw)
        net, loss = Nodes(), lambda net, batch: net(*batch).square().mean()
    else:
        x = torch.randn(5, 16, 3, generator=draw, dtype=torch.float64)
        batch = x, torch.randint(0, 4, (16,), generator=draw)
        net, loss = Steps(), lambda net, batch: CE(net(batch[0]), batch[1])
    own = None if kind == "graph" else "head.*"  # recurrent weights stay dense
    system = GradientSystem(net, None, [batch], batch_loss=loss, parameters=own)
    ticket = magnitude(system, density=0.5)
    assert finding(ticket)["dependence"] == "kept"
    assert finding(ticket)["check_gradients"] == 1.0


class Named(nn.Module):
    """Takes a dictionary of tensors, one of which is no example's."""

    def __init__(self):
        nn.Module.__init__(self)
        self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.second((self.first(x["a"]) + x["b"] + x["shift"]).tanh())


@pytest.mark.parametrize("kind", ["loader", "one batch"])
@pytest.mark.parametrize("prune", [snip, magnitude])
def test_pairs_of_a_dictionary_and_targets_are_scored_whole(prune, kind):
    make = torch.Generator().manual_seed(0)
    net = Named().double()
    with torch.no_grad():
        for part in net.parameters():
            part.copy_(torch.randn(part.shape, generator=make, dtype=part.dtype))
    (a, y), (b, _) = classes(12, 4, 3), classes(12, 6, 3)
    shift = torch.ones(6, dtype=torch.float64)
    batches = [({"a": a, "b": b, "shift": shift}, y)]
    if kind == "loader":
        batches = [
            ({"a": a[own], "b": b[own], "shift": shift}, y[own])
            for own in torch.arange(12).split(5)
        ]
    system = GradientSystem(net, CE, batches)
    ticket = prune(system, density=0.5)
    assert ticket.kept == 21
    assert finding(ticket)["dependence"] == "kept"
    # a score by hand, and a mask that keeps nothing of the second layer
    loss = CE(net({"a": a, "b": b, "shift": shift}), y)
    slopes = torch.autograd.grad(loss, [net.first.weight, net.second.weight])
    sizes = [net.first.weight, net.second.weight]
    if prune is snip:
        sizes = [part * slope for part, slope in zip(sizes, slopes, strict=True)]
    flat = torch.cat([part.detach().abs().reshape(-1) for part in sizes])
    kept = torch.cat([mask.reshape(-1) for mask in ticket.masks.values()])
    assert flat[kept].min() >= flat[~kept].max()
    gone = {"first.weight": torch.ones(6, 4) > 0, "second.weight": torch.ones(3, 6) < 0}
    with pytest.raises(InvalidInputError, match=LOST):
        by_masks(system, gone)


def test_buffers_that_forward_passes_change_stay():
    class Counts(nn.Module):
        def __init__(self):
            nn.Module.__init__(self)
            self.head = nn.Linear(4, 3).double()
            self.register_buffer("seen", torch.zeros(3, dtype=torch.float64))

        def forward(self, x):
            out = self.head(x)
            self.seen.add_(out.detach().mean(0))
            return out

    net = Counts()
    system = system_of(net, 4, 3)
    ticket = magnitude(system, density=0.5)
    assert not ticket.buffers["seen"].any()
    first = system.loss(), system.gradient()
    assert all(map(torch.equal, first, (system.loss(), system.gradient())))
    assert not net.seen.any()


def test_zeros_at_the_start_are_no_lost_path():
    # a residual branch and a head that start at zero are trained away from it
    net = small_net(widths=(4, 5, 3))
    with torch.no_grad():
        net[2].weight.zero_()
    assert finding(random(system_of(net, 4, 3), density=0.7))["dependence"] == "kept"


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh, nn.GELU, nn.Sigmoid])
def test_deep_thin_chains_are_followed_to_the_end(activation):
    # 30 layers of width 30 in single precision, dead at the start, one path
    widths = (30,) * 31
    net = small_net(widths=widths, activation=activation).float()
    with torch.no_grad():
        for part in net.parameters():
            if part.ndim == 1:
                part.fill_(-50.0)
    x, y = classes(9, 30, 30)
    system = GradientSystem(net, CE, (x.float(), y))
    masks = {}
    for place, name in enumerate(system.prunable):
        masks[name] = torch.zeros(30, 30, dtype=torch.bool)
        masks[name][(place + 1) % 30, place % 30] = True
    assert finding(by_masks(system, masks))["dependence"] == "kept"
    masks[system.prunable[17]] = masks[system.prunable[16]]
    with pytest.raises(InvalidInputError, match=LOST):
        by_masks(system, masks)


def test_softmax_and_norms_do_not_hide_a_path():
    net = nn.Sequential(
        nn.Linear(4, 6),
        nn.LayerNorm(6),
        nn.ReLU(inplace=True),
        nn.Linear(6, 3),
        nn.Softmax(1),
    ).double()
    loss = lambda p, y: nn.functional.nll_loss(p.log(), y)  # noqa: E731
    system = GradientSystem(net, loss, classes(9, 4, 3))
    assert finding(random(system, density=0.5))["dependence"] == "kept"


def test_layers_that_work_in_place_are_fed():
    net = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 3)).double()
    assert finding(random(system_of(net, 4, 3), density=0.5))["dependence"] == "kept"


def conv_net():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, padding=1, groups=2),
        nn.Flatten(),
        nn.Linear(64, 3),
    ).double()


def test_convolutions_with_norms():
    x, y = classes(9, 16, 3)
    net = conv_net()
    system = GradientSystem(net, CE, (x.view(9, 1, 4, 4), y))
    shapes = {n: dict(net.named_parameters())[n].shape for n in system.prunable}
    masks = {n: torch.zeros(shape, dtype=torch.bool) for n, shape in shapes.items()}
    masks["0.weight"][1, 0, 1, 1] = True
    masks["3.weight"][0, 1, 1, 1] = True  # group 0: channels 0, 1 to 0, 1
    masks["5.weight"][2, 5] = True  # channel 0
    assert finding(by_masks(system, masks))["dependence"] == "kept"
    masks["3.weight"].zero_()[2, 1, 1, 1] = True  # group 1 sees channels 2, 3
    with pytest.raises(InvalidInputError, match=LOST):
        by_masks(system, masks)


class Tokens(nn.Module):
    """Mean of the embeddings of tokens and of places, and two layers."""

    def __init__(self):
        nn.Module.__init__(self)
        self.word, self.place = nn.Embedding(7, 4), nn.Embedding(5, 4)
        self.inner, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, ids, labels=None):
        h = self.inner(self.word(ids))
        h = (h + self.place(torch.arange(ids.shape[1]))).mean(1)
        out = self.head(h)
        return out if labels is None else CE(out, labels)


def token_batches():
    make = torch.Generator().manual_seed(0)
    return torch.randint(0, 7, (6, 5), generator=make), torch.arange(6) % 3


@pytest.mark.parametrize("through", ["pairs", "batch_loss"])
def test_token_ids_count_where_they_are_embedded(through):
    ids, labels = token_batches()
    net = Tokens().double()
    if through == "pairs":
        system = GradientSystem(net, CE, (ids, labels))
    else:
        system = GradientSystem(
            net,
            None,
            [{"ids": ids, "labels": labels}],
            batch_loss=lambda model, batch: model(**batch),
        )
    assert finding(random(system, density=0.5))["dependence"] == "kept"
    masks = {
        "inner.weight": torch.zeros(4, 4, dtype=torch.bool),
        "head.weight": torch.ones(3, 4, dtype=torch.bool),
    }
    # places still reach the output, the tokens do not
    with pytest.raises(InvalidInputError, match=LOST):
        by_masks(system, masks)


class Leaves(nn.Module):
    """Its input leaves torch on the way, which a tensor with a derivative cannot."""

    def __init__(self):
        nn.Module.__init__(self)
        self.head = nn.Linear(4, 3).double()

    def forward(self, x):
        return self.head(torch.from_numpy(np.tanh(x.numpy())))


def test_nothing_pruned_is_not_tested():
    ticket = random(system_of(small_net(widths=(4, 5, 3)), 4, 3), density=1.0)
    assert finding(ticket) == {"dependence": "not tested"}


def test_what_has_no_derivative_is_let_pass():
    class Frozen(nn.Module):
        def __init__(self):
            nn.Module.__init__(self)
            self.head = nn.Linear(4, 3).double()

        def forward(self, x):
            return self.head(x.detach())

    found = finding(random(system_of(Frozen(), 4, 3), density=0.5))
    assert found["dependence"] == "untestable"
    leaves = system_of(Leaves(), 4, 3)
    assert finding(random(leaves, density=0.5))["dependence"] == "untestable"

    class Hot(Tokens):
        def forward(self, ids):
            return self.head(nn.functional.one_hot(ids, 4).double())

    ids, labels = torch.arange(6) % 4, torch.arange(6) % 3
    system = GradientSystem(Hot().double(), CE, (ids, labels), parameters="head.*")
    assert finding(random(system, density=0.5))["dependence"] == "untestable"


def test_nothing_is_left_behind(untouched):
    net = conv_net().train()
    x, y = classes(9, 16, 3)
    loader = DataLoader(
        TensorDataset(x.view(9, 1, 4, 4), y), batch_size=4, shuffle=True
    )
    system = GradientSystem(net, CE, loader)
    state, before = copy.deepcopy(net.state_dict()), system.state
    with untouched(), torch.no_grad():
        ticket = random(system, density=0.5)
        with pytest.raises(InvalidInputError, match=LOST):
            random(system, density=1e-9)
    assert finding(ticket)["dependence"] == "kept"
    assert net.training
    assert all(torch.equal(net.state_dict()[n], part) for n, part in state.items())
    assert torch.equal(system.state, before)
    parts = itertools.chain(net.modules(), system.module.modules())
    assert all(
        not part._forward_pre_hooks and not part._forward_hooks for part in parts
    )
    assert all(part.grad is None for part in system.module.parameters())


def test_a_masked_system_is_tested_at_its_own_state():
    system = system_of(small_net(widths=(4, 5, 3)), 4, 3)
    first = magnitude(system, density=0.5)
    second = magnitude(system.with_ticket(first), density=0.3)
    assert finding(second)["dependence"] == "kept"


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_equal_scores_are_refused(scope):
    system = system_of(small_net(widths=(4, 5, 3)), 4, 3)
    scores = {"0.weight": torch.ones(5, 4), "2.weight": torch.ones(3, 5)}
    if scope == "layer":
        scores["2.weight"] = torch.arange(15.0).view(3, 5)
    where = "of all layers" if scope == "global" else "of '0.weight'"
    with pytest.raises(InvalidInputError, match=f"scores {where} are all 1, and"):
        from_scores(system, scores, density=0.5, scope=scope)
    # where nothing has to go nothing is chosen
    assert from_scores(system, scores, density=1.0, scope=scope).kept == 35


def test_equal_scores_among_survivors_are_refused():
    dense = system_of(small_net(widths=(4, 5, 3)), 4, 3)
    system = dense.with_ticket(random(dense, density=0.6))
    scores = {n: m.double() * 2 for n, m in system.masks.items()}
    with pytest.raises(
        InvalidInputError, match="The 21 scores of all layers are all 2"
    ):
        from_scores(system, scores, density=0.3)


def test_layers_that_cannot_reach_their_density_are_named():
    dense = system_of(small_net(widths=(4, 5, 3)), 4, 3)
    masks = {n: m for n, m in random(dense, density=1.0).masks.items()}
    masks["2.weight"][0] = False
    system = dense.with_mask(masks)
    with pytest.raises(
        InvalidInputError, match=r"12 of 15 weights of 2.weight, but only 10"
    ):
        random(system, density=0.8, scope="layer")
    with pytest.raises(InvalidInputError, match=r"of 2.weight, but only 10 survive"):
        random(system, layer_densities={"0.weight": 0.1, "2.weight": 0.9})
    with pytest.raises(InvalidInputError, match=r"density of '2.weight' is 1\.5"):
        random(dense, layer_densities={"0.weight": 0.1, "2.weight": 1.5})
    with pytest.raises(InvalidInputError, match=r"missing for \['2.weight'\]"):
        random(dense, layer_densities={"0.weight": 0.1})
    with pytest.raises(InvalidInputError, match="Pass one of the two"):
        random(dense)
    with pytest.raises(InvalidInputError, match="Pass one of the two"):
        random(dense, density=0.5, layer_densities={"0.weight": 0.1, "2.weight": 0.5})
