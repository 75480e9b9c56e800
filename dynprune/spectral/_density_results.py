"""A spectral density with its confidence band."""

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, final

import torch
from torch import Tensor

from dynprune.core import (
    InvalidInputError,
    Outcome,
    Provenance,
)
from dynprune.spectral import _plot_density
from dynprune.spectral._files import load, save

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes
    from pandas import DataFrame

_PLAIN = ("width", "level", "size", "matvecs")
_CURVATURE = "loss per parameter²"
_INVERSE = "1 / (loss per parameter²)"


@final
@dataclass(frozen=True, kw_only=True, eq=False, slots=True, weakref_slot=True)
class Density:
    r"""Hold a spectral density, smoothed by a Gaussian kernel, and its band.

    .. math:: \phi_\sigma(t) \approx \frac{1}{P} \Bigl( \sum_i g_\sigma(t - \theta_i)
       + \frac{1}{b} \sum_{l, j} w_{lj} \, g_\sigma(t - \nu_l) \Bigr)

    integrates to 1 over all t. The band is about the density convolved with this
    kernel, at each point for itself; it excludes the sampling error of the data.

    Args:
        grid: Points t, float64, shape ``(g,)``, units of A.
        values: :math:`\phi_\sigma`, shape ``(g,)``, per unit of A.
        lower: Lower end of the band, shape ``(g,)``.
        upper: Upper end.
        quadrature_error: The part of the band's half width that more steps would
            remove, shape ``(g,)``.
        locked: :math:`\theta_i`, eigenvalues that count once each, descending, shape
            ``(k,)``.
        nodes: :math:`\nu_l`, ascending, shape ``(n,)``.
        weights: :math:`w_{lj}` of node and probe, shape ``(n, b)``; each column sums
            to P − k.
        width: σ, the kernel's standard deviation, units of A.
        level: Coverage of the band at each point.
        size: P.
        matvecs: Products with A that were spent, those for locking included.
        outcome: NOT_CONVERGED if the quadrature's error makes most of the band.
        provenance: Where it comes from.
    """

    grid: Tensor
    values: Tensor
    lower: Tensor
    upper: Tensor
    quadrature_error: Tensor
    locked: Tensor
    nodes: Tensor
    weights: Tensor
    width: float
    level: float
    size: int
    matvecs: float
    outcome: Outcome
    provenance: Provenance

    def __repr__(self) -> str:
        """Name the density in one line, without tensors.

        Returns:
            The line.
        """
        return (
            f"Density(P={self.size}, locked={len(self.locked)}, "
            f"probes={self.weights.shape[1]}, width={self.width:.3g}, "
            f"matvecs={self.matvecs:g}, {self.outcome.name})"
        )

    def measure(self) -> tuple[Tensor, Tensor]:
        """Return the density before smoothing: points and their share of 1.

        Returns:
            Locked eigenvalues and nodes, ascending, shape ``(k + n,)``, and the share
            of all eigenvalues at each.
        """
        points = torch.cat([self.locked, self.nodes])
        counts = torch.cat([torch.ones_like(self.locked), self.weights.mean(1)])
        order = points.argsort()
        return points[order], counts[order] / self.size

    def cumulative(self, points: Tensor | None = None) -> Tensor:
        """Return the share of eigenvalues up to some points, without smoothing.

        Args:
            points: Shape ``(m,)``; the grid by default.

        Returns:
            From 0 to 1, shape ``(m,)``.
        """
        at = self.grid if points is None else points.to(self.nodes)
        places, shares = self.measure()
        sums = torch.cat([shares.new_zeros(1), shares.cumsum(0)])
        return sums[torch.searchsorted(places, at.contiguous(), right=True)]

    def wasserstein(self, eigenvalues: Tensor) -> float:
        r"""Return the Wasserstein-1 distance to a known spectrum.

        .. math:: W_1 = \int |F(t) - F_{\mathrm{exact}}(t)| \, dt

        of the two cumulative distributions, neither smoothed.

        Args:
            eigenvalues: All of them, shape ``(P,)``, any order.

        Returns:
            The distance, in units of A.

        Raises:
            InvalidInputError: If there are not P finite eigenvalues.
        """
        if eigenvalues.shape != (self.size,) or not bool(
            torch.isfinite(eigenvalues).all()
        ):
            raise InvalidInputError(
                f"eigenvalues have shape {tuple(eigenvalues.shape)} or are not finite. "
                f"Pass all {self.size}, e.g. torch.linalg.eigvalsh(op.dense())."
            )
        places, shares = self.measure()
        exact = eigenvalues.detach().to(places)
        points = torch.cat([places, exact])
        steps = torch.cat([shares, torch.full_like(exact, -1.0 / self.size)])
        order = points.argsort()
        gaps = steps[order].cumsum(0)[:-1].abs()
        return float(gaps @ points[order].diff())

    def summary(self) -> str:
        """Return five lines a person reads."""
        places, shares = self.measure()
        below = float(shares[places < 0.0].sum())
        shown = ", ".join(f"{value:.4g}" for value in self.locked[:4].tolist())
        more = ", …" if len(self.locked) > 4 else ""
        return "\n".join((
            f"spectral density of an operator on {self.size} coordinates, kernel "
            f"width {self.width:.3g}",
            f"  {len(self.locked)} eigenvalues locked: {shown}{more}",
            f"  the rest from {self.weights.shape[1]} probes, {len(self.nodes)} "
            f"nodes; all lie in [{float(places[0]):.4g}, {float(places[-1]):.4g}], "
            f"{100 * below:.3g} % below 0",
            f"  {100 * self.level:g} % band, half width up to "
            f"{float((self.upper - self.lower).max()) / 2:.2g} where the density is "
            f"{float(self.values[(self.upper - self.lower).argmax()]):.3g}",
            f"  {self.matvecs:g} matvecs. {self.outcome.value}",
        ))

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """Draw the density with its band, logarithmically, and the locked values.

        Args:
            ax: Where to draw; a new one if None.

        Returns:
            The axes.
        """
        return _plot_density.plot_density(self, ax)

    def to_frame(self) -> "DataFrame":
        """Return one row per grid point."""
        import pandas as pd

        frame = pd.DataFrame({
            "eigenvalue": self.grid.cpu().numpy(),
            "density": self.values.cpu().numpy(),
            "lower": self.lower.cpu().numpy(),
            "upper": self.upper.cpu().numpy(),
            "cumulative": self.cumulative().cpu().numpy(),
        })
        names = ("density", "lower", "upper")
        frame.attrs["units"] = {"eigenvalue": _CURVATURE} | dict.fromkeys(
            names, _INVERSE
        )
        return frame

    def to_xarray(self) -> "xr.Dataset":
        """Return the density over the grid and the weights over node and probe.

        Returns:
            A data set with axes ``eigenvalue``, ``node``, ``probe`` and ``pair``.

        Raises:
            InvalidInputError: If xarray is not installed.
        """
        try:
            import xarray as xr
        except ImportError as error:
            raise InvalidInputError(
                "to_xarray() needs xarray, which is not installed. Run `pip install "
                "xarray`, or use to_frame()."
            ) from error
        over = {
            "density": self.values,
            "lower": self.lower,
            "upper": self.upper,
        }
        found = xr.Dataset(
            {name: ("eigenvalue", part.cpu().numpy()) for name, part in over.items()}
            | {
                "weight": (("node", "probe"), self.weights.cpu().numpy()),
                "locked": ("pair", self.locked.cpu().numpy()),
            },
            coords={
                "eigenvalue": self.grid.cpu().numpy(),
                "node": self.nodes.cpu().numpy(),
            },
            attrs={name: getattr(self, name) for name in _PLAIN},
        )
        for name in over:
            found[name].attrs["units"] = _INVERSE
        for name in ("eigenvalue", "node", "locked"):
            found[name].attrs["units"] = _CURVATURE
        return found

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file.

        Args:
            path: Where it shall be.
        """
        save(path, "density", self)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> "Density":
        """Read what :meth:`save` wrote.

        Args:
            path: The file.

        Returns:
            The density, on the CPU.

        Raises:
            InvalidInputError: If the file is missing, truncated, or of another kind.
        """  # noqa: DOC502 - raised by load_result
        return load(path, "density", Density, what="a density")
