"""Which routes are right on which layers: relative errors against differences."""

from collections.abc import Callable, Mapping

import torch
from _models import Attention, Case
from _report import Row
from _rivals import AbstractProducts, quiet, word
from torch import Tensor, nn

from dynprune.core import isolated


def _flat(*middle: nn.Module) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(6, 8), *middle, nn.Tanh(), nn.Flatten(), nn.LazyLinear(3)
    )


def _image(*middle: nn.Module) -> nn.Sequential:
    return nn.Sequential(
        nn.Unflatten(1, (1, 2, 3)),
        nn.Conv2d(1, 4, 3, padding=1),
        *middle,
        nn.Tanh(),
        nn.Flatten(),
        nn.LazyLinear(3),
    )


def _sequence(*middle: nn.Module) -> nn.Sequential:
    return nn.Sequential(
        nn.Unflatten(1, (3, 2)),
        nn.Linear(2, 8),
        *middle,
        nn.Flatten(),
        nn.LazyLinear(3),
    )


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "Linear": _flat,
    "Conv2d": _image,
    "LayerNorm": lambda: _flat(nn.LayerNorm(8)),
    "RMSNorm": lambda: _flat(nn.RMSNorm(8)),
    "GroupNorm": lambda: _image(nn.GroupNorm(2, 4)),
    "InstanceNorm": lambda: _image(nn.InstanceNorm2d(4, affine=True)),
    "BatchNorm (eval)": lambda: _image(nn.BatchNorm2d(4)),
    "attention": lambda: _sequence(Attention(8, 2)),
}


def layer_case(name: str) -> Case:
    """Return a small float64 network with one such layer, affine and not at rest."""
    with isolated(1), torch.no_grad():
        model = LAYERS[name]().double().train()
        x = torch.randn(5, 6, dtype=torch.float64)
        model(x)
        for part in model.parameters():
            part.add_(0.3 * torch.randn_like(part))
    y = torch.arange(5) % 3
    return Case(
        name=name, model=model.eval(), loss=nn.CrossEntropyLoss(), batches=[(x, y)]
    )


def differences(case: Case, vector: Tensor) -> Tensor:
    """Return H v by central differences of the gradient, extrapolated once."""
    start = [part.detach().clone() for part in case.parameters]
    sizes = [part.numel() for part in start]
    ways = [p.view_as(a) for p, a in zip(vector.split(sizes), start, strict=True)]

    def slope(step: float) -> Tensor:
        found = []
        for sign in (step, -step):
            with torch.no_grad():
                for part, a, way in zip(case.parameters, start, ways, strict=True):
                    part.copy_(a + sign * way)
            found.append(case.gradient())
        return (found[0] - found[1]) / (2 * step)

    step = 1e-3 / float(vector.norm())
    product = (4 * slope(step / 2) - slope(step)) / 3
    with torch.no_grad():
        for part, a in zip(case.parameters, start, strict=True):
            part.copy_(a)
    return product


def layer_table(
    kinds: Mapping[str, Callable[[Case], AbstractProducts]],
    *,
    layers: tuple[str, ...],
    vectors: int = 2,
) -> list[Row]:
    """Return one row per method: its error with each layer, or a word if it fails.

    Batched methods are given a block of two vectors, others one.
    """
    cells: dict[str, dict[str, object]] = {name: {"method": name} for name in kinds}
    for layer in layers:
        case = layer_case(layer)
        block = case.vectors(vectors)
        exact = torch.stack([differences(case, v) for v in block.unbind(1)], 1)
        for name, kind in kinds.items():
            try:
                with quiet():
                    one = kind(case.copy())
                    if one.batched:
                        found = one.flat(one.product(one.native(block)))
                    else:
                        columns = [one.native(v) for v in block.unbind(1)]
                        parts = [one.flat(one.product(v)) for v in columns]
                        found = torch.stack(parts, 1)
                cells[name][layer] = float((found - exact).norm() / exact.norm())
            except Exception as error:
                cells[name][layer] = word(error)
    return list(cells.values())
