"""Densities of the levels of iterative pruning."""

from dynprune.core import InvalidInputError
from dynprune.pruning._numbers import as_count, as_number


def densities_by_factor(factor: float, levels: int) -> tuple[float, ...]:
    r"""Return densities of which each is the same factor of the one before.

    .. math:: d_n = f^n, \qquad n = 0, \ldots, R

    f = 0.8 removes a fifth of the survivors at every level, as in the source. Each is
    computed from n, not from the one before.

    Args:
        factor: f, kept after ÷ before a level, in (0, 1).
        levels: R, prunings after the dense level 0, at least 1.

    Returns:
        R + 1 densities, 1 first.

    Raises:
        InvalidInputError: If the factor is not in (0, 1) or ``levels`` below 1.

    Source:
        Frankle and Carbin, *The Lottery Ticket Hypothesis*, ICLR 2019.

    Example:
        >>> [round(d, 3) for d in densities_by_factor(0.8, 3)]
        [1.0, 0.8, 0.64, 0.512]
    """  # noqa: DOC502 - raised by _checked
    levels, factor = _checked(levels, "factor", factor)
    return tuple(factor**n for n in range(levels + 1))


def densities_by_target(target: float, levels: int) -> tuple[float, ...]:
    r"""Return densities that reach a target in equal factors.

    .. math:: d_n = d^{n/R}, \qquad n = 0, \ldots, R

    Args:
        target: d, the last one, in (0, 1).
        levels: R, prunings after the dense level 0, at least 1.

    Returns:
        R + 1 densities, 1 first and exactly ``target`` last.

    Raises:
        InvalidInputError: If the target is not in (0, 1) or ``levels`` below 1.

    Example:
        >>> densities_by_target(0.25, 2)
        (1.0, 0.5, 0.25)
    """  # noqa: DOC502 - raised by _checked
    levels, target = _checked(levels, "target", target)
    inner = tuple(target ** (n / levels) for n in range(levels))
    return (*inner, target)


def densities_by_share(share: float, levels: int) -> tuple[float, ...]:
    r"""Return densities that lose the same share of the original count each time.

    .. math:: d_n = 1 - n p, \qquad n = 0, \ldots, R

    p = 0.1 removes 10 % of the dense count at every level, as was done for BERT.

    Args:
        share: p, of the dense count, in (0, 1).
        levels: R, prunings after the dense level 0, at least 1.

    Returns:
        R + 1 densities, 1 first.

    Raises:
        InvalidInputError: If the share is not in (0, 1), ``levels`` is below 1, or
            they remove everything.

    Source:
        Chen et al., *The Lottery Ticket Hypothesis for Pre-trained BERT Networks*,
        NeurIPS 2020.

    Example:
        >>> [round(d, 3) for d in densities_by_share(0.1, 3)]
        [1.0, 0.9, 0.8, 0.7]
    """
    levels, share = _checked(levels, "share", share)
    if levels * share >= 1.0 - 1e-9:
        raise InvalidInputError(
            f"{levels} levels of {share} remove everything. Pass fewer levels than "
            f"{1 / share:g}."
        )
    return tuple(1.0 - n * share for n in range(levels + 1))


def _checked(levels: int, what: str, value: float) -> tuple[int, float]:
    found = as_number(value)
    if not 0.0 < found < 1.0:
        raise InvalidInputError(f"{what} is {value!r}. Pass a number in (0, 1).")
    return as_count("levels", levels), found
