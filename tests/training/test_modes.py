"""Train mode leaves in eval mode what the user keeps there."""

import copy

import pytest
import torch
from torch import nn

import dynprune as dp
from dynprune.core import InvalidInputError, NumericalWarning, isolated
from dynprune.system import GradientSystem
from dynprune.training import Recipe, evaluate, train, train_many

MSE = nn.functional.mse_loss


def sgd(params):
    return torch.optim.SGD(params, lr=0.1)


RECIPE = Recipe(sgd, steps=4, batch_size=8)


def net(*, frozen=(), root=True):
    """Two batch norms and a dropout; ``frozen`` are in eval mode."""
    with isolated(0):
        made = nn.Sequential(
            nn.Linear(3, 8),
            nn.BatchNorm1d(8),
            nn.Tanh(),
            nn.Dropout(0.3),
            nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4), nn.Tanh()),
            nn.Linear(4, 1),
        ).double()
    made.train(root)
    for name in frozen:
        made.get_submodule(name).eval()
    return made


def system(data, **modes):
    return GradientSystem(net(**modes), MSE, data)


def by_hand(data, made, steps=4):
    """Train the user's own model, in the modes that it is in."""
    optimizer = sgd(made.parameters())
    for _ in range(steps):
        optimizer.zero_grad()
        MSE(made(data[0]), data[1]).backward()
        optimizer.step()
    return made


WHOLE = Recipe(sgd, steps=4, batch_size=22)
FROZEN = ["1", "3", "4"]


def test_a_frozen_batch_norm_stays_frozen(data):
    run = RECIPE(system(data, frozen=["1", "3"]))
    assert torch.equal(run.buffers["1.running_mean"], torch.zeros(8).double())
    assert int(run.buffers["1.num_batches_tracked"]) == 0
    assert int(run.buffers["4.1.num_batches_tracked"]) == 4


def test_training_is_that_of_the_users_model_in_its_modes(data):
    made = net(frozen=FROZEN)
    run = WHOLE(GradientSystem(made, MSE, data))
    wanted = by_hand(data, copy.deepcopy(made))
    for name, part in wanted.named_parameters():
        torch.testing.assert_close(run.parameters[name], part.detach())
    for name, part in wanted.named_buffers():
        torch.testing.assert_close(run.buffers[name], part)
    assert [part.training for part in made.modules()] == [
        part.training for part in wanted.modules()
    ]


@pytest.mark.parametrize("how", ["stacked", "serial"])
def test_many_are_trained_in_the_users_modes(data, how):
    made = system(data, frozen=FROZEN)
    wanted = RECIPE(made)
    for run in train_many([made, made], RECIPE, how=how):
        torch.testing.assert_close(run.state, wanted.state)
        assert int(run.buffers["1.num_batches_tracked"]) == 0


def test_systems_of_other_modes_are_no_stack(data):
    with pytest.raises(InvalidInputError, match="modules kept in eval mode"):
        train_many(
            [system(data, frozen=["1", "3"]), system(data, frozen=["3"])],
            RECIPE,
            how="stacked",
        )


def test_a_root_in_eval_mode_says_nothing(data):
    run = RECIPE(system(data, root=False))
    wanted = RECIPE(system(data))
    assert torch.equal(run.state, wanted.state)
    assert int(run.buffers["1.num_batches_tracked"]) == 4


def test_eval_mode_is_eval_mode(data):
    recipe = Recipe(sgd, steps=4, batch_size=8, mode="eval")
    assert torch.equal(
        recipe(system(data, frozen=["1"])).state, recipe(system(data)).state
    )


def test_twins_keep_the_modes(data):
    made = system(data, frozen=FROZEN)
    wanted = RECIPE(made)
    masks = {"0.weight": torch.ones(8, 3, dtype=torch.bool)}
    for twin in (
        made.with_state(made.state),
        made.double(),
        made.with_data(data),
        made.with_mask(masks),
        made.with_ticket(dp.pruning.magnitude(made, density=1.0)),
    ):
        assert twin.kept_in_eval == made.kept_in_eval == ("1", "3", "4", *inner())
        assert torch.equal(RECIPE(twin).state, wanted.state)


def inner():
    return "4.0", "4.1", "4.2"


def test_a_lone_example_is_no_matter_to_a_frozen_batch_norm(data):
    x, y = data[0][:9], data[1][:9]
    frozen = system((x, y), frozen=FROZEN)
    assert RECIPE(frozen).state.isfinite().all()
    with pytest.raises(InvalidInputError, match="leave one alone"):
        RECIPE(system((x, y)))


def test_a_run_says_what_was_kept(data, tmp_path):
    path = tmp_path / "run.safetensors"
    made = system(data, frozen=["1", "3"])
    run = train(made, sgd, steps=4, checkpoint=path)
    assert dict(run.provenance.settings)["kept_in_eval"] == ["1", "3"]
    assert "kept_in_eval" not in dict(RECIPE(system(data)).provenance.settings)
    with pytest.raises(InvalidInputError, match="kept_in_eval"):
        train(system(data, frozen=["3"]), sgd, steps=4, checkpoint=path)


def test_scores_in_train_mode_are_of_the_users_modes(data):
    """With all of it in eval mode but the root, both modes are one."""
    made = system(data, frozen=["0", "1", "2", "3", "4", "5"])
    found = dp.pruning.snip(made, density=0.3, mode="train").masks
    with pytest.warns(NumericalWarning, match="has seen no batch"):
        wanted = dp.pruning.snip(made, density=0.3, mode="eval").masks
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    loose = dp.pruning.snip(system(data), density=0.3, mode="train").masks
    assert not all(torch.equal(loose[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("penalty", [0.0, 1e-3])
def test_early_bird_keeps_the_modes(data, penalty):
    from dynprune.pruning._early_bird_search import with_penalty

    made = with_penalty(system(data, frozen=FROZEN), penalty)
    assert made.kept_in_eval == ("1", "3", "4", *inner())
    loose = with_penalty(system(data, root=False), penalty)
    assert loose.kept_in_eval == ()


@pytest.mark.parametrize("root", [True, False])
def test_masks_are_trained_in_the_users_modes(data, root):
    frozen = FROZEN if root else ()
    made = system(data, frozen=frozen, root=root)
    found = dp.pruning.edge_popup(made, density=0.5, epochs=2, batch_size=8, seed=1)
    buffers = found.buffers
    assert bool(buffers["1.running_mean"].abs().sum() > 0) == (not root)


def test_evaluate_is_in_eval_mode(data):
    made = net(frozen=["1"])
    assert evaluate(made, data, loss_fn=MSE).loss == pytest.approx(
        float(GradientSystem(made, MSE, data).loss()), rel=1e-12
    )
