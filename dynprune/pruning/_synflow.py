"""SynFlow: synaptic flow conserved over many rounds, without data."""

import copy
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dynprune.core import Cost, InvalidInputError, NumericalWarning, tensors_of
from dynprune.pruning._collapse import Collapse
from dynprune.pruning._count_rules import Rule
from dynprune.pruning._example_count import example_count
from dynprune.pruning._from_scores import record, survivors, ticket_of
from dynprune.pruning._numbers import as_count, as_density
from dynprune.pruning._private_copy import private_copy
from dynprune.pruning._prunable import check_masks, check_start
from dynprune.pruning._rounds import in_rounds
from dynprune.pruning._select import check_scores, scope_of
from dynprune.system import GradientSystem, is_pair
from dynprune.tickets import Ticket

Activations = Literal["as is", "linear"]
_SATURATING = (
    nn.Tanh,
    nn.Sigmoid,
    nn.Hardtanh,
    nn.Hardsigmoid,
    nn.ReLU6,
    nn.Softsign,
    nn.LogSigmoid,
)


def synflow_scores(
    system: GradientSystem,
    *,
    masks: Mapping[str, Tensor] | None = None,
    activations: Activations = "as is",
    example: Tensor | None = None,
) -> dict[str, Tensor]:
    r"""Score weights by the synaptic flow through them: one round, without data.

    .. math:: s = \left| w \odot \frac{\partial R}{\partial w} \right|, \qquad
              R = \sum f_{|\theta|}(\mathbf 1)

    where every parameter and buffer is replaced by its absolute value, in float64 and
    eval mode, and the input is all ones in the shape of one example.

    Args:
        system: The system.
        masks: Name to boolean tensor; the system's own by default.
        activations: See :func:`synflow`.
        example: One example with its batch dimension, shape ``(1, …)``; only its shape
            counts. Taken from the first batch by default.

    Returns:
        Name to float64 scores, for each of ``system.prunable``; zero where pruned.

    Raises:
        InvalidInputError: If the input's shape is not known or not what the network
            takes, the network does not run in float64, its output is no tensor, or a
            mask is missing, not boolean or of a wrong shape.

    Cost:
        The forward and backward pass of one example, 1/N gradients; no forward passes
        alone, no HVPs.

    Source:
        Tanaka et al., *Pruning neural networks without any data by iteratively
        conserving synaptic flow*, NeurIPS 2020.

    Example:
        >>> x, y = torch.eye(2), torch.zeros(2, 1)
        >>> net = torch.nn.Linear(2, 1, bias=False)
        >>> system = GradientSystem(net, torch.nn.functional.mse_loss, (x, y))
        >>> synflow_scores(system.with_state(torch.tensor([3.0, -1.0])))
        {'weight': tensor([[3., 1.]], dtype=torch.float64)}
    """  # noqa: DOC502 - raised by flow_of and check_masks
    if masks is None:
        masks = survivors(system)
    check_masks(masks, system)
    return flow_of(system, activations=activations, example=example)(masks)


