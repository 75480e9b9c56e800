"""Steps that change masks as they go."""

import pytest
import torch
from problems import classes, small_net
from torch import nn

from dynprune.core import Cost, InvalidInputError
from dynprune.system import GradientSystem
from dynprune.training import Mover, Recipe, train

CE = nn.functional.cross_entropy
OPTIMIZERS = {
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.1, amsgrad=True),
}


def problem(**kwargs):
    model = small_net()
    return model, GradientSystem(model, CE, classes(20, 3, 3), **kwargs)


def mover(system, optimizer) -> Mover:
    return Mover(system, optimizer, schedule=None, training=True, step=0)


def test_default_step_is_the_same_step():
    _, system = problem()
    plain = train(system, OPTIMIZERS["momentum"], steps=9, batch_size=8, seed=1)
    seen = []

    def move(own, step, batch):
        seen.append((step, len(batch[1])))
        return own.step(batch)

    recipe = Recipe(OPTIMIZERS["momentum"], steps=9, batch_size=8)
    found = recipe(system, seed=1, move=move)
    assert torch.equal(found.state, plain.state)
    assert torch.equal(found.history[1], plain.history[1])
    assert found.cost == plain.cost
    assert seen == [(t, 4 if t % 3 == 2 else 8) for t in range(9)]
    late = recipe(system, seed=1, start_step=5, stop_step=7, move=move)
    assert [step for step, _ in seen[9:]] == [5, 6]
    assert late.cost.steps == 2


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_grown_weights_start_at_zero_with_no_memory(kind):
    model, system = problem()
    own = mover(system, OPTIMIZERS[kind])
    batch = system.data
    a = torch.zeros(4, 3, dtype=torch.bool)
    a[:2] = True  # rows 0, 1 kept; then 1, 2
    b = a.roll(1, 0)
    own.set_masks({"0.weight": a})
    for _ in range(3):
        own.step(batch)
        assert not own.weights()["0.weight"][~a].any()
    weight = own.parameters[0]
    before = own.weights()["0.weight"].clone()
    memory = {
        key: value.clone()
        for key, value in own.optimizer.state[weight].items()
        if value.shape == weight.shape
    }
    assert memory
    own.set_masks({"0.weight": b})
    assert torch.equal(own.weights()["0.weight"][1], before[1])
    assert not own.weights()["0.weight"][[0, 2, 3]].any()
    for key, value in memory.items():
        now = own.optimizer.state[weight][key]
        assert torch.equal(now[1], value[1])
        assert value[1].any()
        assert not now[[0, 2, 3]].any()
    own.step(batch)
    assert own.weights()["0.weight"][2].all()  # it moves now
    assert not own.weights()["0.weight"][[0, 3]].any()
    own.set_masks({"0.weight": torch.ones(4, 3, dtype=torch.bool)})
    own.step(batch)
    assert own.weights()["0.weight"].all()
    assert torch.equal(model[0].weight, small_net()[0].weight)


def test_masks_of_the_system_stay_unless_they_are_set():
    _, system = problem()
    kept = torch.zeros(3, 4, dtype=torch.bool)
    kept[0] = True
    own = mover(system.with_mask({"2.weight": kept}), OPTIMIZERS["momentum"])
    own.set_masks({"0.weight": torch.eye(4, 3).bool()})
    own.step(system.data)
    assert not own.weights()["2.weight"][~kept].any()
    assert not own.weights()["0.weight"][~torch.eye(4, 3).bool()].any()


@pytest.mark.parametrize("l2", [0.0, 0.3])
def test_dense_gradient_is_that_of_the_masked_network_and_moves_nothing(l2):
    model, system = problem(l2=l2)
    own = mover(system, OPTIMIZERS["momentum"])
    kept = torch.eye(4, 3).bool()
    own.set_masks({"0.weight": kept})
    state = own.state()
    loss, found = own.dense_gradient(system.data)
    assert torch.equal(own.state(), state)
    assert own.evaluations == 1
    assert all(part.grad is None for part in own.parameters)
    with torch.no_grad():
        model[0].weight.mul_(kept)
    parts = list(model.parameters())
    value = CE(model(system.data[0]), system.data[1])
    value = value + 0.5 * l2 * sum(part.square().sum() for part in parts)
    slopes = torch.autograd.grad(value, parts)
    assert float(loss) == pytest.approx(float(value.detach()), rel=1e-12)
    for name, slope in zip(found, slopes, strict=True):
        assert torch.allclose(found[name], slope, rtol=1e-12, atol=1e-14)
    assert found["0.weight"][~kept].all()
    own.step(system.data)  # and the mask is in force again
    assert not own.weights()["0.weight"][~kept].any()


def test_passes_made_by_a_move_are_counted():
    _, system = problem()

    def twice(own, step, batch):
        own.dense_gradient(batch)
        return own.step(batch)

    recipe = Recipe(OPTIMIZERS["momentum"], steps=3, batch_size=20)
    assert recipe(system, move=twice).cost == Cost(gradients=6.0, steps=3)


def test_checkpoint_and_move_are_refused_together(tmp_path):
    _, system = problem()
    with pytest.raises(InvalidInputError, match="came with move="):
        train(
            system,
            OPTIMIZERS["momentum"],
            steps=2,
            checkpoint=tmp_path / "a",
            move=lambda own, step, batch: own.step(batch),
        )
    assert not (tmp_path / "a").exists()
