"""Coarse observables of an IMP run: how much magnitude each group of weights holds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor

from dynprune.core import InvalidInputError, unknown
from dynprune.rgflow._runs import (
    Magnitude,
    Normalisation,
    RunLike,
    Stage,
    check_choice,
    check_run,
)

Groups = Literal["tensor"] | Mapping[str, str | None]


@final
@dataclass(frozen=True, kw_only=True, eq=False, slots=True, weakref_slot=True)
class Observables:
    """Hold the observables of one run.

    Args:
        values: One row per level, one column per group, shape ``(R, G)``, float64.
        densities: Density of each row, shape ``(R,)``, decreasing, float64.
        groups: Names of the columns.
    """

    values: Tensor
    densities: Tensor
    groups: tuple[str, ...]

    def __repr__(self) -> str:
        """Return the size in one line."""
        levels, groups = self.values.shape
        return f"Observables({levels} levels, {groups} groups)"


def observables(
    run: RunLike,
    *,
    groups: Groups = "tensor",
    magnitude: Magnitude = "L1",
    stage: Stage = "before",
    normalisation: Normalisation = "share",
) -> Observables:
    r"""Measure the magnitude of each group of weights at each level of an IMP run.

    With :math:`p = 1` (L1) or 2 (L2), the trained weights :math:`\theta(n)` of level n
    and its mask :math:`m(n)`,

    .. math:: S_i(n) = \sum_{j \in i} |m_j(n)\,\theta_j(n)|^p, \qquad
              M_i(n) = S_i(n) / \textstyle\sum_l S_l(n).

    ``stage="before"`` takes each level as trained, before it is pruned further: R rows
    at densities :math:`d_0 … d_{R-1}`. ``stage="after"`` takes the weights of level n
    under the mask of level n + 1: R − 1 rows at densities :math:`d_1 … d_{R-1}`.

    Args:
        run: An IMP run: ``tickets[n].masks`` and ``levels[n].state``.
        groups: ``"tensor"`` for one group per masked tensor, or the group of each
            masked tensor by name; None leaves a tensor out of all sums.
        magnitude: ``"L1"`` sums absolute values, ``"L2"`` sums squares (not their
            root: sums over groups stay additive).
        stage: ``"before"`` or ``"after"`` pruning.
        normalisation: ``"share"`` divides by the sum over the groups, ``"absolute"``
            does not.

    Returns:
        Values, densities and group names.

    Raises:
        InvalidInputError: For an unknown choice, a group map that misses a tensor or
            names an unknown one, levels that do not fit together, or a weight that is
            not finite.

    Cost:
        One pass over the weights per level; one tensor of extra memory.

    Source:
        Reconstruction of the observables of Redman et al., *Universality of Winning
        Tickets: A Renormalization Group Perspective*, ICML 2022.

    Example:
        >>> from types import SimpleNamespace as Space
        >>> on, half = torch.ones(2) > 0, torch.tensor([True, False])
        >>> run = Space(
        ...     tickets=[Space(masks={"a": on, "b": on}),
        ...              Space(masks={"a": half, "b": half})],
        ...     levels=[Space(state={"a": torch.ones(2), "b": torch.ones(2)}),
        ...             Space(state={"a": 3 * torch.ones(2), "b": torch.ones(2)})])
        >>> observables(run).values
        tensor([[0.5000, 0.5000],
                [0.7500, 0.2500]], dtype=torch.float64)
    """
    check_choice("magnitude", magnitude, ("L1", "L2"))
    check_choice("stage", stage, ("before", "after"))
    check_choice("normalisation", normalisation, ("share", "absolute"))
    names = check_run(run)
    labels, members = group_members(names, groups)
    shift = 1 if stage == "after" else 0
    if len(run.tickets) <= shift:
        raise InvalidInputError(
            "The run has one level, which is never pruned, and stage='after' was "
            "asked for. Use stage='before', or a run of more levels."
        )
    rows, densities = [], []
    for n, ticket in enumerate(run.tickets[shift:]):
        masks = ticket.masks
        rows.append(tensor_sums(run.levels[n].state, masks, names, magnitude, level=n))
        densities.append(density_of(masks))
    sums = torch.stack(rows)
    return Observables(
        values=normalise(group_sums(sums, members), normalisation),
        densities=torch.tensor(densities, dtype=torch.float64),
        groups=labels,
    )


def density_of(masks: Mapping[str, Tensor]) -> float:
    """Return kept / prunable of a set of masks.

    Args:
        masks: Name to boolean tensor.

    Returns:
        The density.
    """
    kept = sum(int(mask.sum()) for mask in masks.values())
    return kept / sum(mask.numel() for mask in masks.values())


def common_densities(runs: Sequence[RunLike]) -> Tensor:
    """Return the densities that all runs share.

    Args:
        runs: One per seed, of the same number of levels.

    Returns:
        Shape ``(R,)``, float64.

    Raises:
        InvalidInputError: If the densities of two runs differ.
    """
    found = torch.tensor(
        [[density_of(ticket.masks) for ticket in run.tickets] for run in runs],
        dtype=torch.float64,
    )
    if not bool((found == found[0]).all()):
        worst = int((found - found[0]).abs().amax(1).argmax())
        shown = [", ".join(f"{v:.6g}" for v in row) for row in found[[0, worst]]]
        raise InvalidInputError(
            f"Run 0 has densities {shown[0]}; run {worst} has {shown[1]}. Prune all "
            "runs with one schedule and exact counts."
        )
    return found[0]


def group_members(
    names: Sequence[str], groups: Groups
) -> tuple[tuple[str, ...], Tensor]:
    """Resolve a grouping to a 0/1 matrix.

    Args:
        names: Names of the T masked tensors.
        groups: ``"tensor"`` or name to group, None to leave out.

    Returns:
        G group names in order of first appearance, and members of shape ``(T, G)``.

    Raises:
        InvalidInputError: If a tensor has no group, a name is unknown or no group is
            left.
    """  # noqa: DOC501 - unknown() makes it
    if isinstance(groups, str):
        check_choice("groups", groups, ("tensor",))
        return tuple(names), torch.eye(len(names), dtype=torch.float64)
    for name in groups:
        if name not in names:
            raise unknown("tensor in groups", name, names)
    missing = [name for name in names if name not in groups]
    if missing:
        raise InvalidInputError(
            f"groups says nothing about {', '.join(missing)}. Name the group of every "
            "masked tensor, or None to leave one out."
        )
    labels = tuple(dict.fromkeys(g for n in names if (g := groups[n]) is not None))
    if not labels:
        raise InvalidInputError(
            f"groups leaves out all of {', '.join(names)}. Keep at least one tensor."
        )
    members = torch.zeros((len(names), len(labels)), dtype=torch.float64)
    for row, name in enumerate(names):
        if (label := groups[name]) is not None:
            members[row, labels.index(label)] = 1.0
    return labels, members


def tensor_sums(
    state: Mapping[str, Tensor],
    masks: Mapping[str, Tensor],
    names: Sequence[str],
    magnitude: Magnitude,
    *,
    level: int,
) -> Tensor:
    """Sum |w| or w² over the kept weights of each tensor.

    Args:
        state: Name to weights.
        masks: Name to mask.
        names: Which tensors, T of them.
        magnitude: ``"L1"`` or ``"L2"``.
        level: For the message.

    Returns:
        Shape ``(T,)``, float64, on the CPU.

    Raises:
        InvalidInputError: If a kept weight is not finite.
    """
    sums = []
    for name in names:
        kept = state[name].detach()[masks[name].to(state[name].device, torch.bool)]
        total = kept.double().abs().pow(1 if magnitude == "L1" else 2).sum()
        if not torch.isfinite(total):
            raise InvalidInputError(
                f"Level {level} has weights in {name!r} that are not finite (their "
                f"magnitude sums to {float(total)}). Train it again with a smaller "
                "step."
            )
        sums.append(total.cpu())
    return torch.stack(sums)


def group_sums(sums: Tensor, members: Tensor) -> Tensor:
    """Add the sums of tensors to sums of groups.

    Args:
        sums: Shape ``(…, T)``.
        members: Shape ``(T, G)``, zeros and ones.

    Returns:
        Shape ``(…, G)``.
    """
    return sums @ members


def normalise(sums: Tensor, normalisation: Normalisation) -> Tensor:
    """Divide sums by their total over the groups, if shares are asked for.

    Args:
        sums: Shape ``(…, G)``.
        normalisation: ``"share"`` or ``"absolute"``.

    Returns:
        The same shape.

    Raises:
        InvalidInputError: If a level has no magnitude at all.
    """
    if normalisation == "absolute":
        return sums
    total = sums.sum(-1, keepdim=True)
    if bool((total <= 0).any()):
        raise InvalidInputError(
            "All weights of the groups are zero at some level, so shares are 0/0. "
            "Leave that level out, or include more tensors in the groups."
        )
    return sums / total
