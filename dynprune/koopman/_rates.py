"""Discrete eigenvalues as continuous rates."""

import math

import torch

from dynprune.core import InvalidInputError, Values


def _positive(dt: float) -> None:
    if not (math.isfinite(dt) and dt > 0):
        raise InvalidInputError(
            f"dt={dt} optimiser steps between snapshots. Pass a positive number."
        )


def rates(eigenvalues: Values, *, dt: float) -> Values:
    r"""Convert discrete-time Koopman eigenvalues to complex rates.

    A mode evolves as :math:`\mu_i^{t/\Delta t} = e^{\omega_i t}`, so
    :math:`\omega_i = \log\mu_i / \Delta t`, the principal logarithm: a frequency above
    half a cycle per snapshot is aliased.

    Args:
        eigenvalues: Discrete-time :math:`\mu`, complex or real, shape ``(k,)``.
        dt: Time between snapshots, in optimiser steps; positive.

    Returns:
        Complex rates, shape ``(k,)``, per optimiser step; a zero eigenvalue has real
        part minus infinity.

    Raises:
        InvalidInputError: If ``dt`` is not positive.

    Source:
        Tu et al., *On dynamic mode decomposition*, 2014, arXiv:1312.0041.

    Example:
        >>> rates(torch.tensor([-1.0 + 0j]), dt=1.0).imag
        tensor([3.1416])
    """  # noqa: DOC502 - raised by the check
    growth = growth_rates(eigenvalues, dt=dt)
    return torch.complex(growth, torch.angle(eigenvalues) / dt)


def growth_rates(eigenvalues: Values, *, dt: float) -> Values:
    r"""Convert discrete-time Koopman eigenvalues to growth rates.

    A mode evolves as :math:`\mu_i^{t/\Delta t} = e^{\omega_i t}`, so its rate is
    :math:`\operatorname{Re}\omega_i = \log|\mu_i| / \Delta t`.

    Args:
        eigenvalues: Discrete-time :math:`\mu`, complex or real, shape ``(k,)``.
        dt: Time between snapshots, in optimiser steps; positive.

    Returns:
        Real rates, shape ``(k,)``, per optimiser step; negative means decay.

    Raises:
        InvalidInputError: If ``dt`` is not positive.

    Source:
        Tu et al., *On dynamic mode decomposition*, 2014, arXiv:1312.0041.

    Example:
        >>> growth_rates(torch.tensor([1.0, 0.5]), dt=1.0)
        tensor([ 0.0000, -0.6931])
    """  # noqa: DOC502 - raised by the check
    _positive(dt)
    return torch.log(eigenvalues.abs()) / dt
