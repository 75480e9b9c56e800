"""Sanity checks where the answer is known by construction."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

import dynprune as dp
from dynprune.core import InvalidInputError, NumericalWarning, generator
from dynprune.pruning import SanityCheck, from_scores, sanity_check
from dynprune.pruning._sanity_check_controls import CONTROLS, make_controls
from dynprune.system import GradientSystem
from dynprune.tickets import Ticket
from dynprune.training import Recipe, evaluate

MSE = nn.functional.mse_loss
INPUTS, TEACHER = 20, 5
RECIPE = Recipe(lambda p: torch.optim.SGD(p, lr=0.02), steps=12, batch_size=16)


def make_model(seed: int) -> nn.Module:
    """Draw a linear student from the generator of the seed."""
    net = nn.Linear(INPUTS, 1, bias=False).double()
    with torch.no_grad():
        draw = generator(seed)
        net.weight.copy_(torch.randn(1, INPUTS, generator=draw, dtype=torch.float64))
    return net


def regression(seed: int, n: int = 64) -> tuple[Tensor, Tensor]:
    """Examples of a teacher with five weights of size 1 to 5, and no others."""
    x = torch.randn(n, INPUTS, generator=generator(seed), dtype=torch.float64)
    return x, x @ teacher().T


def teacher() -> Tensor:
    weight = torch.zeros(1, INPUTS, dtype=torch.float64)
    weight[0, ::4] = torch.arange(1.0, TEACHER + 1, dtype=torch.float64)
    return weight


def student(state: Tensor | None = None) -> GradientSystem:
    net = make_model(99)
    if state is not None:
        with torch.no_grad():
            net.weight.copy_(state)
    return GradientSystem(net, MSE, regression(0))


def planted() -> tuple[GradientSystem, Ticket, dict[str, Tensor]]:
    """The teacher's support, with weights near the teacher's, and no zero elsewhere.

    Any other mask loses weights that nothing replaces (the inputs are independent),
    and 12 small steps do not undo another initial state.
    """
    draw = torch.rand(1, INPUTS, generator=generator(7), dtype=torch.float64)
    system = student(teacher() * 0.9 + 0.01 * draw)
    scores = {"weight": teacher().abs()}
    return system, from_scores(system, scores, density=TEACHER / INPUTS), scores


def check(system: GradientSystem, ticket: Any, **settings: Any) -> SanityCheck:
    chosen: dict[str, Any] = {
        "train": RECIPE,
        "held_out": regression(1, 200),
        "make_model": make_model,
        "how": "stacked",
    }
    return sanity_check(ticket, system, **(chosen | settings))


def test_a_planted_mask_is_used() -> None:
    system, ticket, scores = planted()
    found = check(system, ticket, scores=scores)
    assert found.uses_mask
    assert found.measure == "loss"
    assert found.controls == CONTROLS
    assert set(found.verdicts.values()) == {"worse"}
    assert found.cost.steps == 5 * 5 * 12
    assert "uses its mask" in found.summary()
    # the lowest scores are zeros of the teacher: nothing is explained but the mean
    variance = float(teacher().square().sum())
    assert found.losses[3].min() > 0.5 * variance


def test_a_random_ticket_does_not_use_its_mask() -> None:
    system = student()
    ticket = dp.pruning.random(system, density=0.25, seed=3)
    found = check(system, ticket, seeds=range(6))
    assert not found.uses_mask
    assert "is not shown to use its mask" in found.summary()


def test_random_tickets_are_seldom_called_otherwise() -> None:
    # a ticket drawn for each seed as its controls are: under exchangeability both
    # intervals exclude zero, on the same side, in no more than 2.5 % of cases
    system = student()
    called = 0
    for first in range(0, 60, 3):
        seeds = range(first, first + 3)
        tickets = [
            dp.tickets.reinitialise(
                dp.pruning.random(system, density=0.25, seed=1000 + seed),
                dict(make_model(5000 + seed).named_parameters()),
            )
            for seed in seeds
        ]
        called += check(system, tickets, seeds=seeds).uses_mask
    assert called <= 3  # P(more) = 2e-3 for 20 cases at 2.5 %


def test_a_good_mask_with_any_weights_is_not_enough() -> None:
    # trained to the end, a linear student forgets where it started
    system, ticket, _ = planted()
    long = Recipe(lambda p: torch.optim.SGD(p, lr=0.1), steps=300, batch_size=64)
    found = check(system, ticket, train=long, margin=1e-6)
    assert found.verdicts["shuffled"] == "worse"
    assert found.verdicts["reinitialised"] == "within the seed noise"
    assert not found.uses_mask


def test_every_number_is_the_one_made_by_hand() -> None:
    system, ticket, _ = planted()
    seeds, test = (4, 9, 2), regression(1, 200)
    found = check(system, ticket, seeds=seeds, confidence=0.9, how="serial")
    net = copy.deepcopy(system.module)
    for column, seed in enumerate(seeds):
        arm = {"ticket": ticket} | make_controls(
            ticket, system, make_model, scores=None, seed=seed
        )
        for row, one in enumerate(arm.values()):
            RECIPE(system.with_ticket(one), seed=seed).apply_(net)
            loss = evaluate(net, test, loss_fn=MSE).loss
            assert float(found.losses[row, column]) == loss
    for row, name in enumerate(CONTROLS, start=1):
        gap = (found.losses[row] - found.losses[0]).numpy()
        low, high = stats.t.interval(0.9, 2, loc=gap.mean(), scale=stats.sem(gap))
        np.testing.assert_allclose(found.drops[name], (gap.mean(), low, high))
        assert (found.verdicts[name] == "worse") == (low > 0)


def test_stacked_and_serial_agree() -> None:
    system, ticket, scores = planted()
    tables = [
        check(system, ticket, scores=scores, how=how).losses
        for how in ("stacked", "serial")
    ]
    torch.testing.assert_close(*tables, rtol=1e-10, atol=1e-12)


def test_controls_keep_the_layer_densities_and_forget_what_they_should() -> None:
    def fresh(seed: int) -> nn.Module:
        with dp.core.isolated(seed):
            return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2))

    # a seed whose masks are large enough not to meet by chance
    net, data = fresh(0).double(), (torch.ones(8, 6).double(), torch.ones(8, 2))
    system = GradientSystem(net, MSE, data)
    ticket = dp.pruning.magnitude(system, density=0.4)

    made = make_controls(ticket, system, fresh, scores=None, seed=1)
    assert tuple(made) == CONTROLS
    for one in made.values():
        assert one.layer_densities == ticket.layer_densities
        assert all(part.dtype == torch.float64 for part in one.state.values())
    masks = {name: one.masks for name, one in made.items()}
    states = {name: one.state for name, one in made.items()}
    for name, mask in ticket.masks.items():
        assert torch.equal(masks["reinitialised"][name], mask)
        assert not torch.equal(masks["random"][name], masks["shuffled"][name])
        assert torch.equal(states["shuffled"][name], ticket.state[name])
        assert torch.equal(states["inverted"][name], ticket.state[name])
        assert not torch.equal(states["random"][name], ticket.state[name])
        assert torch.equal(states["random"][name], states["reinitialised"][name])
        common = int((masks["inverted"][name] & mask).sum())
        assert common == max(0, 2 * int(mask.sum()) - mask.numel())
    again = make_controls(ticket, system, fresh, scores=None, seed=1)
    other = make_controls(ticket, system, fresh, scores=None, seed=2)
    for name in ("shuffled", "inverted", "random"):
        key = "0.weight"
        assert torch.equal(again[name].masks[key], masks[name][key])
        assert not torch.equal(other[name].masks[key], masks[name][key])


def test_inverted_is_that_of_tickets_and_says_so() -> None:
    system, ticket, scores = planted()
    for given in (scores, None):
        made = make_controls(ticket, system, make_model, scores=given, seed=3)
        found = made["inverted"]
        settings = dict(found.provenance.settings)
        assert found.provenance.made_by == "tickets.invert"
        assert settings["origin"] == "pruning.from_scores"
        assert settings["scores"] == (given is not None)
        expected = dp.tickets.invert(ticket, given, seed=found.provenance.seed)
        assert torch.equal(found.masks["weight"], expected.masks["weight"])
        lowest = found.masks["weight"] & ticket.masks["weight"]
        assert not lowest.any()  # a quarter is kept: there is room for others


def test_what_is_frozen_is_the_tickets_in_every_control() -> None:
    def fresh(seed: int) -> nn.Module:
        with dp.core.isolated(seed):
            body = nn.Sequential(
                nn.Linear(6, 5), nn.BatchNorm1d(5), nn.BatchNorm1d(5, affine=False)
            )
            head = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
        return nn.Sequential(body, head)

    net = fresh(0)
    net(3.0 + torch.ones(8, 6).cumsum(0))  # statistics of its own
    net[0].requires_grad_(False)
    data = (torch.arange(48.0).view(8, 6).sin(), torch.ones(8, 2))
    frozen = [n for n, p in net.named_parameters() if not p.requires_grad]
    for system in (
        GradientSystem(net, MSE, data),
        GradientSystem(copy.deepcopy(net).requires_grad_(), MSE, data, parameters="1*"),
    ):
        ticket = dp.pruning.magnitude(system, density=0.5)
        made = make_controls(ticket, system, fresh, scores=None, seed=1)
        for name in ("reinitialised", "random"):
            state, buffers = made[name].state, made[name].buffers
            for key, part in ticket.state.items():
                same = torch.equal(state[key], part)
                assert same == (key in frozen or key in {"1.1.weight", "1.1.bias"})
            for key, part in ticket.buffers.items():
                assert torch.equal(buffers[key], part) == key.startswith("0.")


def test_a_problem_gives_models_data_and_metric() -> None:
    problem = dp.tasks.digits("mlp:8:tanh")
    system = GradientSystem(problem.model(0), problem.loss_fn, problem.train)
    before = copy.deepcopy(system.model.state_dict())
    ticket = dp.pruning.magnitude(system, density=0.3)
    recipe = Recipe(lambda p: torch.optim.SGD(p, lr=0.2), steps=5)
    found = sanity_check(
        ticket, system, train=recipe, problem=problem, seeds=(0, 1), how="stacked"
    )
    assert found.measure == "metric"
    assert ((found.metrics >= 0) & (found.metrics <= 1)).all()
    assert (
        found.to_frame().groupby("control")["density"].first() == ticket.density
    ).all()
    assert {"imp", "su2020", "sanity"} - set(found.provenance.sources) <= {"imp"}
    assert "Random Tickets" in dp.cite(found)
    run = recipe(system.with_ticket(ticket), seed=1)
    assert float(found.metrics[0, 1]) == evaluate(run, problem).metric
    assert all(torch.equal(p, before[n]) for n, p in system.model.state_dict().items())


def test_the_result_is_framed_and_drawn() -> None:
    import matplotlib.pyplot as plt

    system, ticket, _ = planted()
    found = check(system, ticket, seeds=(0, 1, 2))
    frame = found.to_frame()
    assert len(frame) == 15
    assert (frame[frame["control"] == "ticket"]["drop"] == 0).all()
    means = frame.groupby("control")["drop"].mean()
    for name in CONTROLS:
        assert means[name] == pytest.approx(found.drops[name][0])
    ax = found.plot()
    assert [text.get_text() for text in ax.get_yticklabels()] == list(CONTROLS)
    plt.close()
    assert repr(found) == "SanityCheck(uses_mask=True, seeds=3, measure='loss')"


def another_shape(_: int) -> nn.Module:
    return nn.Linear(3, 1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seeds": [1]}, "at least two"),
        ({"seeds": [1, 1]}, "at least two"),
        ({"held_out": None}, "make_model only"),
        ({"make_model": None}, "held_out only"),
        ({"held_out": None, "make_model": None}, "no problem only"),
        ({"problem": "digits"}, "problem and held_out, make_model"),
        ({"make_model": another_shape}, "of another shape"),
        ({"scores": {"weight": torch.zeros(1, 2)}}, "shape"),
        ({"confidence": 1.0}, "confidence is 1.0"),
        ({"margin": -0.1}, "margin is -0.1"),
        ({"scores": [{}] * 3}, "3 scores and 5 seeds"),
    ],
    ids=lambda value: str(value).split(" at 0x")[0],
)
def test_what_cannot_be_checked_is_refused(
    settings: dict[str, Any], message: str
) -> None:
    system, ticket, _ = planted()
    if settings.get("problem"):
        settings = {"problem": dp.tasks.digits()}
    with pytest.raises(InvalidInputError, match=message):
        check(system, ticket, **settings)


def never(*_: Any, **__: Any) -> Any:
    raise AssertionError("trained before it was known that the rest can be judged")


def broken(outputs: Tensor, targets: Tensor) -> Tensor:
    raise ZeroDivisionError


def test_what_cannot_be_judged_is_not_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    from dynprune.pruning import _sanity_check

    system, ticket, _ = planted()
    monkeypatch.setattr(_sanity_check, "train_many", never)
    with pytest.raises(InvalidInputError, match="not a pair"):
        check(system, ticket, held_out=[regression(1, 8)[:1]])
    with pytest.raises(ZeroDivisionError):
        check(system, ticket, metric=broken)


def test_a_dense_ticket_has_no_mask_to_check() -> None:
    system = student()
    whole = dp.pruning.magnitude(system, density=1.0)
    with pytest.raises(InvalidInputError, match="keeps all 20 weights"):
        check(system, whole)
    with pytest.raises(InvalidInputError, match="2 tickets and 5 seeds"):
        check(system, [whole, whole])


def test_a_state_of_zeros_where_pruned_is_no_control() -> None:
    system = student(teacher() * 0.9)
    ticket = from_scores(system, {"weight": teacher().abs()}, density=0.25)
    with pytest.warns(NumericalWarning, match="zero where it prunes, in weig") as said:
        check(system, ticket)
    assert len(said) == 1
    assert said[0].filename == __file__


@pytest.mark.parametrize("start_step", [12, 13])
def test_no_verdict_without_a_step(start_step: int) -> None:
    system, ticket, _ = planted()
    with pytest.raises(InvalidInputError, match=f"start_step is {start_step} of 12"):
        check(system, ticket, start_step=start_step)
    with pytest.raises(InvalidInputError, match="start_step is -1"):
        check(system, ticket, start_step=-1)


def test_knobs_of_other_libraries_are_plain(tmp_path) -> None:
    system, ticket, _ = planted()
    knobs = {"confidence": np.float32(0.5), "margin": torch.tensor(0.25)}
    found = check(system, ticket, seeds=np.arange(2), **knobs)
    found.save(tmp_path / "found.st")
    again = SanityCheck.load(tmp_path / "found.st")
    assert (again.confidence, again.margin, again.seeds) == (0.5, 0.25, (0, 1))
    plain = check(system, ticket, seeds=(0, 1), confidence=0.5, margin=0.25)
    assert found.drops == plain.drops
    with pytest.raises(InvalidInputError, match="margin is 'much'"):
        check(system, ticket, margin="much")
    with pytest.raises(InvalidInputError, match="at least two different"):
        check(system, ticket, seeds=torch.tensor([1, 1]))
