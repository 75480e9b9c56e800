"""GraSP: preserve the gradient flow after pruning."""

import torch
from torch import Tensor

from dynprune.core import Cost, isolated
from dynprune.operators import twice_differentiable
from dynprune.pruning._collapse import Collapse
from dynprune.pruning._from_scores import from_scores, record
from dynprune.pruning._scored_net import Mode, ScoredNet, add_, zeros
from dynprune.system import GradientSystem
from dynprune.tickets import Ticket

_TEMPERATURE = 200.0


def grasp_scores(
    system: GradientSystem,
    *,
    temperature: float = _TEMPERATURE,
    absolute: bool = False,
    mode: Mode = "eval",
    seed: int = 0,
) -> dict[str, Tensor]:
    r"""Score weights by what their removal does to the norm of the gradient.

    .. math:: s = +w \odot H_{ww} g, \qquad g = \nabla_w L_T, \quad
              L_T(w) = \frac{1}{N} \sum_i \ell(f_w(x_i) / T, y_i)

    with g and H over the prunable weights only, as in the authors' code, g held fixed,
    and no l2 term; the highest are kept. The source defines −w⊙Hg and keeps the
    lowest, halves a batch sorted by class, and re-initialises Linear layers in the
    scored copy; here the data are those of the system, in one pass for g and one for
    Hg. For a loss other than cross-entropy the outputs are divided by T all the same.

    Args:
        system: The system.
        temperature: T, positive; 1 for the loss itself.
        absolute: Score :math:`|w \odot Hg|`, the change in either direction.
        mode: ``"eval"`` or ``"train"`` for batch norm and dropout; it matters. Before
            the first step batch norm in eval mode normalises nothing, and what is
            scored is another network than the one in training: pass ``"train"``.
        seed: Of random loaders and dropout.

    Returns:
        Name to scores, for each of ``system.prunable``; zero where pruned.

    Raises:
        InvalidInputError: If ``temperature`` is not positive, or differs from 1 where
            the network returns no tensor or its loss, or is never called as a whole.

    Warns:
        NumericalWarning: If a batch norm has seen no batch, in eval mode.

    Cost:
        One gradient, one HVP (double backward), no further forward passes.

    Source:
        Wang et al., *Picking Winning Tickets Before Training by Preserving Gradient
        Flow*, ICLR 2020.

    Example:
        >>> x, y = torch.eye(2), torch.zeros(2, 1)
        >>> net = torch.nn.Linear(2, 1, bias=False)
        >>> system = GradientSystem(net, torch.nn.functional.mse_loss, (x, y))
        >>> grasp_scores(system.with_state(torch.tensor([3.0, -1.0])), temperature=1.0)
        {'weight': tensor([[9., 1.]])}
    """  # noqa: DOC502 - raised by ScoredNet
    net = ScoredNet(system, mode=mode, temperature=temperature)
    slopes = net.gradient(seed=seed)
    total = zeros(net.weights)
    with (
        isolated(seed),
        torch.enable_grad(),
        twice_differentiable(substitute=False),
    ):
        for share, batch in net.shares(seed=seed):
            own = net.derivatives(net.loss(batch), keep_graph=True)
            along = sum(
                ((a * b).sum() for a, b in zip(slopes, own, strict=True)),
                start=torch.zeros((), dtype=system.dtype, device=system.device),
            )
            add_(total, net.derivatives(along), share)
    found = zip(net.names, net.weights, total, strict=True)
    scores = {name: weight.detach() * product for name, weight, product in found}
    if absolute:
        return {name: part.abs() for name, part in scores.items()}
    return scores


def grasp(
    system: GradientSystem,
    *,
    density: float,
    temperature: float = _TEMPERATURE,
    absolute: bool = False,
    mode: Mode = "eval",
    collapse: Collapse = "error",
    seed: int = 0,
) -> Ticket:
    r"""Keep the weights with the highest :math:`w \odot H g`.

    See :func:`grasp_scores` for the definition.

    Args:
        system: What is pruned, on the data it is scored on; the ticket is trained
            from its state.
        density: Fraction to keep, in (0, 1].
        temperature: What the network's outputs are divided by.
        absolute: Keep the highest :math:`|w \odot Hg|` instead, which no layer whose
            gradient flow falls by pruning has to leave.
        mode: ``"eval"`` or ``"train"`` for batch norm and dropout; it matters. Before
            the first step batch norm in eval mode normalises nothing, and what is
            scored is another network than the one in training: pass ``"train"``.
        collapse: What to do about one; see :func:`from_scores`.
        seed: Of random loaders and dropout.

    Returns:
        The ticket.

    Raises:
        InvalidInputError: See :func:`from_scores`; or if ``temperature`` is not
            positive, or differs from 1 where the network returns no tensor or its
            loss, or is never called as a whole.

    Warns:
        NumericalWarning: If a batch norm has seen no batch, in eval mode.

    Cost:
        One gradient, one HVP (double backward), no further forward passes.

    Source:
        Wang et al., *Picking Winning Tickets Before Training by Preserving Gradient
        Flow*, ICLR 2020.
    """  # noqa: DOC502 - raised by from_scores and ScoredNet
    settings = {"mode": mode, "temperature": temperature, "absolute": absolute}
    scores = grasp_scores(
        system, temperature=temperature, absolute=absolute, mode=mode, seed=seed
    )
    return from_scores(
        system,
        scores,
        density=density,
        collapse=collapse,
        provenance=record(
            system, "pruning.grasp", seed=seed, settings=settings, sources=("grasp",)
        ),
        cost=Cost(gradients=1.0, hvps=1.0),
    )
