"""Every score-based pruner on models that are no plain chain: tied, shared, others'."""

import copy

import pytest
import torch
from other_models import CE, SYSTEMS, hugging_face, shared, tied, transposed
from torch import nn

from dynprune.pruning import (
    erk,
    force,
    from_scores,
    grasp,
    iterative_snip,
    kept_count,
    lamp,
    magnitude,
    random,
    snip,
    snip_scores,
    synflow,
    synflow_scores,
)
from dynprune.system import GradientSystem

# what asks for more than a system and a density is named with it
PRUNERS = {
    "random": random,
    "random by layer": lambda s, **k: random(s, scope="layer", **k),
    "erk": erk,
    "magnitude": magnitude,
    "magnitude by layer": lambda s, **k: magnitude(s, scope="layer", **k),
    "lamp": lamp,
    "snip": snip,
    "iterative_snip": lambda s, **k: iterative_snip(s, rounds=3, **k),
    "force": lambda s, **k: force(s, rounds=3, **k),
    "grasp": lambda s, **k: grasp(s, temperature=1.0, **k),
    "grasp, absolute": lambda s, **k: grasp(s, temperature=1.0, absolute=True, **k),
}
EACH = pytest.mark.parametrize("prune", PRUNERS.values(), ids=PRUNERS.keys())


@pytest.fixture(scope="module", params=SYSTEMS.values(), ids=SYSTEMS.keys())
def system(request):
    return request.param()


@EACH
def test_the_count_is_exact_and_nothing_else_changes(system, prune, untouched):
    before = copy.deepcopy(system.model.state_dict())
    size = sum(m.numel() for m in random(system, density=1.0).masks.values())
    with untouched():
        ticket = prune(system, density=0.5)
    if "layer" not in dict(ticket.provenance.settings)["scope"]:
        assert ticket.kept == kept_count(0.5, size)
    assert tuple(ticket.masks) == system.prunable
    found = dict(ticket.provenance.settings)["collapse"]
    assert found["dependence"] == "kept"
    for name, part in system.model.state_dict().items():
        assert torch.equal(part, before[name]), name
    other = copy.deepcopy(system.model)
    ticket.apply_(other)
    own = dict(other.named_parameters())
    for name, mask in ticket.masks.items():
        assert not own[name][~mask].any()


def test_an_emptied_body_is_seen_in_each_model(system):
    # all but the layers that see the tokens' embeddings or the input first
    first = system.prunable[0]
    scores = {
        name: torch.ones(mask.shape) if name == first else torch.zeros(mask.shape)
        for name, mask in random(system, density=1.0).masks.items()
    }
    size = sum(part.numel() for part in scores.values())
    density = scores[first].numel() / size
    named = dict(system.module.named_parameters())
    tied_head = "wte" in first  # GPT-2's head is its embedding: always a path
    if tied_head:
        with pytest.warns(UserWarning, match="keeps no weight of"):
            ticket = from_scores(system, scores, density=density)
        assert dict(ticket.provenance.settings)["collapse"]["dependence"] == "kept"
        return
    assert named[first].shape == scores[first].shape
    with pytest.raises(ValueError, match="no path of kept weights"):
        from_scores(system, scores, density=density)


@pytest.mark.parametrize("make", [tied, shared], ids=["tied", "shared"])
def test_scores_of_a_weight_used_twice_sum_its_uses(make):
    system = make()
    x, y = system.data
    net = system.model
    first, second, head = (net[place] for place in (0, 2, 4))
    w = first.weight.detach()
    one, two = w.clone().requires_grad_(), w.clone().requires_grad_()
    h = net[1](nn.functional.linear(x, one, first.bias))
    h = net[3](nn.functional.linear(h, two, second.bias))
    slopes = torch.autograd.grad(CE(head(h), y), (one, two))
    expected = (w * (slopes[0] + slopes[1])).abs()
    found = snip_scores(system)["0.weight"]
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    "make", [tied, shared, transposed], ids=["tied", "shared", "transposed"]
)
def test_synflow_where_inputs_are_floats(make):
    system = make()
    ticket = synflow(system, density=0.5, activations="linear")
    assert ticket.kept == kept_count(0.5, ticket.prunable_size)
    assert all(part.isfinite().all() for part in synflow_scores(system).values())


def test_conv1d_of_gpt2_is_pruned_like_the_linear_layer_it_is():
    # the same network with Linear layers: scores are the transposed ones
    library = pytest.importorskip("transformers.pytorch_utils")
    system = hugging_face("gpt2", layers=2)
    twin = copy.deepcopy(system.model)
    for module in list(twin.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, library.Conv1D):
                layer = nn.Linear(*child.weight.shape)
                with torch.no_grad():
                    layer.weight.copy_(child.weight.T)
                    layer.bias.copy_(child.bias)
                setattr(module, name, layer)
    other = GradientSystem(
        twin,
        None,
        system.data,
        batch_loss=system.batch_loss,
        batch_weight=system.batch_weight,
    )
    assert other.prunable == system.prunable
    flipped = sum("wte" not in name for name in system.prunable)
    assert flipped == 2 * 4
    theirs = snip_scores(other)
    for name, found in snip_scores(system).items():
        wanted = theirs[name] if "wte" in name else theirs[name].T
        # single precision, sums in another order
        atol = 1e-5 * float(wanted.max())
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=atol)
