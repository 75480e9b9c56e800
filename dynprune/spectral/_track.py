"""The extreme eigenpairs along a trajectory, each from the ones before."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from dynprune.core import (
    InvalidInputError,
    Outcome,
    Provenance,
    track as shown,
)
from dynprune.operators import AbstractOperator, HessianOperator
from dynprune.spectral._basis import overlap
from dynprune.spectral._eigenpairs import eigenpairs
from dynprune.spectral._lanczos import Which
from dynprune.spectral._results import Eigenpairs
from dynprune.spectral._track_results import SpectrumTrack
from dynprune.system import GradientSystem
from dynprune.trajectory import Trajectory


def track(
    trajectory: Trajectory,
    system: GradientSystem,
    k: int,
    *,
    which: Which = "LA",
    tol: float = 1e-4,
    max_matvecs: float | None = None,
    completeness: bool = False,
    warm: bool = True,
    operator: Callable[[GradientSystem, Tensor], AbstractOperator] = HessianOperator,
    seed: int = 0,
    throw: bool = True,
    progress: bool = False,
) -> SpectrumTrack:
    r"""Follow the k extreme eigenpairs along the snapshots of a run.

    .. math:: A(\theta_t)\, u_i(t) = \rho_i(t)\, u_i(t), \qquad
              O^{(t)}_{ij} = |\langle u_i(t), u_j(t+1) \rangle|,
              \quad \cos\angle_i = \sigma_i(U(t)^\top U(t+1))

    Each snapshot's iteration starts from a random combination of the vectors before
    with a tenth of noise, which saves about a fifth of the products where snapshots
    are near, and hardly any where they are far. A new eigenvalue whose vector lies
    outside of the span before is found from the noise, but can be missed where the
    next one is close to it; ``completeness`` tests that at each snapshot.

    Args:
        trajectory: The snapshots.
        system: Whose loss is differentiated; of the trajectory's coordinates. Buffers
            are the system's own at every snapshot.
        k: How many pairs, as of :func:`eigenpairs`.
        which: Which end.
        tol: Residual norm asked for, relative to the largest |Ritz value|.
        max_matvecs: Products to spend at each snapshot.
        completeness: Test at each snapshot that no eigenvalue is missing.
        warm: Start from the vectors of the snapshot before.
        operator: Makes A of the system and a state.
        seed: Of the random starts.
        throw: Raise if the tolerance was not met at a snapshot.
        progress: Draw a bar.

    Returns:
        Values with enclosures, overlaps, and products at each snapshot.

    Raises:
        InvalidInputError: If sizes differ, or as of :func:`eigenpairs`.
        ConvergenceError: If ``throw`` and a snapshot's pairs missed the tolerance;
            carries these pairs.

    Cost:
        The operator's set-up and the matvecs reported at each snapshot; the memory of
        :func:`eigenpairs` and k P-vectors more.

    Source:
        Gur-Ari, Roberts and Dyer, *Gradient descent happens in a tiny subspace*, 2018,
        arXiv:1812.04754, for the overlaps.

    Example:
        >>> x, y = torch.eye(3), torch.zeros(3, 1)
        >>> net = torch.nn.Linear(3, 1, bias=False)
        >>> system = GradientSystem(net, torch.nn.functional.mse_loss, (x, y))
        >>> path = Trajectory.from_states(torch.eye(3)[:2], [0, 5])
        >>> [round(value, 3) for value in track(path, system, 1).values[:, 0].tolist()]
        [0.667, 0.667]
    """  # noqa: DOC502 - raised by eigenpairs
    if trajectory.size != system.size:
        raise InvalidInputError(
            f"A trajectory of {trajectory.size} coordinates was given for a system of "
            f"{system.size}. Pass the system that the run was of."
        )
    found: list[Eigenpairs] = []
    turns: list[Tensor] = []
    angles: list[Tensor] = []
    previous: Tensor | None = None
    columns = trajectory.snapshots.T
    for column in shown(
        columns, label="spectral.track", show=progress, total=len(columns)
    ):
        state = column.to(device=system.device, dtype=system.dtype)
        op = operator(system, state)
        pairs = eigenpairs(
            op,
            k,
            which=which,
            tol=tol,
            max_matvecs=max_matvecs,
            completeness=completeness,
            start=previous if warm else None,
            seed=seed,
            throw=throw,
        )
        if previous is not None:
            turns.append(overlap(op.rows, previous, pairs.vectors))
            ends = [overlap(op.rows, V, V) for V in (previous, pairs.vectors)]
            angles.append(_angles(turns[-1], *ends))
        previous = pairs.vectors
        found.append(replace(pairs, vectors=pairs.vectors[:0]))
    met = all(pairs.outcome.ok for pairs in found)
    return SpectrumTrack(
        steps=trajectory.steps.clone(),
        values=torch.stack([pairs.values for pairs in found]),
        residual_norms=torch.stack([pairs.residual_norms for pairs in found]),
        enclosures=torch.stack([pairs.enclosures for pairs in found]),
        converged=torch.stack([pairs.converged for pairs in found]),
        overlaps=_stack(turns, (k, k), found[0]).abs().clamp_max(1.0),
        angles=_stack(angles, (k,), found[0]),
        matvecs=torch.tensor([pairs.matvecs for pairs in found], dtype=torch.float64),
        complete=_together([pairs.complete for pairs in found]),
        which=which,
        outcome=Outcome.CONVERGED if met else Outcome.NOT_CONVERGED,
        provenance=_provenance(system, found[0], warm=warm),
    )


def _stack(turns: list[Tensor], shape: tuple[int, ...], like: Eigenpairs) -> Tensor:
    return torch.stack(turns) if turns else like.values.new_zeros((0, *shape))


def _angles(turn: Tensor, before: Tensor, after: Tensor) -> Tensor:
    # bases in single precision are orthonormal to 1e-7, which a cosine would show as
    # an angle of 4e-4: X'Y is taken of L⁻¹X and R⁻¹Y, X'X = LL', Y'Y = RR'
    L, R = (torch.linalg.cholesky(gram) for gram in (before, after))
    half = torch.linalg.solve_triangular(L, turn, upper=False)
    whole = torch.linalg.solve_triangular(R, half.T, upper=False)
    cosines: Tensor = torch.linalg.svdvals(whole)
    return cosines.clamp_max(1.0).acos()


def _together(answers: list[bool | None]) -> bool | None:
    if None in answers:
        return None
    return all(answers)


def _provenance(system: GradientSystem, pairs: Eigenpairs, *, warm: bool) -> Provenance:
    own = pairs.provenance
    return Provenance(
        made_by="spectral.track",
        seed=own.seed,
        dtype=own.dtype,
        device=own.device,
        examples=int(system.examples),
        settings=tuple(sorted((dict(own.settings) | {"warm": warm}).items())),
        sources=own.sources,
    )