def synflow(
    system: GradientSystem,
    *,
    density: float,
    rounds: int = 100,
    activations: Activations = "as is",
    example: Tensor | None = None,
    rule: Rule = "exact",
    collapse: Collapse = "error",
    seed: int = 0,
) -> Ticket:
    r"""Keep the weights that carry the most synaptic flow, in many small rounds.

    Round r keeps density :math:`d_r = d_0 (d / d_0)^{r/n}` by the scores
    :math:`|w \odot \partial R / \partial w|` of the network as pruned so far
    (:math:`d_0 = 1`, or the density of the system's mask); pruned stays pruned. See
    :func:`synflow_scores` for R. The authors' code removes the
    :math:`\lfloor (1 - d_r) N \rfloor` lowest and all that tie with them:
    ``rule="synflow"``.

    Without biases the scores of each layer have the same sum in a chain with
    homogeneous activations such as ReLU, which prevents the collapse of a layer.
    Saturating ones (tanh) break that law: on absolute weights they sit in their flat
    part, scores of early layers shrink and may underflow to zero, and then the flat
    index decides. ``activations="linear"`` replaces those modules by the identity in
    the private copy, which is the paper's
    :math:`R = \mathbf 1^\top (\prod_l |\theta_l|) \mathbf 1` and no part of the
    authors' code; ReLU, the identity on non-negative inputs, is the same either way.

    Args:
        system: What is pruned; the ticket is trained from its state. Its data give no
            more than the shape of one example.
        density: Fraction to keep, in (0, 1].
        rounds: Number n of rounds.
        rule: How many each round keeps; see :func:`from_scores`, and
            :func:`iterative_snip` for rules that count among the weights alive.
        activations: ``"as is"`` or ``"linear"``.
        example: One example with its batch dimension, shape ``(1, …)``; only its shape
            counts. Taken from the first batch by default.
        collapse: What to do about one; see :func:`from_scores`.
        seed: Without effect; recorded.

    Returns:
        The ticket.

    Raises:
        InvalidInputError: See :func:`from_scores`; or if ``rounds`` is not positive,
            ``seed`` no integer, the shape of an example is not known or not what the
            network takes, the network does not run in float64 or returns no tensor,
            or all scores of a round are equal (the network came apart, or no flow
            passes it).

    Warns:
        NumericalWarning: If no flow passes some weight at the start (unused, or
            underflow), or any weight at the end.

    Cost:
        ``rounds + 1`` forward and backward passes of one example, (rounds + 1) / N
        gradients; no forward passes alone, no HVPs.

    Source:
        Tanaka et al., *Pruning neural networks without any data by iteratively
        conserving synaptic flow*, NeurIPS 2020.
    """  # noqa: DOC502 - raised by the parts
    check_start(system, seed)
    rounds, density = as_count("rounds", rounds), as_density(density)
    flow = flow_of(system, activations=activations, example=example)
    idle = 0

    def score(t: int, masks: dict[str, Tensor]) -> dict[str, Tensor]:
        nonlocal idle
        scores = flow(masks)
        if t == 1:
            idle = _idle(scores, system)
        return scores

    masks = in_rounds(
        system, score, density=density, rounds=rounds, may_return=False, rule=rule
    )
    ticket = ticket_of(
        system,
        masks,
        density=density,
        rule=rule,
        scope=scope_of(rule),
        collapse=collapse,
        provenance=record(
            system,
            "pruning.synflow",
            seed=seed,
            settings={"rounds": rounds, "activations": activations},
            sources=("synflow",),
        ),
        cost=Cost(gradients=(rounds + 1) / example_count(system)),
    )
    flows = flow(masks).values()
    passing = sum(float(part.sum()) for part in flows)
    if idle or passing == 0.0:
        decides = "the flat index" if rule == "exact" else f"rule={rule!r}"
        warnings.warn(
            f"At the start no synaptic flow passed {idle} non-zero weights, at the end "
            f"the scores sum to {passing:g}: with zero scores {decides} decides. Raise "
            "the density if the network came apart, or pass activations='linear' if it "
            "saturates.",
            NumericalWarning,
            stacklevel=2,
        )
    return ticket


