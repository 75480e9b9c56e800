"""Layer collapse: layers that keep nothing, and networks that came apart."""

import warnings
from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor

from dynprune.core import InvalidInputError, NumericalWarning
from dynprune.pruning._dependence import Dependence, dependence
from dynprune.pruning._select import Density
from dynprune.system import GradientSystem

Collapse = Literal["error", "warn", "ignore"]


def check_collapse(
    system: GradientSystem,
    masks: Mapping[str, Tensor],
    *,
    density: Density,
    collapse: Collapse = "error",
) -> dict[str, Any]:
    """Say where masks leave a layer empty, or the output without the input.

    Args:
        system: What is pruned.
        masks: Name to boolean tensor, for each of ``system.prunable``.
        density: What was asked for; for messages.
        collapse: ``"error"``: a warning for empty layers, an error if the output no
            longer depends on the input; ``"warn"``: a warning for either;
            ``"ignore"``: no test.

    Returns:
        What was found, for the provenance: ``dependence``, ``empty_layers`` and
        ``check_gradients``.

    Raises:
        InvalidInputError: If ``collapse`` is unknown, or the output lost its input.

    Warns:
        NumericalWarning: See ``collapse``.

    Cost:
        See :func:`dynprune.pruning._dependence.dependence`.
    """
    if collapse not in {"error", "warn", "ignore"}:
        raise InvalidInputError(
            f"collapse is {collapse!r}. Pass 'error', 'warn' or 'ignore'."
        )
    if collapse == "ignore":
        return {"dependence": "not tested"}
    empty = {name: mask.numel() for name, mask in masks.items() if not mask.any()}
    found, spent = dependence(system, masks)
    record = {
        "dependence": found.value,
        "empty_layers": list(empty),
        "check_gradients": spent,
    }
    if not empty and found is not Dependence.LOST:
        return record
    layers = ", ".join(f"{name!r} ({size} weights)" for name, size in empty.items())
    said = f"Density {_said(density, empty)} keeps no weight of {layers or 'no layer'}"
    advice = "Pass a higher density, or layer densities (scope='layer', "
    advice += "layer_densities), or another score; collapse='ignore' does not look."
    if found is Dependence.LOST:
        said = (
            f"At density {_said(density, empty)} no path of kept weights leads from "
            f"the input to the output (empty layers: {layers or 'none'})"
        )
        if collapse == "error":
            raise InvalidInputError(
                f"{said}: the ticket cannot learn from its input. {advice} "
                "With collapse='warn' it is returned all the same."
            )
    warnings.warn(f"{said}. {advice}", NumericalWarning, stacklevel=4)
    return record


def _said(density: Density, empty: Mapping[str, int]) -> str:
    if not isinstance(density, Mapping):
        return f"{density}"
    return ", ".join(f"{density[name]} ({name})" for name in empty or density)
