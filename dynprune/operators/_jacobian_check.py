"""Before fast products with a Jacobian are trusted, some are compared with plain."""

import warnings
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from dynprune.core import NumericalWarning, generator
from dynprune.operators._jacobian import Function, Jacobian, jacobian
from dynprune.operators._layers_alone import layers_alone
from dynprune.system import GradientSystem

_TRUSTED: WeakKeyDictionary[nn.Module, dict[tuple[object, ...], bool]] = (
    WeakKeyDictionary()
)


def trust(
    system: GradientSystem, function: Function, batch: Any, *, name: str, columns: int
) -> bool:
    """Compare products through fast graphs with plain ones, once per module and name.

    Args:
        system: The system, at a state of its own.
        function: θ ↦ a vector, of a small batch.
        batch: That batch.
        name: What the function is.
        columns: 1 to check replaced kernels; more to check so many vectors together.

    Returns:
        Whether they agree to the root of the machine epsilon; a warning names the type
        of layer where they do not.

    Cost:
        Two Jacobians and eight products on that batch.
    """
    known = _TRUSTED.setdefault(system.module, {})
    key = (name, columns > 1, system.dtype, system.device)
    if key not in known:
        what = "of several vectors at once" if columns > 1 else "by replaced kernels"
        said = _difference(function, system.state, columns)
        known[key] = not said
        if said:
            warnings.warn(
                f"For this model products {what} with the Jacobian of the {name} are "
                f"not used: {said}, probably in {_culprit(system, batch, columns)}. "
                "Plain ones are made instead; they are slower and exact.",
                NumericalWarning,
                stacklevel=2,
            )
    return known[key]


def _culprit(system: GradientSystem, batch: Any, columns: int) -> str:
    for name, state, function in layers_alone(system, batch):
        try:
            said = _difference(function, state, columns)
        except RuntimeError:
            continue  # the plain way fails alone, but not in the network
        if said:
            return name
    return "what connects the layers"


def _difference(function: Function, state: Tensor, columns: int) -> str:
    plain = jacobian(function, state, substitute=False)
    make = generator(0)
    vectors = torch.randn(columns, len(plain.theta), generator=make).to(plain.theta)
    covectors = torch.randn(columns, len(plain.values), generator=make)
    covectors = covectors.to(plain.values.detach())
    wanted = (
        plain.values.detach(),
        torch.cat([plain.push(row) for row in vectors.split(1)]),
        torch.cat([plain.pull(row) for row in covectors.split(1)]),
    )
    try:
        fast = _fast(function, state, plain, columns)
        found = fast.values.detach(), fast.push(vectors), fast.pull(covectors)
    except RuntimeError as error:  # what torch raises where a rule is missing
        text = str(error).strip() or type(error).__name__
        return f"torch cannot make them ({text.splitlines()[0][:160]})"
    for one, other in zip(wanted, found, strict=True):
        scale = float(one.double().norm()) + torch.finfo(torch.float64).tiny
        off = float((one.double() - other.double()).norm()) / scale
        if not off <= torch.finfo(one.dtype).eps ** 0.5:
            return f"they differ from plain ones by {off:.1e} (relative)"
    return ""


def _fast(function: Function, state: Tensor, plain: Jacobian, columns: int) -> Jacobian:
    if columns > 1:
        return plain
    return jacobian(function, state, substitute=True, small=True)
