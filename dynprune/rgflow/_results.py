"""The flow of a set of IMP runs, beside its controls."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor

from dynprune.core import InvalidInputError, Provenance, load_result, save_tensors
from dynprune.rgflow._exponents import (
    LogSlopes,
    classify,
    eigenvalues,
    exponents,
    fixed_point_distance,
    over_seeds,
)
from dynprune.rgflow._plot import plot_flow

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr
    from matplotlib.axes import Axes

_KIND = "rgflow.RGFlow"


@final
@dataclass(frozen=True, kw_only=True, eq=False, slots=True, weakref_slot=True)
class RGFlow:
    r"""Hold the flow of S runs over R levels in G groups, and its exponents.

    The observables of each run and of its controls follow
    :math:`M_i(n) \approx A_i\, d_n^{-\sigma_i}`; see :func:`dynprune.rgflow.exponents`.
    Means and standard errors are over seeds (one run each): they say how exponents vary
    from run to run, not how well a line fits.

    Args:
        groups: Names of the groups.
        densities: Density of each level, shape ``(R,)``.
        shares: Observables, shape ``(S, R, G)``: shares that sum to one over the
            groups, or sums of magnitudes where ``normalisation`` is "absolute".
        slopes: Their log-slopes, ``(S, G)`` each.
        no_retraining: Observables of the dense-trained weights pruned to each density
            without retraining, ``(S, R, G)``, or None.
        no_retraining_slopes: Their log-slopes, or None.
        random: Observables of random pruning, ``(S, R, G)``, or None.
        random_slopes: Their log-slopes, or None.
        magnitude: ``"L1"`` or ``"L2"``.
        stage: ``"before"`` or ``"after"`` pruning.
        normalisation: ``"share"`` or ``"absolute"``.
        provenance: What made it.
    """

    groups: tuple[str, ...]
    densities: Tensor
    shares: Tensor
    slopes: LogSlopes
    no_retraining: Tensor | None = None
    no_retraining_slopes: LogSlopes | None = None
    random: Tensor | None = None
    random_slopes: LogSlopes | None = None
    magnitude: str = "L1"
    stage: str = "before"
    normalisation: str = "share"
    provenance: Provenance

    @property
    def seeds(self) -> int:
        """Number S of runs."""
        return len(self.shares)

    @property
    def seed_exponents(self) -> Tensor:
        """Exponent of each run, shape ``(S, G)``."""
        return self.slopes.exponents

    @property
    def exponents(self) -> Tensor:
        """Mean exponent σ over seeds, shape ``(G,)``."""
        return over_seeds(self.slopes.exponents)[0]

    @property
    def standard_errors(self) -> Tensor:
        """Standard error of ``exponents`` over seeds, ``(G,)``; NaN for one seed."""
        return over_seeds(self.slopes.exponents)[1]

    @property
    def r2(self) -> Tensor:
        """R² of the straight line, mean over the seeds that have one, ``(G,)``."""
        return self.slopes.r2.nanmean(0)

    @property
    def quadratic(self) -> Tensor:
        """Mean coefficient of (ln 1/d)², shape ``(G,)``: 0 if σ is constant."""
        return over_seeds(self.slopes.quadratic)[0]

    @property
    def quadratic_standard_errors(self) -> Tensor:
        """Standard error of ``quadratic`` over seeds, ``(G,)``; NaN for one seed."""
        return over_seeds(self.slopes.quadratic)[1]

    @property
    def classes(self) -> tuple[str, ...]:
        """Relevant, irrelevant, marginal or not testable, by |σ| > 2 se."""
        return classify(self.exponents, self.standard_errors)

    @property
    def no_retraining_exponents(self) -> Tensor | None:
        """Exponent of the no-retraining control per seed, ``(S, G)``, or None."""
        found = self.no_retraining_slopes
        return None if found is None else found.exponents

    @property
    def random_exponents(self) -> Tensor | None:
        """Exponent of the random-pruning control per seed, ``(S, G)``, or None."""
        found = self.random_slopes
        return None if found is None else found.exponents

    @property
    def excess(self) -> Tensor | None:
        """Mean over seeds of σ − σ(no retraining), ``(G,)``, or None."""
        control = self.no_retraining_exponents
        return None if control is None else over_seeds(self.seed_exponents - control)[0]

    @property
    def excess_standard_errors(self) -> Tensor | None:
        """Standard error of the paired difference ``excess``, ``(G,)``, or None."""
        control = self.no_retraining_exponents
        return None if control is None else over_seeds(self.seed_exponents - control)[1]

    @property
    def excess_classes(self) -> tuple[str, ...] | None:
        """Classes of ``excess`` by the same rule, or None."""
        value, error = self.excess, self.excess_standard_errors
        return None if value is None or error is None else classify(value, error)

    @property
    def eigenvalues(self) -> Tensor:
        """Growth ζ of each observable over each level, ``(S, R − 1, G)``."""
        return eigenvalues(self.shares)

    @property
    def fixed_point_distances(self) -> Tensor:
        """Fixed-point distance of each run, ``(S,)``."""
        return fixed_point_distance(self.shares, self.seed_exponents)

    @property
    def no_retraining_fixed_point_distances(self) -> Tensor | None:
        """Fixed-point distance of the no-retraining control, ``(S,)``, or None."""
        control = self.no_retraining_exponents
        if control is None or self.no_retraining is None:
            return None
        return fixed_point_distance(self.no_retraining, control)

    @property
    def random_fixed_point_distances(self) -> Tensor | None:
        """Fixed-point distance of random pruning, ``(S,)``, or None: the noise."""
        control = self.random_exponents
        if control is None or self.random is None:
            return None
        return fixed_point_distance(self.random, control)

    @property
    def excess_fixed_point_distances(self) -> Tensor | None:
        """Distance minus that without retraining, per seed, ``(S,)``, or None."""
        control = self.no_retraining_fixed_point_distances
        return None if control is None else self.fixed_point_distances - control

    def __repr__(self) -> str:
        """Return the size in one line."""
        return (
            f"RGFlow({self.seeds} seeds, {len(self.densities)} levels, "
            f"{len(self.groups)} groups, {self.magnitude} {self.normalisation} "
            f"{self.stage} pruning)"
        )

    def summary(self) -> str:
        """Say in a few lines what the flow does.

        Returns:
            Text, one line per subject.
        """
        d = self.densities
        kinds = ("relevant", "irrelevant", "marginal", "not testable")
        counted = ", ".join(
            f"{n} {kind}" for kind in kinds if (n := self.classes.count(kind))
        )
        lines = [
            f"RG flow of {self.seeds} IMP run(s), {len(d)} levels from density "
            f"{float(d[0]):.3g} to {float(d[-1]):.3g}, {len(self.groups)} groups "
            f"({self.magnitude} {self.normalisation}, {self.stage} pruning)",
            f"classes: {counted}" + _note(self.seeds),
            "exponents: "
            + _extremes(self.groups, self.exponents, self.standard_errors),
            _line("fixed-point distance", self.fixed_point_distances),
        ]
        distances = self.excess_fixed_point_distances
        if self.excess is None or distances is None:
            lines.append("controls: none; without them an exponent says little")
        else:
            errors = self.excess_standard_errors
            assert errors is not None  # both or neither
            lines.append(
                "excess over no retraining: "
                + _extremes(self.groups, self.excess, errors)
                + "; "
                + _line("distance", distances)
            )
        return "\n".join(lines)

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """Draw observables against 1/density on log-log axes, controls dashed.

        Args:
            ax: Axes to draw on; new ones if None.

        Returns:
            The axes: mean over seeds with its standard error, a colour per group; IMP
            solid, no retraining dashed, random pruning dotted.
        """
        return plot_flow(self, ax)

    def to_frame(self) -> "pd.DataFrame":
        """Return one row per group.

        Returns:
            Exponents, their standard errors and classes, and the controls (NaN if
            there are none).
        """
        import pandas as pd

        nothing = torch.full((len(self.groups),), torch.nan, dtype=torch.float64)
        columns = {
            "exponent": self.exponents,
            "standard_error": self.standard_errors,
            "r2": self.r2,
            "quadratic": self.quadratic,
            "quadratic_standard_error": self.quadratic_standard_errors,
            "no_retraining": self.no_retraining_exponents,
            "random": self.random_exponents,
            "excess": self.excess,
            "excess_standard_error": self.excess_standard_errors,
        }
        frame = pd.DataFrame({"group": list(self.groups), "class": list(self.classes)})
        for name, values in columns.items():
            found = nothing if values is None else values
            frame[name] = (found.mean(0) if found.ndim == 2 else found).numpy()
        frame["levels_used"] = self.slopes.levels_used.amin(0).numpy()
        frame.attrs["units"] = dict.fromkeys(
            columns, "dimensionless (per unit of ln 1/density)"
        )
        return frame

    def to_xarray(self) -> "xr.Dataset":
        """Return observables and exponents with named axes seed, level and group.

        Returns:
            A dataset; ``density`` is a coordinate of ``level``.

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

        axes = {"shares": self.shares, "exponent": self.slopes.exponents}
        axes |= {"quadratic": self.slopes.quadratic, "r2": self.slopes.r2}
        for name, values, slopes in (
            ("no_retraining", self.no_retraining, self.no_retraining_slopes),
            ("random", self.random, self.random_slopes),
        ):
            if values is not None and slopes is not None:
                axes |= {name: values, f"{name}_exponent": slopes.exponents}
        variables = {
            name: (
                ("seed", "level", "group") if v.ndim == 3 else ("seed", "group"),
                v.numpy().copy(),
            )
            for name, v in axes.items()
        }
        coords = {
            "group": list(self.groups),
            "level": range(len(self.densities)),
            "density": ("level", self.densities.numpy().copy()),
        }
        return xr.Dataset(variables, coords=coords)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the flow to one safetensors file.

        Args:
            path: Where; written whole or not at all.
        """
        tensors = {"densities": self.densities, "shares": self.shares}
        for name, values in (
            ("no_retraining", self.no_retraining),
            ("random", self.random),
        ):
            if values is not None:
                tensors[name] = values
        metadata = {
            "kind": _KIND,
            "groups": list(self.groups),
            "magnitude": self.magnitude,
            "stage": self.stage,
            "normalisation": self.normalisation,
            "provenance": self.provenance.to_dict(),
        }
        save_tensors(path, tensors, metadata)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> "RGFlow":
        """Read a flow that :meth:`save` wrote.

        Args:
            path: The file.

        Returns:
            The flow, its slopes computed again from the observables.

        Raises:
            InvalidInputError: If the file is missing, truncated, of another kind, or
                lacks a part.
        """  # noqa: DOC502 - raised by load_result
        return load_result(
            path, _KIND, _unpack, what="an RG flow", writer="RGFlow.save"
        )


def _unpack(tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> RGFlow:
    return make_flow(
        shares=tensors["shares"],
        densities=tensors["densities"],
        groups=tuple(metadata["groups"]),
        no_retraining=tensors.get("no_retraining"),
        random=tensors.get("random"),
        magnitude=metadata["magnitude"],
        stage=metadata["stage"],
        normalisation=metadata["normalisation"],
        provenance=Provenance.from_dict(metadata["provenance"]),
    )


def make_flow(
    *,
    shares: Tensor,
    densities: Tensor,
    groups: tuple[str, ...],
    no_retraining: Tensor | None,
    random: Tensor | None,
    magnitude: str,
    stage: str,
    normalisation: str,
    provenance: Provenance,
) -> RGFlow:
    """Fit log-slopes to checked observables and put the result together.

    Args:
        shares: Shape ``(S, R, G)``.
        densities: Shape ``(R,)``.
        groups: G names.
        no_retraining: Of the control, or None.
        random: Of the control, or None.
        magnitude: ``"L1"`` or ``"L2"``.
        stage: ``"before"`` or ``"after"``.
        normalisation: ``"share"`` or ``"absolute"``.
        provenance: What made it.

    Returns:
        The flow; it keeps the tensors, which nobody else may hold.
    """
    return RGFlow(
        groups=groups,
        densities=densities,
        shares=shares,
        slopes=exponents(shares, densities),
        no_retraining=no_retraining,
        no_retraining_slopes=(
            None if no_retraining is None else exponents(no_retraining, densities)
        ),
        random=random,
        random_slopes=None if random is None else exponents(random, densities),
        magnitude=magnitude,
        stage=stage,
        normalisation=normalisation,
        provenance=provenance,
    )


def _line(what: str, per_seed: Tensor) -> str:
    mean, error = over_seeds(per_seed)
    return f"{what} {float(mean):.3g} ± {float(error):.2g}"


def _note(seeds: int) -> str:
    return " (one seed has no standard error; run more)" if seeds < 2 else ""


def _extremes(groups: tuple[str, ...], values: Tensor, errors: Tensor) -> str:
    finite = values.isfinite().nonzero().flatten().tolist()
    if not finite:
        return "none"
    low = min(finite, key=lambda i: float(values[i]))
    high = max(finite, key=lambda i: float(values[i]))
    return " … ".join(
        f"{float(values[i]):+.3g} ± {float(errors[i]):.2g} ({groups[i]})"
        for i in (low, high)
    )
