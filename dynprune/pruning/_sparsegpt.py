"""SparseGPT: layer by layer, each column's error moved to the columns after it."""

from typing import Literal, final, get_args

import torch
from torch import Tensor

from dynprune.core import AssumptionError, Cost, InvalidInputError, unknown
from dynprune.pruning._collapse import Collapse, check_collapse, check_known
from dynprune.pruning._drop_and_grow import highest
from dynprune.pruning._from_scores import full_state, record, survivors
from dynprune.pruning._layer_inputs import in_call_order, moments
from dynprune.pruning._layer_matrices import Layer, layers_of
from dynprune.pruning._numbers import as_count, as_density, as_number
from dynprune.pruning._private_copy import private_copy
from dynprune.pruning._prunable import (
    check_any,
    check_finite,
    check_prunable,
    check_start,
)
from dynprune.pruning._select import check_choice, check_room, kept_count
from dynprune.system import GradientSystem
from dynprune.tickets import Ticket

LayerInputs = Literal["pruned", "dense"]


def sparsegpt(
    system: GradientSystem,
    *,
    density: float,
    block_size: int = 128,
    damping: float = 0.01,
    inputs: LayerInputs = "pruned",
    collapse: Collapse = "error",
    seed: int = 0,
) -> Ticket:
    r"""Prune each layer so that its outputs on the data change little.

    For a layer with weight rows w and inputs X, n rows of them,

    .. math:: \min_{\hat w} \; |X w - X \hat w|^2, \qquad
              H = \tfrac{2}{n} X^\top X + \lambda \bar h I

    with :math:`\bar h` the mean diagonal before damping, over the inputs that are not
    zero on all data, columns are visited from left to right. With F the columns from
    j on, a weight :math:`w_j` that is pruned is made up for by those after it,

    .. math:: w_F \leftarrow w_F - \frac{w_j}{[H_{FF}^{-1}]_{jj}} H_{FF}^{-1} e_j ,

    where :math:`H_{FF}^{-1}` comes from one Cholesky factor of :math:`H^{-1}` for all
    rows. At the first column of each block of B columns, the weights of the block
    with the largest :math:`w_j^2 / [H_{FF}^{-1}]_{jj}`, as they are by then, are
    chosen to be kept.

    The count is exact *in each layer*, :math:`\max(1, \lfloor d n_l + \tfrac{1}{2}
    \rfloor)`, and the blocks of each group of a layer have their proportional, rounded
    shares of it. Within its block a weight of an input that is zero on all data goes
    first; where its block may keep more than it has others, it stays. The ticket's
    *state* holds the new weights; pruned entries keep their old values, which a
    shuffled mask uncovers.
    ``layer_errors`` in the settings is :math:`\|X(w - \hat w)\|^2 / \|X w\|^2`.

    Convolutions, transposed ones included, are matrices on patches (groups for
    themselves), the projections of ``nn.MultiheadAttention`` matrices on what they
    project. Tied weights see the inputs of all their layers, but no look-ups of a tied
    embedding. Biases stay.

    Args:
        system: What is pruned, usually ``system.with_state(run.state)`` of a trained
            run, on the data to calibrate with.
        density: Fraction to keep in each layer, in (0, 1].
        block_size: B, columns whose mask is chosen at once, at least 1.
        damping: λ, of the mean diagonal of H, at least 0.
        inputs: ``"pruned"``: those that pruned earlier layers give, one pass over the
            data for each layer; ``"dense"``: those of the dense network, one pass.
        collapse: What to do about one; see :func:`from_scores`.
        seed: Of a random loader.

    Returns:
        The ticket.

    Raises:
        InvalidInputError: If the density is not in (0, 1] or exceeds what survives in
            a layer, for a state that is not finite or a layer that is all zero where
            some must go, for a ``block_size`` below 1, negative damping, an unknown
            ``inputs``, weights that no layer of these kinds applies, a layer
            that is never called, inputs that are not finite, or an output that loses
            its input (see ``collapse``).
        AssumptionError: If H of a layer is singular, without damping.

    Cost:
        One forward pass per layer, and one of the first batch ("dense": one); no
        gradients, no HVPs. In float64 in² numbers and in³ + out in² operations for a
        layer.

    Source:
        Frantar and Alistarh, *SparseGPT: Massive Language Models Can Be Accurately
        Pruned in One-Shot*, ICML 2023. Exact counts, and the order of inputs layer by
        layer instead of block by block of a transformer, are ours.

    Example:
        >>> x, y = torch.tensor([[1.0, 1.0], [1.0, 0.9]]), torch.zeros(2, 1)
        >>> net = torch.nn.Linear(2, 1, bias=False)
        >>> system = GradientSystem(net, torch.nn.functional.mse_loss, (x, y))
        >>> at = system.with_state(torch.tensor([1.0, 2.0]))
        >>> sparsegpt(at, density=0.5).masked_state["weight"].round(decimals=1)
        tensor([[0., 3.]])
    """  # noqa: DOC501, DOC502 - unknown() makes it; the others from below
    check_start(system, seed)
    density = as_density(density)
    check_known(collapse)
    block_size = as_count("block_size", block_size)
    if not 0.0 <= as_number(damping) < float("inf"):
        raise InvalidInputError(f"damping is {damping!r}. Pass 0 or a positive number.")
    if inputs not in get_args(LayerInputs):
        raise unknown("inputs", inputs, get_args(LayerInputs))
    system.check_one_process("Pruning layer by layer")
    check_prunable(system.prunable)
    check_finite(system)
    alive = survivors(system)
    state = system.unflatten(system.state)
    check_any(kept.numel() for kept in alive.values())
    net = private_copy(system).eval()
    layers = layers_of(net, [name for name, kept in alive.items() if kept.numel()])
    for name, kept in alive.items():
        check_room([kept.reshape(-1)], density, name)
        if not bool(state[name].any()):
            # what is all zero has no costs to choose by; equal weights have
            check_choice({name: state[name]}, {name: kept}, density, "layer")
    weights = dict(net.named_parameters())
    found = {
        name: (kept, weights[name].detach())
        for name, kept in alive.items()
        if not kept.numel()
    }
    errors = dict.fromkeys(found, 0.0)
    forwards = 0.0
    together = [layers]
    if inputs == "pruned":
        together = [[layer] for layer in in_call_order(net, system, layers)]
        forwards += system.weight(next(iter(system.batches()))) / system.examples
    for own in together:
        seen = moments(net, system, own, seed=seed)
        forwards += 1.0
        for layer in own:
            weight = weights[layer.name].detach()
            mask, after, error = _pruned(
                layer,
                weight,
                seen.pop(layer.name),
                alive[layer.name].to(weight.device),
                density=density,
                block_size=block_size,
                damping=damping,
            )
            errors[layer.name] = error
            found[layer.name] = mask, torch.where(mask, after, weight)
            if inputs == "pruned":
                with torch.no_grad():
                    weight.copy_(torch.where(mask, after, 0.0))
    masks = {name: found[name][0].cpu() for name in alive}
    settings = {
        "density": density,
        "rule": "exact",
        "scope": "layer",
        "collapse": check_collapse(
            system,
            masks,
            density=density,
            collapse=collapse,
            advice="Pass a higher density",
        ),
        "block_size": block_size,
        "damping": damping,
        "inputs": inputs,
        "layer_errors": {name: errors[name] for name in alive},
    }
    return Ticket.make(
        masks,
        full_state(system, system.state) | {name: found[name][1] for name in alive},
        system.buffers,
        provenance=record(
            system,
            "pruning.sparsegpt",
            seed=seed,
            settings=settings,
            sources=("sparsegpt", "obs"),
        ),
        cost=Cost(forwards=forwards),
    )


