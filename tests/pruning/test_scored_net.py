"""The private copy that SNIP, FORCE and GraSP score: temperature, masks, sums."""

import pytest
import torch
from problems import small_net
from torch import Tensor, nn

from dynprune.core import InvalidInputError, NumericalWarning
from dynprune.pruning import (
    force,
    force_scores,
    grasp,
    grasp_scores,
    iterative_snip,
    snip,
    snip_scores,
    synflow_scores,
)
from dynprune.system import GradientSystem

CE = nn.functional.cross_entropy


def data(count: int = 24) -> tuple[Tensor, Tensor]:
    make = torch.Generator().manual_seed(1)
    x = torch.randn(count, 4, generator=make, dtype=torch.float64)
    return x, torch.arange(count) % 3


def net(*, dropout: float = 0.0) -> nn.Sequential:
    first, act, last = small_net(widths=(4, 6, 3))
    return nn.Sequential(first, act, nn.Dropout(dropout), last)


def by_parts(model: nn.Module, batch) -> Tensor:
    """Evaluate the network without calling its root."""
    x, y = batch
    for part in model.children():
        x = part(x)
    return CE(x, y)


class ReturnsItsLoss(nn.Module):
    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.net = net()

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return CE(self.net(x), y)


def with_norm() -> nn.Sequential:
    first, act, last = small_net(widths=(4, 6, 3))
    return nn.Sequential(first, nn.BatchNorm1d(6), act, last).double()


SCORERS = {
    "snip": snip,
    "iterative_snip": lambda s, **k: iterative_snip(s, rounds=2, **k),
    "force": lambda s, **k: force(s, rounds=2, **k),
    "grasp": grasp,
    "snip_scores": lambda s, density, **k: snip_scores(s, **k),
    "force_scores": lambda s, density, **k: force_scores(s, **k),
    "grasp_scores": lambda s, density, **k: grasp_scores(s, **k),
}


@pytest.mark.parametrize("prune", SCORERS.values(), ids=SCORERS.keys())
def test_batch_norm_that_has_seen_no_batch_is_warned_of_in_eval_mode(prune, untouched):
    model = with_norm()
    system = GradientSystem(model, CE, data())
    say = r"batch norm of '1' has seen no batch: .* Pass mode='train', or train a step"
    with untouched(), pytest.warns(NumericalWarning, match=say) as said:
        prune(system, density=0.5)
    assert len(said) == 1
    assert said[0].filename == __file__
    prune(system, density=0.5, mode="train")
    # the system's statistics count, the model's may be others
    model.train()(data()[0])
    prune(GradientSystem(model, CE, data()), density=0.5)
    own = dict(model.named_buffers())
    own["1.num_batches_tracked"] = torch.tensor(0)
    prune(system.with_state(system.state, buffers=own), density=0.5)


def test_statistics_of_each_batch_are_none_to_be_seen():
    model = with_norm()
    model[1] = nn.BatchNorm1d(6, track_running_stats=False).double()
    whole = GradientSystem(
        model,
        None,
        [data()],
        batch_loss=lambda f, b: CE(f(b[0]), b[1]),
        batch_weight=lambda b: 1.0,
    )
    assert snip(whole, density=0.5).kept == 21


@pytest.mark.parametrize("score", [grasp_scores, lambda s: grasp(s, density=0.5)])
def test_a_temperature_that_nothing_would_feel_is_refused(score, untouched):
    whole = net()
    system = GradientSystem(whole, None, data(), batch_loss=by_parts)
    with untouched(), pytest.raises(InvalidInputError, match="temperature=1"):
        score(system)
    # the loss itself has the same scores as the network that is called
    called = GradientSystem(net(), CE, data())
    expected = grasp_scores(called, temperature=1.0)
    for name, part in grasp_scores(system, temperature=1.0).items():
        torch.testing.assert_close(part, expected[name])


def test_a_temperature_does_not_divide_the_loss_of_a_network(untouched):
    whole = ReturnsItsLoss()
    system = GradientSystem(
        whole, None, data(), batch_loss=lambda model, batch: model(*batch)
    )
    with untouched(), pytest.raises(InvalidInputError, match="temperature=1"):
        grasp_scores(system)
    expected = grasp_scores(GradientSystem(net(), CE, data()), temperature=1.0)
    for name, part in grasp_scores(system, temperature=1.0).items():
        torch.testing.assert_close(part, expected[name.removeprefix("net.")])


@pytest.mark.parametrize("score", [snip_scores, force_scores, synflow_scores])
@pytest.mark.parametrize(
    ("masks", "says"),
    [
        ({}, "0.weight"),
        ({"0.weight": torch.ones(6, 4, dtype=torch.bool)}, "3.weight"),
        (
            {
                "0.weight": torch.tensor(True),
                "3.weight": torch.ones(3, 6, dtype=torch.bool),
            },
            r"'0.weight' has shape \(\)",
        ),
        (
            {
                "0.weight": torch.ones(6, 4, dtype=torch.bool),
                "3.weight": torch.ones(1, 1, dtype=torch.bool),
            },
            r"'3.weight' has shape \(1, 1\)",
        ),
        ({"0.weight": torch.ones(6, 4), "3.weight": torch.ones(3, 6)}, "boolean"),
    ],
)
def test_masks_that_do_not_fit_are_refused(score, masks, says, untouched):
    whole = net()
    system = GradientSystem(whole, CE, data())
    with untouched(), pytest.raises(InvalidInputError, match=says):
        score(system, masks=masks)


@pytest.mark.parametrize(
    "score", [snip_scores, force_scores, lambda s: grasp_scores(s, absolute=True)]
)
def test_sums_over_many_batches_are_not_of_half_precision(score):
    x, y = data(2048)
    x, whole = x.bfloat16(), net().bfloat16()
    one = score(GradientSystem(whole, CE, (x, y)))
    many = score(GradientSystem(whole, CE, (x, y), microbatch=2))
    for name, part in one.items():
        # rounding of each batch averages out, that of a sum in bfloat16 does not
        share = float(many[name].double().sum() / part.double().sum())
        assert abs(share - 1.0) < 0.02, (name, share)


@pytest.mark.parametrize("rounds_of", [iterative_snip, force])
def test_one_round_is_snip_with_dropout_too(rounds_of):
    system = GradientSystem(net(dropout=0.5), CE, data())
    for seed in range(4):
        whole = snip(system, density=0.4, mode="train", seed=seed).masks
        round_ = rounds_of(system, density=0.4, rounds=1, mode="train", seed=seed)
        for name, mask in round_.masks.items():
            assert torch.equal(mask, whole[name])
