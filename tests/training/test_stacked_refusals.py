"""What a stack would lose or confuse: it is refused, and ``auto`` trains it alone."""

import functools
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode

from dynprune.core import InvalidInputError, generator
from dynprune.system import GradientSystem
from dynprune.training import Recipe, train_many

optim = torch.optim
Data = tuple[Tensor, Tensor]


@pytest.fixture
def starts(linear: GradientSystem) -> list[GradientSystem]:
    """Return two starts of one system."""
    draw = torch.randn(2, 3, generator=generator(3), dtype=torch.float64)
    return [linear.with_state(row) for row in draw]


def alone_is_right(starts: list[GradientSystem], recipe: Recipe, message: str) -> None:
    """Check that a stack is refused and that auto gives the runs one by one."""
    with pytest.raises(InvalidInputError, match=message):
        train_many(starts, recipe, how="stacked")
    found = train_many(starts, recipe, jobs=1)
    assert found.how == "serial"
    for mine, system in zip(found, starts, strict=True):
        assert torch.equal(mine.state, recipe(system).state)


# -- what the optimiser's factory attached ---------------------------------------------


def clipped_step(params: list[Tensor]) -> optim.Optimizer:
    made = optim.SGD(params, lr=0.1)
    plain = made.step

    def step(self: optim.Optimizer, closure: Any = None) -> Any:
        nn.utils.clip_grad_norm_(params, 0.01)
        return plain(closure)

    made.step = types.MethodType(step, made)  # type: ignore[method-assign]
    return made


def wrapped_step(params: list[Tensor]) -> optim.Optimizer:
    made = optim.SGD(params, lr=0.1)
    inner = optim.SGD.step

    @functools.wraps(inner)
    def step(self: optim.SGD, closure: Any = None) -> Any:
        nn.utils.clip_grad_norm_(params, 0.01)
        return inner(self, closure)

    made.step = types.MethodType(step, made)  # type: ignore[method-assign]
    return made


def hooked_gradient(params: list[Tensor]) -> optim.Optimizer:
    for part in params:
        part.register_hook(lambda slope: slope / slope.norm())
    return optim.SGD(params, lr=0.1)


def hooked_accumulator(params: list[Tensor]) -> optim.Optimizer:
    def halve(part: Tensor) -> None:
        assert part.grad is not None
        part.grad.mul_(0.5)

    for part in params:
        part.register_post_accumulate_grad_hook(halve)
    return optim.SGD(params, lr=0.1)


def warm_momentum(params: list[Tensor]) -> optim.Optimizer:
    made = optim.SGD(params, lr=0.1, momentum=0.9)
    for part in params:
        made.state[part]["momentum_buffer"] = torch.ones_like(part)
    return made


def warm_adagrad(params: list[Tensor]) -> optim.Optimizer:
    made = optim.Adagrad(params, lr=0.1, initial_accumulator_value=0.5)
    made.state[params[0]]["sum"].fill_(2.0)
    return made


def stepped_adagrad(params: list[Tensor]) -> optim.Optimizer:
    made = optim.Adagrad(params, lr=0.1, lr_decay=1.0)
    made.state[params[0]]["step"].fill_(7.0)
    return made


@pytest.mark.parametrize("schedule", [None, lambda o: lr_scheduler.StepLR(o, 2)])
@pytest.mark.parametrize(
    ("factory", "message"),
    [
        (clipped_step, "whose step is its own"),
        (wrapped_step, "whose step is its own"),
        (hooked_gradient, "hooks on 1 of its tensors"),
        (hooked_accumulator, "hooks on 1 of its tensors"),
        (warm_momentum, "state before the first step"),
        (warm_adagrad, "state before the first step"),
        (stepped_adagrad, "state before the first step"),
    ],
)
def test_what_a_factory_attached_is_not_dropped(
    starts: list[GradientSystem],
    factory: Callable[[list[Tensor]], optim.Optimizer],
    message: str,
    schedule: Any,
) -> None:
    recipe = Recipe(factory, steps=5, batch_size=8, schedule=schedule)
    alone_is_right(starts, recipe, message)


def test_a_hook_on_all_optimisers_is_refused(starts: list[GradientSystem]) -> None:
    hook = register_optimizer_step_pre_hook(lambda *_: None)
    try:
        with pytest.raises(InvalidInputError, match="1 step hooks"):
            train_many(
                starts, Recipe(lambda p: optim.SGD(p, lr=0.1), steps=1), how="stacked"
            )
    finally:
        hook.remove()


# -- what no description shows --------------------------------------------------------


