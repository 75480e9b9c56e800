"""Weights of grouped, transposed and Hugging Face layers as (out, in, …)."""

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from dynprune.system import GradientSystem
from dynprune.tickets import Ticket, compare, graph_measures
from dynprune.tickets._layer_forms import LayerForms


def conv1d(out, into):
    utils = pytest.importorskip("transformers.pytorch_utils")
    with torch.random.fork_rng():
        return utils.Conv1D(out, into)


def layer(kind, *args, **knobs):
    with torch.random.fork_rng():
        return kind(*args, **knobs)


LAYERS = {
    "Linear": (lambda: layer(nn.Linear, 6, 4), (6,)),
    "Conv1D": (lambda: conv1d(4, 6), (6,)),
    "Conv2d": (lambda: layer(nn.Conv2d, 6, 4, 1), (6, 1, 1)),
    "grouped": (lambda: layer(nn.Conv2d, 6, 4, 1, groups=2), (6, 1, 1)),
    "depthwise": (lambda: layer(nn.Conv1d, 6, 12, 1, groups=6), (6, 1)),
    "transposed": (lambda: layer(nn.ConvTranspose2d, 6, 4, 1), (6, 1, 1)),
    "grouped transposed": (
        lambda: layer(nn.ConvTranspose1d, 6, 4, 1, groups=2),
        (6, 1),
    ),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_form_is_the_derivative_of_outputs_by_inputs(name):
    make, shape = LAYERS[name]
    module = make()
    forms = LayerForms(module)
    slopes = torch.autograd.functional.jacobian(module, torch.ones(1, *shape))
    wanted = slopes.reshape(-1, 6)
    found = forms.straight("weight", module.weight.detach())
    assert torch.allclose(found.flatten(1), wanted)
    back = forms.own("weight", found)
    assert torch.equal(back, module.weight)
    mask = module.weight > 0
    assert torch.equal(forms.straight("weight", mask).flatten(1), wanted > 0)


def test_without_a_model_and_for_other_weights_nothing_changes():
    value = torch.randn(3, 4)
    assert LayerForms(None).straight("weight", value) is value
    assert LayerForms(nn.LayerNorm((3, 4))).straight("weight", value) is value


def test_reading_the_layers_runs_no_parametrisation():
    model = nn.Sequential(spectral_norm(nn.Embedding(9, 5)), nn.Linear(5, 3)).train()
    before = {name: part.clone() for name, part in model.named_buffers()}
    mask = torch.ones(3, 5, dtype=torch.bool)
    graph_measures(ticket_of(model, {"1.weight": mask}), model=model)
    assert before
    for name, part in model.named_buffers():
        assert torch.equal(part, before[name])


def test_the_first_layer_is_the_first_that_reads():
    class Net(nn.Module):
        def __init__(self):
            nn.Module.__init__(self)
            self.own, self.scale = (
                nn.Parameter(torch.ones(3, 3)),
                nn.Parameter(torch.tensor(2.0)),
            )
            self.table, self.out = nn.Embedding(9, 3), nn.Linear(3, 2)

    names = ["scale", "own", "table.weight", "out.weight"]
    own = dict(Net().named_parameters())
    masks = {name: torch.ones_like(own[name]).bool() for name in names}
    assert LayerForms(Net()).first(masks) == "table.weight"
    del masks["table.weight"]
    assert LayerForms(Net()).first(masks) == "out.weight"
    assert LayerForms(None).first(masks) == "own"
    assert LayerForms(None).first({"scale": masks["scale"]}) == "scale"


def ticket_of(model, masks):
    return Ticket.make(masks, dict(model.named_parameters()))


def random_mask(shape, density=0.7, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return torch.rand(shape, generator=draw) < density


def values(found, *, only):
    return {
        (one.measure, one.layer, one.tickets): one.value
        for one in found.readings
        if one.measure in only
    }


GRAPHS = (
    "ramanujan_s",
    "ramanujan_r",
    "clustering",
    "average_path_length",
    "input_correlation",
    "output_correlation",
    "locality",
)


def test_grouped_convolutions_have_the_graph_of_their_dense_form():
    model = layer(nn.Conv2d, 12, 16, 3, groups=2, bias=False)
    dense = layer(nn.Conv2d, 12, 16, 3, bias=False)
    masks = [random_mask((16, 6, 3, 3), seed=seed) for seed in (0, 1)]
    wide = []
    for mask in masks:
        whole = torch.zeros(16, 12, 3, 3).bool()
        whole[:8, :6], whole[8:, 6:] = mask[:8], mask[8:]
        wide.append(whole)
    with torch.no_grad():
        dense.weight.zero_()
        dense.weight[:8, :6], dense.weight[8:, 6:] = model.weight[:8], model.weight[8:]
    found, wanted = (
        compare(
            [ticket_of(net, {"weight": mask}) for mask in parts],
            labels="ab",
            model=net,
            example=torch.ones(1, 12, 5, 5),
            shuffles=0,
            groups=6,
        )
        for net, parts in ((model, masks), (dense, wide))
    )
    a, b = values(found, only=GRAPHS), values(wanted, only=GRAPHS)
    assert len(a) == 12
    assert a == pytest.approx(b, nan_ok=True)
    own = graph_measures(ticket_of(model, {"weight": masks[0]}), model=model, groups=6)
    whole = graph_measures(ticket_of(dense, {"weight": wide[0]}), groups=6)
    assert own.ramanujan_s == pytest.approx(whole.ramanujan_s)
    assert own.clustering == pytest.approx(whole.clustering)
    bare = graph_measures(ticket_of(model, {"weight": masks[0]}), groups=6)
    assert bare.ramanujan_s != pytest.approx(whole.ramanujan_s)


def square(outputs, targets):
    return (outputs - targets).square().mean()


def test_hugging_face_layers_are_read_from_input_to_output():
    model = nn.Sequential(*(conv1d(4, 4) for _ in range(3)))
    twin = nn.Sequential(*(layer(nn.Linear, 4, 4) for _ in range(3)))
    with torch.no_grad():
        for own, other in zip(model, twin, strict=True):
            other.weight.copy_(own.weight.T)
            other.bias.copy_(own.bias)
    tables = []
    for net in (model, twin):
        tickets = []
        for seed in (0, 1):
            draw = torch.Generator().manual_seed(seed)
            masks = {
                f"{i}.weight": torch.rand(4, 4, generator=draw) < 0.4 for i in range(3)
            }
            if net is twin:
                masks = {name: mask.T.contiguous() for name, mask in masks.items()}
            tickets.append(ticket_of(net, masks))
        data = torch.ones(3, 4), torch.ones(3, 4)
        knobs = {"labels": "ab", "shuffles": 0, "groups": 4}
        system = GradientSystem(net, square, data)
        tables += [
            values(
                compare(tickets, system=system, **knobs, **more),
                only=(*GRAPHS, "effective_density"),
            )
            for more in ({}, {"model": "chain"})
        ]
    own, chain, wanted, wanted_chain = tables
    assert own == pytest.approx(wanted, nan_ok=True)
    assert chain == pytest.approx(wanted_chain, nan_ok=True)
    # bias-free paths of a chain: the same as those of the forward pass
    densities = [k for k in own if k[0] == "effective_density"]
    assert [own[k] for k in densities] == [chain[k] for k in densities]


def test_locality_of_trained_hugging_face_layers():
    # every unit reads one input
    model = nn.Sequential(conv1d(6, 3))
    mask = torch.zeros(3, 6).bool()
    mask[0] = True
    ticket = ticket_of(model, {"0.weight": mask})
    data = torch.ones(3, 3), torch.ones(3, 6)
    found = compare(
        ticket,
        ticket,
        labels="ab",
        system=GradientSystem(model, square, data),
        runs=(ticket, ticket),
        problem=problem(model, data),
        shuffles=0,
    )
    rows = [r.value for r in found.readings if r.measure.startswith("locality")]
    assert rows == [1.0] * 4


def problem(model, data):
    from dynprune.tasks import Problem

    return Problem(
        make_model=lambda seed: model,
        loss_fn=square,
        train=data,
        validation=data,
        test=data,
        metric=lambda outputs, targets: outputs.abs().mean(1),
    )


def test_a_comparison_without_a_model_says_how_layers_are_read():
    state = {"w": torch.ones(3, 4)}
    pair = [Ticket.make({"w": random_mask((3, 4), seed=s)}, state) for s in (0, 1)]
    found = compare(pair, labels="ab", shuffles=0)
    (note,) = [note for note in found.notes if "(out, in" in note]
    assert "Conv1D" in note
    assert "groups" in note
