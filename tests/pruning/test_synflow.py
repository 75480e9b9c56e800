import copy
import warnings

import pytest
import torch
from problems import classes, small_net
from torch import nn

from dynprune.core import InvalidInputError, NumericalWarning
from dynprune.pruning import kept_count, random, synflow, synflow_scores
from dynprune.system import GradientSystem

CE = nn.functional.cross_entropy


def chain(*widths: int, activation=nn.ReLU, bias: bool = False) -> nn.Sequential:
    net = small_net(widths=widths, activation=activation)
    if not bias:
        for part in net:
            if isinstance(part, nn.Linear):
                part.bias = None
    return net


def system_of(net: nn.Module, width: int, classes_: int) -> GradientSystem:
    return GradientSystem(net, CE, classes(6, width, classes_))


def transcription(net, width, density, rounds):
    """The definition, written once more: lists, sorting, no dynprune."""
    weights = [p.detach().abs() for n, p in net.named_parameters() if p.ndim > 1]
    biases = [
        part.bias.detach().abs() if part.bias is not None else None
        for part in net
        if isinstance(part, nn.Linear)
    ]
    masks = [torch.ones_like(w) for w in weights]
    sizes = [w.numel() for w in weights]
    total = sum(sizes)
    for r in range(1, rounds + 1):
        own = [(w * m).requires_grad_() for w, m in zip(weights, masks, strict=True)]
        h = torch.ones(1, width, dtype=torch.float64)
        for place, (w, b) in enumerate(zip(own, biases, strict=True)):
            h = nn.functional.linear(h, w, b)
            if place < len(own) - 1:
                h = h.relu()
        slopes = torch.autograd.grad(h.sum(), own)
        scores = torch.cat([
            (w * s).abs().detach().reshape(-1) for w, s in zip(own, slopes, strict=True)
        ])
        alive = torch.cat([m.reshape(-1) for m in masks]).tolist()
        d = density if r == rounds else density ** (r / rounds)
        count = max(1, int(d * total + 0.5))
        order = sorted(
            (i for i in range(total) if alive[i]), key=lambda i: (-float(scores[i]), i)
        )
        flat = torch.zeros(total, dtype=torch.float64)
        flat[order[:count]] = 1
        masks = [
            part.view(w.shape)
            for part, w in zip(flat.split(sizes), weights, strict=True)
        ]
    return [m.bool() for m in masks]


def authors(net, width, density, rounds):
    """The authors' loop: a threshold in each round, and all that ties with it goes."""
    weights = [part.detach().abs() for part in net.parameters()]
    masks = [torch.ones_like(w) for w in weights]
    for r in range(rounds):
        own = [(w * m).requires_grad_() for w, m in zip(weights, masks, strict=True)]
        h = torch.ones(1, width, dtype=torch.float64)
        for w in own:
            h = h @ w.T
        slopes = torch.autograd.grad(h.sum(), own)
        scores = [(w * s).abs().detach() for w, s in zip(own, slopes, strict=True)]
        flat = torch.cat([s.reshape(-1) for s in scores])
        k = int((1.0 - density ** ((r + 1) / rounds)) * flat.numel())
        if k >= 1:
            threshold = flat.sort().values[k - 1]
            masks = [
                torch.where(s <= threshold, torch.zeros_like(m), m)
                for s, m in zip(scores, masks, strict=True)
            ]
    return [m.bool() for m in masks]


