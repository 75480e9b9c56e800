"""Does a flow differ from its control? Exact permutations over seeds."""

import itertools

import torch
from torch import Tensor

from dynprune.core import InvalidInputError, derive_seed, generator

EXACT_LIMIT = 4096


def differs(
    exponents: Tensor,
    control: Tensor,
    *,
    paired: bool = True,
    permutations: int = EXACT_LIMIT,
    seed: int = 0,
) -> tuple[float, float]:
    r"""Test whether a flow differs from its control, by permutation over seeds.

    The statistic is the norm of the mean difference,

    .. math:: T = \Bigl\lVert \tfrac1S \textstyle\sum_s
              (\sigma_s - \sigma^{\mathrm{control}}_s) \Bigr\rVert_2 .

    Paired, the null hypothesis is that flow and control of a seed are exchangeable, and
    the signs of the S differences are flipped in all 2^S ways. T does not see a common
    sign, so **the smallest possible p-value is 2^(1−S)**: 1/16 for five seeds, below
    0.05 only from six seeds on. ``paired=False`` exchanges labels among all
    2S seeds, with smallest p-value 2 / C(2S, S) (1/126 for five seeds); where flow and
    control of a seed share their weights, as our controls do, it is conservative, not
    exact, when they are positively correlated.

    Args:
        exponents: One row per seed, shape ``(S, G)``.
        control: Of the same seeds in the same order if paired; ``(S', G)`` if not.
        paired: Flip signs of differences, or exchange labels.
        permutations: All of them are enumerated when there are at most 4096 (paired:
            S ≤ 12; not paired: S = S' ≤ 7); otherwise this many are drawn.
        seed: Seed of the drawn permutations; unused where all are enumerated.

    Returns:
        T and its p-value: the share of permutations, the identity among them, whose
        statistic is at least T.

    Raises:
        InvalidInputError: For shapes that do not fit, numbers that are not finite, or
            fewer than one permutation.

    Cost:
        O(permutations · S · G).

    Source:
        Sign flips: Fisher, *The Design of Experiments*, 1935. Counting the identity:
        Phipson and Smyth, *Permutation P-values Should Never Be Zero*, 2010.

    Example:
        >>> flow = torch.tensor([[1.0], [2.0], [3.0]])
        >>> differs(flow, torch.zeros(3, 1))
        (2.0, 0.25)
    """  # noqa: DOC502 - raised by the check
    a, b = _check(exponents, control, paired=paired, permutations=permutations)
    if paired:
        values = a - b
        weights = _signs(len(values), permutations, seed) / len(values)
    else:
        values = torch.cat([a, b])
        weights = _labels(len(a), len(b), permutations, seed)
    norms = (weights @ values).norm(dim=1)  # row 0 is the identity
    statistic = float(norms[0])
    slack = 64 * torch.finfo(torch.float64).eps * float(values.abs().amax())
    return statistic, float((norms >= statistic - slack).double().mean())


def _signs(S: int, permutations: int, seed: int) -> Tensor:
    if 2**S <= EXACT_LIMIT:
        rows = list(itertools.product((1.0, -1.0), repeat=S))
        return torch.tensor(rows, dtype=torch.float64)
    draw = generator(derive_seed("rgflow.differs", seed))
    signs = 2.0 * torch.randint(0, 2, (permutations + 1, S), generator=draw) - 1.0
    signs[0] = 1.0
    return signs.double()


def _labels(A: int, B: int, permutations: int, seed: int) -> Tensor:
    # itertools.combinations gives the identity (0, …, A−1) first.
    chosen: list[tuple[int, ...]]
    chosen = list(itertools.islice(itertools.combinations(range(A + B), A), 4097))
    if len(chosen) > EXACT_LIMIT:
        draw = generator(derive_seed("rgflow.differs", seed))
        chosen = [tuple(range(A))] + [
            tuple(torch.randperm(A + B, generator=draw)[:A].tolist())
            for _ in range(permutations)
        ]
    weights = torch.full((len(chosen), A + B), -1.0 / B, dtype=torch.float64)
    return weights.scatter(1, torch.tensor(chosen), 1.0 / A)


def _check(
    exponents: Tensor, control: Tensor, *, paired: bool, permutations: int
) -> tuple[Tensor, Tensor]:
    a = torch.as_tensor(exponents).detach().to("cpu", torch.float64)
    b = torch.as_tensor(control).detach().to("cpu", torch.float64)
    fits = a.ndim == b.ndim == 2 and a.shape[1] == b.shape[1]
    if not fits or 0 in a.shape or 0 in b.shape or (paired and len(a) != len(b)):
        raise InvalidInputError(
            f"Exponents have shape {tuple(a.shape)}, the control {tuple(b.shape)}. "
            "Pass one row per seed and the same groups; paired tests need the same "
            "seeds."
        )
    if not bool(torch.isfinite(a).all() and torch.isfinite(b).all()):
        raise InvalidInputError(
            "Some exponents are not finite. Leave out the groups that have no exponent "
            "(fewer than 3 levels with survivors)."
        )
    if permutations < 1:
        raise InvalidInputError(
            f"permutations={permutations}. Draw at least 1; 999 is usual."
        )
    return a, b