def _pruned(
    layer: Layer,
    weight: Tensor,
    moment: Tensor,
    alive: Tensor,
    *,
    density: float,
    block_size: int,
    damping: float,
) -> tuple[Tensor, Tensor, float]:
    # mask, new weights, and the relative error of the outputs
    before = layer.matrix(weight).double()
    W, left = before.clone(), layer.matrix(alive).clone()
    quota = _Quota(kept_count(density, alive.numel()), int(alive.sum()))
    masks = []
    rows = len(W) // layer.groups
    for group in range(layer.groups):
        own = slice(group * rows, (group + 1) * rows)
        factor, idle = _factor(moment[group], damping, layer.name)
        masks.append(_columns_(W[own], factor, idle, left[own], quota, block_size))
    mask = torch.cat(masks)
    W = torch.where(mask, W, 0.0)
    change, size = _energy(W - before, moment, rows), _energy(before, moment, rows)
    error = float(change / size) if float(size) else 0.0
    shape = weight.shape
    return layer.weight(mask, shape), layer.weight(W, shape).to(weight.dtype), error


@final
class _Quota:
    """Deal out an exact count in proportion to the survivors that were visited."""

    def __init__(self, count: int, alive: int) -> None:
        self._count, self._alive = count, alive
        self._seen = self._dealt = 0

    def next(self, alive: int) -> int:
        self._seen += alive
        # half up, in integers: monotone, never more than is alive, and exact at the end
        due = (2 * self._count * self._seen + self._alive) // (2 * self._alive)
        own, self._dealt = due - self._dealt, due
        return own


def _factor(moment: Tensor, damping: float, name: str) -> tuple[Tensor, Tensor]:
    # the upper Cholesky factor of H⁻¹, and which inputs are always zero
    H = moment.clone()
    diagonal = H.diagonal()
    idle = diagonal == 0
    mean = diagonal[~idle].mean() if not bool(idle.all()) else diagonal.new_ones(())
    diagonal[idle] = mean
    diagonal += damping * mean
    lower, failed = torch.linalg.cholesky_ex(H)
    inverse = torch.cholesky_inverse(lower)
    factor, worse = torch.linalg.cholesky_ex(inverse, upper=True)
    if bool(failed) or bool(worse) or not bool(torch.isfinite(factor).all()):
        raise AssumptionError(
            f"The inputs of {name!r} are linearly dependent: their second moments have "
            f"no inverse with damping={damping:g}. Pass more damping (0.01 is usual), "
            "or more data."
        )
    return factor, idle


def _columns_(
    W: Tensor, factor: Tensor, idle: Tensor, alive: Tensor, quota: _Quota, size: int
) -> Tensor:
    # W becomes the pruned matrix, in place; returns the mask
    mask = torch.zeros_like(alive)
    scale = factor.diagonal()
    for first in range(0, W.shape[1], size):
        block = slice(first, min(first + size, W.shape[1]))
        scores = (W[:, block] / scale[block]).square()
        scores = torch.where(idle[block], -1.0, scores)
        mask[:, block] = highest(
            scores, alive[:, block], quota.next(int(alive[:, block].sum()))
        )
        for j in range(block.start, block.stop):
            error = torch.where(mask[:, j], 0.0, W[:, j]) / scale[j]
            W[:, j:] -= error[:, None] * factor[j, j:]
    return mask


def _energy(W: Tensor, moment: Tensor, rows: int) -> Tensor:
    # the summed squares of X w over the rows w, times 2/n
    parts = W.view(len(moment), rows, -1)
    return ((parts @ moment) * parts).sum()