@pytest.mark.parametrize("idle", [False, True], ids=["distinct", "ties"])
@pytest.mark.parametrize("density", [0.999, 0.5, 0.1, 0.07], ids=str)
def test_the_authors_rule_bit_for_bit(density, idle):
    net = chain(6, 9, 7, 4)
    if idle:  # more zeros than the first rounds prune, and weights behind them
        with torch.no_grad():
            net[0].weight[:3] = 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore" if idle else "error", NumericalWarning)
        ticket = synflow(system_of(net, 6, 4), density=density, rule="synflow")
    expected = authors(net, 6, density, 100)
    for mask, other in zip(ticket.masks.values(), expected, strict=True):
        assert torch.equal(mask, other)
    assert dict(ticket.provenance.settings)["rule"] == "synflow"
    # all ties go: the zeros at once, and both weights of a unit that has no others
    assert ticket.kept <= 145 - int((1 - density) * 145)
    if idle and density < 0.9:  # so that fewer may be alive than a round keeps
        assert ticket.kept <= 145 - 3 * 6 - 3 * 7
    if density == 0.5 and not idle:
        assert ticket.kept == synflow(system_of(net, 6, 4), density=density).kept - 1


def test_sums_of_scores_are_the_same_in_every_layer():
    net = chain(6, 9, 7, 4)
    scores = synflow_scores(system_of(net, 6, 4))
    sums = torch.stack([part.sum() for part in scores.values()])
    # a sum of n positive terms of depth 3 is good to n·eps
    assert float((sums - sums[0]).abs().max()) <= 1e-13 * float(sums[0])
    ones = torch.ones(6, dtype=torch.float64)
    for part in net.parameters():
        ones = part.detach().abs() @ ones
    assert float((sums[0] - ones.sum()).abs()) <= 1e-13 * float(sums[0])


def test_the_law_fails_with_biases():
    scores = synflow_scores(system_of(chain(6, 9, 7, 4, bias=True), 6, 4))
    sums = [float(part.sum()) for part in scores.values()]
    assert sums[0] < 0.99 * sums[-1]


@pytest.mark.parametrize("density", [0.5, 0.1, 0.03], ids=str)
@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
def test_hundred_rounds_agree_with_the_transcription(density, bias):
    net = chain(6, 9, 7, 4, bias=bias)
    ticket = synflow(system_of(net, 6, 4), density=density)
    expected = transcription(net, 6, density, 100)
    for mask, other in zip(ticket.masks.values(), expected, strict=True):
        assert torch.equal(mask, other)
    assert ticket.kept == kept_count(density, 54 + 63 + 28)


@pytest.mark.parametrize("rounds", [1, 2, 3, 10])
def test_few_rounds_agree_with_the_transcription(rounds):
    found = []
    for r in (rounds, rounds + 1):
        net = chain(6, 9, 7, 4)
        ticket = synflow(system_of(net, 6, 4), density=0.15, rounds=r)
        expected = transcription(net, 6, 0.15, r)
        found.append(list(ticket.masks.values()))
        assert all(torch.equal(a, b) for a, b in zip(found[-1], expected, strict=True))
    # the number of rounds matters here, so that the comparison can fail
    assert rounds > 3 or any(not torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_no_layer_collapses_before_it_must():
    # 3 layers and at least one path: SynFlow keeps a path at 10 of 145 weights
    net = chain(6, 9, 7, 4)
    ticket = synflow(system_of(net, 6, 4), density=10 / 145)
    assert all(mask.any() for mask in ticket.masks.values())


def test_convolutions_norms_and_single_precision():
    make = torch.Generator().manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 2, 3, bias=False),
        nn.BatchNorm2d(2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8, 3),
    )
    with torch.no_grad():
        for part in net.parameters():
            part.copy_(torch.randn(part.shape, generator=make))
        net[1].running_mean.copy_(torch.tensor([-1.0, 2.0]))
        net[1].running_var.copy_(torch.tensor([0.5, 4.0]))
    x, y = classes(6, 16, 3)
    system = GradientSystem(net, CE, (x.view(6, 1, 4, 4).float(), y))
    twin = copy.deepcopy(net).double().eval()
    with torch.no_grad():
        for part in twin.state_dict().values():
            part.copy_(part.abs())
    twin(torch.ones(1, 1, 4, 4, dtype=torch.float64)).sum().backward()
    scores = synflow_scores(system)
    for name in ("0.weight", "4.weight"):
        part = dict(twin.named_parameters())[name]
        assert scores[name].dtype == torch.float64
        assert torch.equal(scores[name], (part * part.grad).abs().detach())


