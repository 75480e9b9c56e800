"""Magnitude pruning, at initialisation or of trained weights."""

from collections.abc import Mapping

from torch import Tensor

from dynprune.core import Cost, InvalidInputError
from dynprune.pruning._collapse import Collapse, advice_for
from dynprune.pruning._from_scores import record, scored
from dynprune.pruning._prunable import check_start
from dynprune.pruning._select import Scope
from dynprune.system import GradientSystem
from dynprune.tickets import Ticket


def magnitude_scores(
    system: GradientSystem, *, state: Tensor | Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    r"""Score weights by their magnitude, :math:`s = |w|`.

    Args:
        system: The system.
        state: Coordinates ``(P,)`` or named tensors; the system's own by default.

    Returns:
        Name to scores, for each of ``system.prunable``.

    Raises:
        InvalidInputError: If the state is neither coordinates nor named tensors.

    Example:
        >>> import torch
        >>> x, y = torch.eye(2), torch.zeros(2, 1)
        >>> net = torch.nn.Linear(2, 1, bias=False)
        >>> system = GradientSystem(net, torch.nn.functional.mse_loss, (x, y))
        >>> magnitude_scores(system, state=torch.tensor([1.0, -2.0]))
        {'weight': tensor([[1., 2.]])}
    """
    check_start(system)
    if state is None:
        state = system.state
    if not isinstance(state, Tensor | Mapping):
        raise InvalidInputError(
            f"state is a {type(state).__name__}. Pass coordinates of shape (P,), or "
            "named tensors such as dict(model.named_parameters())."
        )
    if isinstance(state, Tensor):
        state = system.unflatten(state.to(system.device))
    named = system.unflatten(system.flatten(state))
    return {name: named[name].detach().abs() for name in system.prunable}


def magnitude(
    system: GradientSystem,
    *,
    density: float | None = None,
    layer_densities: Mapping[str, float] | None = None,
    state: Tensor | Mapping[str, Tensor] | None = None,
    scope: Scope = "global",
    collapse: Collapse = "error",
    cost: Cost | None = None,
    seed: int = 0,
) -> Ticket:
    r"""Keep the weights of largest magnitude, :math:`s = |w|`.

    Magnitudes are those of ``state``; the ticket is trained from the *system's* state.
    So ``state=`` of trained weights with the system at initialisation is one level of
    IMP; prune ``system.with_state(trained)`` to fine-tune instead.

    Args:
        system: What is pruned.
        density: Fraction to keep, in (0, 1]; or else ``layer_densities``.
        layer_densities: One for each of ``system.prunable``, by name; :func:`lamp` and
            :func:`erk_densities` are other ways to share the weights out.
        state: Coordinates ``(P,)`` or named tensors whose magnitudes count; the
            system's own by default.
        scope: ``"global"`` or ``"layer"``.
        collapse: What to do about one; see :func:`from_scores`.
        cost: What it took to get ``state``.
        seed: Without effect; recorded.

    Returns:
        The ticket.

    Raises:
        InvalidInputError: See :func:`from_scores`.

    Cost:
        No gradients, no forward passes, no HVPs beyond ``cost``.

    Source:
        Han et al., *Learning both weights and connections for efficient neural
        networks*, NeurIPS 2015.
    """  # noqa: DOC502 - raised by from_scores
    settings = {"state": "system" if state is None else "given"}
    return scored(
        system,
        magnitude_scores(system, state=state),
        density=density,
        scope=scope,
        layer_densities=layer_densities,
        collapse=collapse,
        provenance=record(system, "pruning.magnitude", seed=seed, settings=settings),
        cost=cost,
        advice=advice_for(scope, layer_densities=layer_densities, takes=True),
    )