def flow_of(
    system: GradientSystem, *, activations: Activations, example: Tensor | None
) -> Callable[[Mapping[str, Tensor]], dict[str, Tensor]]:
    """Return what scores a private copy of the network under masks.

    Args:
        system: The system.
        activations: See :func:`synflow`.
        example: See :func:`synflow`.

    Returns:
        ``masks -> scores``; the copy is made once.

    Raises:
        InvalidInputError: As :func:`synflow_scores`.
    """
    if activations not in {"as is", "linear"}:
        raise InvalidInputError(
            f"activations is {activations!r}. Pass 'as is' or 'linear'."
        )
    net = _positive(system)
    if activations == "linear":
        _linearise_(net)
    own = dict(net.named_parameters())
    weights = [own[name] for name in system.prunable]
    magnitudes = [part.detach().clone() for part in weights]
    ones = _ones(system, example)
    shapes = {name: tuple(own[name].shape) for name in system.prunable}
    check_scores({name: own[name] for name in shapes}, shapes)

    def scores(masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
        with torch.no_grad():
            for name, part, full in zip(shapes, weights, magnitudes, strict=True):
                part.copy_(full * masks[name].to(full.device))
        with torch.enable_grad():
            total = _sum(_output(net, ones, system))
            slopes = torch.autograd.grad(
                total, weights, allow_unused=True, materialize_grads=True
            )
        found = zip(shapes, weights, slopes, strict=True)
        result = {name: (part.detach() * slope).abs() for name, part, slope in found}
        check_scores(result, shapes)
        return result

    return scores


def _positive(system: GradientSystem) -> nn.Module:
    net = private_copy(system).double().eval()
    with torch.no_grad():
        for name, part in net.named_parameters():
            part.abs_().requires_grad_(name in system.prunable)
        for value in net.buffers():
            if value.dtype != torch.bool:
                value.abs_()
    return net


def _linearise_(net: nn.Module) -> None:
    for module in list(net.modules()):
        # not named_children, which skips a module that is used twice
        for name, child in list(module._modules.items()):
            if isinstance(child, _SATURATING):
                setattr(module, name, nn.Identity())


def _output(net: nn.Module, ones: Tensor, system: GradientSystem) -> Any:
    try:
        return net(ones)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        if _takes(net, ones, system.dtype):
            raise InvalidInputError(
                f"SynFlow runs the network in float64, and its forward does so in "
                f"{system.dtype} only: {error}. Let tensors that it makes or casts "
                "follow its input, as torch.zeros(..., dtype=x.dtype) for "
                "torch.zeros(...) and x for x.float()."
            ) from error
        raise InvalidInputError(
            f"The network does not take an example of shape {tuple(ones.shape)}: "
            f"{error}. Pass example=torch.ones(1, ...) in the shape of its inputs. For "
            "a network that takes indices, such as tokens, SynFlow is not defined."
        ) from error


def _takes(net: nn.Module, ones: Tensor, dtype: torch.dtype) -> bool:
    # if the same runs in the system's own dtype, then the dtype is what was wrong
    with torch.no_grad():
        try:
            copy.deepcopy(net).to(dtype)(ones.to(dtype))
        except Exception:
            return False
    return True


def _ones(system: GradientSystem, example: Tensor | None) -> Tensor:
    if example is None:
        example = _first(next(system.batches(), None))[:1]
    if not isinstance(example, Tensor):
        raise InvalidInputError(
            f"example is a {type(example).__name__}. Pass a tensor of one example with "
            "its batch dimension, torch.ones(1, ...)."
        )
    return torch.ones(example.shape, dtype=torch.float64, device=system.device)


def _first(batch: Any) -> Tensor:
    x = batch[0] if is_pair(batch) else None
    found = [x] if isinstance(x, Tensor) else tensors_of(batch)
    kinds = sorted({str(part.dtype) for part in found})
    if found and not any(part.is_floating_point() for part in found):
        raise InvalidInputError(
            "SynFlow feeds ones of floating-point numbers, and the inputs are "
            f"{', '.join(kinds)}: it is not defined for a network that takes indices, "
            "such as tokens. Take another pruner, or a system of the part behind the "
            "embedding. If the network takes floating-point numbers all the same, pass "
            "example=torch.ones(1, ...) in the shape of its inputs."
        )
    if not isinstance(x, Tensor) or x.ndim < 1:
        raise InvalidInputError(
            "SynFlow feeds ones in the shape of one example, and cannot tell which "
            f"entry of the first batch ({type(batch).__name__}) the network takes. "
            "Pass example=, that entry of one example with its batch dimension, "
            "shape (1, ...)."
        )
    return x


def _sum(output: Any) -> Tensor:
    if not isinstance(output, Tensor):
        raise InvalidInputError(
            f"The network returns a {type(output).__name__}, whose sum SynFlow cannot "
            "take. Wrap the network so that it returns a tensor."
        )
    return output.sum()


def _idle(scores: Mapping[str, Tensor], system: GradientSystem) -> int:
    state = system.unflatten(system.state)
    return sum(
        int(((part == 0) & (state[name] != 0)).sum()) for name, part in scores.items()
    )