def test_pruned_stays_pruned():
    net = chain(6, 9, 7, 4)
    system = system_of(net, 6, 4)
    first = random(system, density=0.5, seed=1)
    ticket = synflow(system.with_mask(first.masks), density=0.2, rounds=10)
    assert ticket.kept == kept_count(0.2, 145)
    assert all(not (m & ~first.masks[n]).any() for n, m in ticket.masks.items())
    with pytest.raises(InvalidInputError, match="survive the system's mask"):
        synflow(system.with_mask(first.masks), density=0.9)


def test_linear_activations_are_those_of_relu():
    shared = nn.Tanh()
    tanh = chain(6, 9, 7, 4, activation=lambda: shared)
    relu = chain(6, 9, 7, 4)
    a = synflow_scores(system_of(tanh, 6, 4), activations="linear")
    b = synflow_scores(system_of(relu, 6, 4))
    c = synflow_scores(system_of(tanh, 6, 4))
    for name in a:
        assert torch.equal(a[name], b[name])
    assert not torch.allclose(a["0.weight"], c["0.weight"])
    assert isinstance(tanh[1], nn.Tanh)


def test_underflow_is_said():
    # tanh' at 20 000 is exactly 0: no flow reaches the first layer
    net = chain(4, 4, 4, activation=nn.Tanh)
    with torch.no_grad():
        net[0].weight.fill_(5000.0)
    with pytest.warns(NumericalWarning, match="flow passed 16 non-zero weights"):
        ticket = synflow(system_of(net, 4, 4), density=0.75)
    assert ticket.kept == 24
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        synflow(system_of(net, 4, 4), density=0.75, activations="linear")


def test_overflow_is_refused():
    system = system_of(chain(4, 4, 4), 4, 4)
    huge = system.with_state(torch.full((32,), 1e200, dtype=torch.float64))
    with pytest.raises(InvalidInputError, match="are NaN or infinite"):
        synflow(huge, density=0.5)


def test_coming_apart_is_said():
    # one weight of two layers lets nothing through
    knobs = {"density": 1e-9, "rounds": 1, "collapse": "ignore"}
    with pytest.warns(NumericalWarning, match="at the end the scores sum to 0"):
        synflow(system_of(chain(4, 4, 4), 4, 4), **knobs)


def test_inputs_that_are_no_floats_are_refused():
    net = nn.Sequential(nn.Embedding(5, 3), nn.Flatten(), nn.Linear(6, 2)).double()
    ids = torch.tensor([[0, 1], [2, 3]])
    system = GradientSystem(net, CE, (ids, torch.tensor([0, 1])))
    with pytest.raises(InvalidInputError, match=r"int64: it is not defined .* tokens"):
        synflow(system, density=0.5)
    with pytest.raises(InvalidInputError, match=r"take an example .* takes indices"):
        synflow(system, density=0.5, example=ids[:1])


def test_custom_batches_take_an_example():
    net = chain(6, 9, 7, 4)
    x, y = classes(6, 6, 4)
    system = GradientSystem(
        net, None, [{"x": x, "y": y}], batch_loss=lambda n, b: CE(n(b["x"]), b["y"])
    )
    with pytest.raises(InvalidInputError, match=r"which entry of .*\(dict\) the"):
        synflow(system, density=0.5)
    found = synflow(system, density=0.5, example=torch.zeros(1, 6))
    same = synflow(system_of(net, 6, 4), density=0.5)
    assert all(torch.equal(found.masks[n], m) for n, m in same.masks.items())


def test_bad_knobs_are_refused():
    system = system_of(chain(6, 9, 4), 6, 4)
    with pytest.raises(InvalidInputError, match="rounds is 0"):
        synflow(system, density=0.5, rounds=0)
    with pytest.raises(InvalidInputError, match="Unknown rule 'authors'"):
        synflow(system, density=0.5, rule="authors")
    with pytest.raises(InvalidInputError, match="activations is 'none'"):
        synflow(system, density=0.5, activations="none")
    with pytest.raises(InvalidInputError, match=r"density of 2\.0"):
        synflow(system, density=2.0)


