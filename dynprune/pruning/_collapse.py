"""Layer collapse: layers that keep nothing, and networks that came apart."""

from collections.abc import Mapping
from typing import Any, Literal, final, get_args

from torch import Tensor

from dynprune.core import InvalidInputError
from dynprune.pruning._dependence import Dependence, dependence
from dynprune.pruning._select import Density
from dynprune.pruning._warn import warn
from dynprune.system import GradientSystem

Collapse = Literal["error", "warn", "ignore"]
# of what training gave, which is a result whatever the mask has become
CollapseInTraining = Literal["warn", "ignore"]
# true wherever scores decide, whatever the pruner itself takes
OF_SCORES = (
    "Pass a higher density, or the scores to from_scores(..., scope='layer') or "
    "from_scores(..., layer_densities=...), or take another score"
)


def advice_for(scope: str, *, layer_densities: Any = None, takes: bool = False) -> str:
    """Return what a pruner with a knob for the scope advises, by its own arguments.

    Args:
        scope: As given.
        layer_densities: As given.
        takes: Whether the pruner has ``layer_densities``.

    Returns:
        Text without a full stop.
    """
    if layer_densities is not None:
        return "Pass higher layer_densities"
    knobs = ["scope='layer'"] if scope == "global" else []
    knobs += ["layer_densities=..."] if takes else []
    others = f", or {' or '.join(knobs)}" if knobs else ""
    return f"Pass a higher density{others}"


def check_known(collapse: str, *, in_training: bool = False) -> None:
    """Refuse a value of ``collapse`` that is not known.

    Args:
        collapse: As given.
        in_training: Whether the mask comes with a training that is kept anyway.

    Raises:
        InvalidInputError: If there is no such value.
    """
    known = CollapseInTraining if in_training else Collapse
    if collapse not in get_args(known):
        options = " or ".join(repr(option) for option in get_args(known))
        raise InvalidInputError(f"collapse is {collapse!r}. Pass {options}.")


def check_collapse(
    system: GradientSystem,
    masks: Mapping[str, Tensor],
    *,
    density: Density,
    collapse: Collapse = "error",
    before: Mapping[str, Any] | None = None,
    advice: str = OF_SCORES,
    when: str = "",
) -> dict[str, Any]:
    """Say where masks leave a layer empty, or the output without the input.

    Args:
        system: What is pruned.
        masks: Name to boolean tensor, for each of ``system.prunable``.
        density: What was asked for; for messages.
        collapse: ``"error"``: a warning for empty layers, an error if the output no
            longer depends on the input; ``"warn"``: a warning for either;
            ``"ignore"``: no test. Nor is one made where nothing is pruned.
        before: What was found of the mask before this one in the same run; of the same
            finding there is no second warning.
        advice: What to try, by arguments that the caller has; no full stop.
        when: Of masks that are still searched for: when these were seen. They give
            errors, no warnings.

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
    check_known(collapse)
    if collapse == "ignore" or all(bool(mask.all()) for mask in masks.values()):
        return {"dependence": "not tested"}
    # a tensor that never held a weight has lost none
    sizes = {name: mask.numel() for name, mask in masks.items() if mask.numel()}
    empty = {name: size for name, size in sizes.items() if not masks[name].any()}
    found, spent = dependence(system, masks)
    record = {
        "dependence": found.value,
        "empty_layers": list(empty),
        "check_gradients": spent,
    }
    if not empty and found is not Dependence.LOST:
        return record
    news = ("dependence", "empty_layers")
    if before is not None and all(before.get(key) == record[key] for key in news):
        return record
    layers = ", ".join(f"{name!r} ({size} weights)" for name, size in empty.items())
    said = f"Density {_said(density, empty)} keeps no weight of {layers or 'no layer'}"
    advice += "; collapse='ignore' does not look."
    if found is Dependence.LOST:
        said = (
            f"At density {_said(density, empty)}{when} no path of kept weights leads "
            f"from the input to the output (empty layers: {layers or 'none'})"
        )
        if collapse == "error":
            raise InvalidInputError(
                f"{said}: the ticket cannot learn from its input. {advice} "
                "With collapse='warn' it is returned all the same."
            )
    if not when:
        warn(f"{said}. {advice}")
    return record


@final
class CollapseWatch:
    """Look for a collapse while masks are trained, and at the end.

    Args:
        system: What is pruned.
        density: What was asked for.
        collapse: As in :func:`check_collapse`.
        epochs: How many there will be.
        advice: What to try.
    """

    def __init__(
        self,
        system: GradientSystem,
        *,
        density: Density,
        collapse: Collapse,
        epochs: int,
        advice: str,
    ) -> None:
        self._system, self._density, self._collapse = system, density, collapse
        self._epochs, self._advice = epochs, advice
        self._spent = 0.0

    def during(self, masks: Mapping[str, Tensor], epoch: int) -> None:
        """Raise what would be raised at the end; a warning waits until then.

        Args:
            masks: Those of now; if they lost the input, so will those at the end.
            epoch: The one that they were seen after, from 0.
        """
        if self._collapse == "error":
            self._look(masks, f", after epoch {epoch} of {self._epochs},")

    def end(self, masks: Mapping[str, Tensor]) -> dict[str, Any]:
        """Look at the masks of the ticket.

        Args:
            masks: Those.

        Returns:
            As :func:`check_collapse`, with the gradients of all looks.
        """
        found = self._look(masks, "")
        return found | ({"check_gradients": self._spent} if self._spent else {})

    def _look(self, masks: Mapping[str, Tensor], when: str) -> dict[str, Any]:
        found = check_collapse(
            self._system,
            masks,
            density=self._density,
            collapse=self._collapse,
            advice=self._advice,
            when=when,
        )
        self._spent += found.get("check_gradients", 0.0)
        return found


def _said(density: Density, empty: Mapping[str, int]) -> str:
    if not isinstance(density, Mapping):
        return f"{density}"
    return ", ".join(f"{density[name]} ({name})" for name in empty or density)