class Clamped(nn.Module):
    """Clamp at a bound that few inputs reach and no description shows."""

    def __init__(self, bound: Any) -> None:
        nn.Module.__init__(self)
        self.map = nn.Linear(3, 1, bias=False)
        self.bound = bound

    def forward(self, x: Tensor) -> Tensor:
        bound = self.bound["value"] if isinstance(self.bound, dict) else self.bound
        return self.map(x.clamp(-bound, bound))


class Settings:
    """A configuration, as model libraries have it."""

    def __init__(self, kind: str) -> None:
        self.kind = kind


class Configured(nn.Module):
    def __init__(self, kind: str) -> None:
        nn.Module.__init__(self)
        self.map = nn.Linear(3, 1, bias=False)
        self.config = Settings(kind)

    def forward(self, x: Tensor) -> Tensor:
        # alike on the few small examples that a check may look at
        return self.map(x if self.config.kind == "plain" else x.clamp(-0.9, 0.9))


def scaling(factor: float) -> nn.Module:
    net = Clamped(1.0)

    def scale(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        return factor * output

    net.register_forward_hook(scale)
    return net


class Applied(nn.Module):
    def __init__(self, act: Callable[[Tensor], Tensor]) -> None:
        nn.Module.__init__(self)
        self.map = nn.Linear(3, 1, bias=False)
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        return self.map(self.act(x))


def rectified(slope: float) -> nn.Module:
    return Applied(lambda x: torch.where(x.abs() < 0.9, x, slope * x))


NETS: dict[str, tuple[Callable[[Any], nn.Module], Any, Any, str]] = {
    "number": (Clamped, 1.0, 1.5, "bound"),
    "type": (Clamped, 1, 1.0, "bound"),
    "tensor": (Clamped, torch.tensor(1.0), torch.tensor(1.5), "bound"),
    "dictionary": (Clamped, {"value": 1.0}, {"value": 1.5}, r"bound.\['value'\]"),
    "configuration": (Configured, "plain", "clamped", r"config\.kind"),
    "hook": (scaling, 1.0, 1.5, "_forward_hooks"),
    "function": (rectified, 1.0, 1.5, "act"),
}


def small_then_large() -> Data:
    """Return data whose first eight examples every network here treats alike."""
    source = generator(1)
    x = torch.randn(22, 3, generator=source, dtype=torch.float64)
    x[:8] = x[:8].clamp(-0.5, 0.5)
    return x, torch.randn(22, 1, generator=source, dtype=torch.float64)


def of_nets(*nets: nn.Module) -> list[GradientSystem]:
    held = small_then_large()
    for net in nets:
        with torch.no_grad():
            for part in net.parameters():
                part.copy_(torch.linspace(-1.0, 1.0, part.numel()).view(part.shape))
    return [GradientSystem(net.double(), nn.functional.mse_loss, held) for net in nets]


@pytest.mark.parametrize("name", list(NETS))
def test_networks_that_differ_in_an_attribute_are_not_one(name: str) -> None:
    make, first, second, path = NETS[name]
    recipe = Recipe(lambda p: optim.SGD(p, lr=0.1), steps=5, batch_size=8)
    message = rf"number 1 and number 0 in architecture \(.*{path}"
    alone_is_right(of_nets(make(first), make(second)), recipe, message)
    same = of_nets(make(first), make(first))
    assert train_many(same, recipe, how="stacked").how == "stacked"


def test_networks_with_other_submodules_are_not_one() -> None:
    recipe = Recipe(lambda p: optim.SGD(p, lr=0.1), steps=1)
    one = nn.Sequential(nn.Linear(3, 1, bias=False), nn.Identity())
    for other in (
        nn.Sequential(nn.Linear(3, 1, bias=False), nn.Hardtanh()),
        nn.Sequential(nn.Linear(3, 1, bias=False), nn.Hardtanh(-2.0)),
        nn.Sequential(nn.Linear(3, 1, bias=False)),
    ):
        with pytest.raises(InvalidInputError, match="number 0 in architecture"):
            train_many(of_nets(one, other), recipe, how="stacked")


def bounded(delta: float) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda out, target: nn.functional.huber_loss(out, target, delta=delta)


@pytest.mark.parametrize(
    ("make", "first", "second"),
    [
        (lambda delta: nn.HuberLoss(delta=delta), 1.0, 5.0),
        (bounded, 1.0, 5.0),
        (
            lambda delta: functools.partial(nn.functional.huber_loss, delta=delta),
            1.0,
            5.0,
        ),
    ],
    ids=["module", "closure", "partial"],
)
def test_losses_that_differ_are_not_one(make: Any, first: Any, second: Any) -> None:
    x, y = small_then_large()
    y[8:] += 3.0
    net = nn.Linear(3, 1).double()
    recipe = Recipe(lambda p: optim.SGD(p, lr=0.1), steps=5, batch_size=8)
    starts = [GradientSystem(net, make(part), (x, y)) for part in (first, second)]
    alone_is_right(starts, recipe, "number 1 and number 0 in loss")
    same = [GradientSystem(net, make(first), (x, y)) for _ in range(2)]
    assert train_many(same, recipe, how="stacked").how == "stacked"


def test_weights_of_classes_belong_to_the_loss() -> None:
    x = torch.randn(22, 3, generator=generator(1))
    y = torch.arange(22) % 3
    net = nn.Linear(3, 3)
    weights = torch.ones(3), torch.tensor([1.0, 2.0, 3.0])

    def loss(weight: Tensor) -> Any:
        inner = nn.CrossEntropyLoss(weight=weight, reduction="sum")
        return lambda out, target: inner(out, target) / len(target)

    recipe = Recipe(lambda p: optim.SGD(p, lr=0.1), steps=2, batch_size=8)
    starts = [GradientSystem(net, loss(weight), (x, y)) for weight in weights]
    alone_is_right(starts, recipe, r"number 0 in loss \(.*weight")


# -- memory ---------------------------------------------------------------------------


class Largest(TorchDispatchMode):
    """Note how many numbers the largest floating-point tensor of any holds."""

    def __init__(self) -> None:
        TorchDispatchMode.__init__(self)
        self.seen = 0

    def __torch_dispatch__(
        self, func: Any, kinds: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        for part in found if isinstance(found, tuple | list) else (found,):
            if isinstance(part, Tensor) and part.is_floating_point():
                self.seen = max(self.seen, part.numel())
        return found


@pytest.mark.parametrize("how", ["stacked", "auto"])
@pytest.mark.parametrize("noise", [0.0, 0.5], ids=["calm", "dropout"])
def test_no_stack_is_larger_than_asked(how: Any, noise: float) -> None:
    net = nn.Sequential(nn.Linear(30, 40), nn.Dropout(noise), nn.Linear(40, 1))
    x, y = torch.ones(4, 30), torch.ones(4, 1)
    system = GradientSystem(net, nn.functional.mse_loss, (x, y))
    recipe = Recipe(lambda p: optim.SGD(p, lr=0.1), steps=1, batch_size=4)
    with Largest() as held:
        train_many([system] * 6, recipe, how=how, stack=2, jobs=1)
    assert 1200 <= held.seen <= 2 * system.size


# -- embeddings -----------------------------------------------------------------------


class Padded(nn.Module):
    """Mean of embedded words, the padding of row 0 by module or by function."""

    def __init__(self, by_module: bool) -> None:
        nn.Module.__init__(self)
        self.words = nn.Embedding(9, 3, padding_idx=0 if by_module else None)
        self.out = nn.Linear(3, 2)
        with torch.no_grad():
            self.words.weight[0] = 0.0

    def forward(self, x: Tensor) -> Tensor:
        words = self.words.weight
        return self.out(nn.functional.embedding(x, words, padding_idx=0).mean(1))


class Read(Padded):
    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.words(x).mean(1))


def of_words(net: nn.Module, *, padded: slice) -> GradientSystem:
    x = torch.randint(1, 9, (22, 4), generator=generator(1))
    x[padded, 2:] = 0
    y = torch.arange(22) % 2
    return GradientSystem(net, nn.functional.cross_entropy, (x, y))


@pytest.mark.parametrize(
    ("make", "padded"),
    [
        pytest.param(lambda: Read(True), slice(None), id="module"),
        # nowhere in the few examples that are compared
        pytest.param(lambda: Read(True), slice(21, None), id="rare"),
        pytest.param(lambda: Padded(False), slice(None), id="function"),
    ],
)
def test_a_padding_row_is_never_trained(
    make: Callable[[], nn.Module], padded: slice
) -> None:
    system = of_words(make(), padded=padded)
    recipe = Recipe(lambda p: optim.Adam(p, lr=0.1), steps=6, batch_size=8)
    with pytest.raises(InvalidInputError, match=r"padding|words\.weight of run 1"):
        train_many([system] * 3, recipe, seeds=(0, 1, 2), how="stacked")
    for seeds, how in (((0, 1, 2), "auto"), (0, "stacked")):
        for run in train_many([system] * 3, recipe, seeds=seeds, how=how, jobs=1):
            assert not run.parameters["words.weight"][0].any()


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_sparse_gradients_are_trained_alone(mode: Any) -> None:
    net = Read(False)
    net.words.sparse = True
    starts = [of_words(net, padded=slice(0))] * 2
    recipe = Recipe(lambda p: optim.SGD(p, lr=0.1), steps=3, batch_size=8, mode=mode)
    alone_is_right(starts, recipe, "sparse gradient|cannot batch")