def test_networks_without_a_tensor_output_are_refused():
    class Pair(nn.Module):
        def __init__(self):
            nn.Module.__init__(self)
            self.inner = chain(6, 9, 4)

        def forward(self, x):
            return self.inner(x), x

    system = GradientSystem(Pair(), lambda out, y: CE(out[0], y), classes(6, 6, 4))
    with pytest.raises(InvalidInputError, match="returns a tuple"):
        synflow(system, density=0.5)


# -- what leaves no choice, and what the network cannot take --------------------------


@pytest.mark.parametrize("rounds", [1, 2, 100])
def test_a_last_layer_of_zeros_leaves_no_choice_in_any_round(rounds):
    net = chain(6, 9, 4)
    nn.init.zeros_(net[2].weight)
    with pytest.raises(InvalidInputError, match=r"The 90 scores .* are all 0, and"):
        synflow(system_of(net, 6, 4), density=0.5, rounds=rounds)


def test_equal_scores_of_a_later_round_are_refused():
    # by the law of conservation the last two weights of a path score the same
    with pytest.raises(InvalidInputError, match=r"The 2 scores .* are all .*and 1 are"):
        synflow(system_of(chain(4, 4, 4), 4, 4), density=1e-9, collapse="ignore")


LINEAR = ("first.*", "last.*")


class Own(nn.Module):
    """Linear layers in single precision, whose forward has a dtype of its own."""

    def __init__(self, forward):
        nn.Module.__init__(self)
        self.first, self.last = nn.Linear(6, 5), nn.Linear(5, 4)
        self.unit = nn.GRU(5, 5, batch_first=True)
        self.own = forward

    def forward(self, x):
        return self.own(self, x)


def casting(net, x):
    return net.last(net.first(x.float()).relu())


def creating(net, x):
    start = torch.zeros(1, len(x), 5)
    return net.last(net.unit(net.first(x)[:, None], start)[0][:, 0])


@pytest.mark.parametrize("example", [None, torch.ones(1, 6)], ids=["data", "example"])
@pytest.mark.parametrize("forward", [casting, creating], ids=lambda f: f.__name__)
def test_a_forward_with_a_dtype_of_its_own_is_named(forward, example, untouched):
    x, y = classes(6, 6, 4)
    with torch.random.fork_rng():
        system = GradientSystem(Own(forward), CE, (x.float(), y), parameters=LINEAR)
    with untouched(), pytest.raises(InvalidInputError) as refusal:
        synflow(system, density=0.5, example=example)
    text = str(refusal.value)
    assert "in float64, and its forward does so in torch.float32 only" in text
    assert "dtype=x.dtype" in text
    assert "example=" not in text


def test_what_fails_with_absolute_weights_is_no_matter_of_dtype():
    def shy(net, x):
        if bool((net.first.weight >= 0).all()):
            raise ValueError("no sign")
        return net.last(net.first(x))

    x, y = classes(6, 6, 4)
    with torch.random.fork_rng():
        system = GradientSystem(Own(shy), CE, (x.float(), y), parameters=LINEAR)
    with pytest.raises(InvalidInputError, match=r"does not take .*: no sign\."):
        synflow(system, density=0.5)


def test_a_network_that_takes_no_ones_says_so():
    def refusing(net, x):
        if bool((x == 1).all()):
            raise ValueError("ones will not do")
        return net.last(net.first(x))

    x, y = classes(6, 6, 4)
    with torch.random.fork_rng():
        system = GradientSystem(Own(refusing), CE, (x.float(), y), parameters=LINEAR)
    with pytest.raises(
        InvalidInputError, match=r"\(1, 6\): ones will not do.*example="
    ):
        synflow(system, density=0.5)
