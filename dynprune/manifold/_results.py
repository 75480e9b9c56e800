"""What was found about a split: conditions, and the whole report."""

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, final

from torch import Tensor

from dynprune.core import (
    AssumptionError,
    Coordinates,
    Cost,
    Outcome,
    Provenance,
    load_result,
    save_tensors,
)
from dynprune.manifold import _plot
from dynprune.manifold._readings import Score, leverage_scores
from dynprune.spectral import Eigenpairs, Gaps, gaps

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from pandas import DataFrame

Verdict = Literal["failed", "not refuted", "not applicable"]
_KIND = "manifold"
_PAIRS = ("values", "vectors", "residual_norms", "enclosures")
_PLAIN = (
    "n_fast",
    "smooth",
    "radius",
    "graph_distance",
    "learning_rate",
    "participation",
    "frozen_share",
    "freezing_product",
    "transient",
)


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class ConditionCheck:
    r"""Hold one theorem's inequality between a gap and a Lipschitz constant.

    Args:
        name: ``"C1"`` (gap > 2 Lip, inertial manifold), ``"C3"`` (invariant cones) or
            ``"C4"`` (multipliers of gradient descent).
        n_fast: k.
        radius: Largest distance from θ_* that was sampled, in units of a parameter.
        gap: The gap at θ_*: loss per parameter², for C4 per step.
        lipschitz: Sampled :math:`L_r`, a lower estimate; None for C3.
        margin: Left side minus right side, the smallest over the samples; None if not
            applicable.
        margins: The margin at each sample.
        verdict: ``"failed"``, ``"not refuted"`` or ``"not applicable"``.
        matvecs: HVPs spent.
        note: What else should be known.
    """

    name: str
    n_fast: int
    radius: float
    gap: float
    lipschitz: float | None
    margin: float | None
    margins: tuple[float, ...]
    verdict: Verdict
    matvecs: float
    note: str

    @property
    def lyapunov_perron_margin(self) -> float | None:
        """For C1, gap − 4 L_r: what the Lyapunov–Perron proof in the sup norm needs."""
        if self.name != "C1" or self.lipschitz is None:
            return None
        return self.gap - 4.0 * self.lipschitz

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON-serialisable values."""
        return asdict(self)

    def summary(self) -> str:
        """Return one line a person reads."""
        margin = "" if self.margin is None else f", margin {self.margin:.3g}"
        constant = (
            "" if self.lipschitz is None else f", sampled L_r {self.lipschitz:.3g}"
        )
        return (
            f"{self.name} {self.verdict} for k = {self.n_fast} within "
            f"{self.radius:.3g}: gap {self.gap:.3g}{constant}{margin}"
        )


@final
@dataclass(frozen=True, kw_only=True, eq=False, slots=True, weakref_slot=True)
class ManifoldReport:
    r"""Hold a gradient system split at a spectral gap, and what may be said of it.

    Args:
        pairs: Sharpest eigenpairs of :math:`H(\theta_*)`.
        n_fast: k of the largest relative gap: among resolved ones, or among all if none
            is resolved (see ``resolved``); None if no curvature is positive.
        conditions: C1, C3, and C4 where a learning rate was given.
        smooth: Whether no kink of ∇L was seen in the ball; None if not looked for.
        radius: Of the ball, in units of a parameter.
        graph_distance: :math:`|U_Q^\top \nabla L| / \lambda_{\min}(A_Q)`, how far the
            manifold lies from θ_*.
        learning_rate: η, or None.
        participation: :math:`d_{PR}` of the fast subspace, or None.
        frozen_share: :math:`\|\Pi_P(\theta_T - \theta_*)\| / \|\theta_T - \theta_*\|`
            of a later state, or None.
        freezing_product: :math:`\eta \lambda_{k+1} T` for T steps, or None; flat
            directions are frozen only if it is well below 1.
        transient: Optimiser steps before θ_*.
        state: :math:`\theta_*`, shape ``(P,)``.
        buffers: Buffers there, as (name, tensor).
        coordinates: What each coordinate is.
        mask_cost: Cost of transient and spectrum, all that a mask needs.
        cost: The same with the conditions.
        outcome: How the eigenpairs ended.
        provenance: Where it comes from.
    """

    pairs: Eigenpairs
    n_fast: int | None
    conditions: tuple[ConditionCheck, ...]
    smooth: bool | None
    radius: float | None
    graph_distance: float | None
    learning_rate: float | None
    participation: float | None
    frozen_share: float | None
    freezing_product: float | None
    transient: int
    state: Tensor
    buffers: tuple[tuple[str, Tensor], ...]
    coordinates: Coordinates
    mask_cost: Cost
    cost: Cost
    outcome: Outcome
    provenance: Provenance

    @property
    def size(self) -> int:
        """Number P of coordinates."""
        return self.coordinates.size

    @property
    def gaps(self) -> Gaps:
        """All gaps of the spectrum."""
        return gaps(self.pairs)

    @property
    def resolved(self) -> bool:
        """Whether the chosen gap is resolved."""
        return self.n_fast is not None and bool(self.gaps.at(self.n_fast)["resolved"])

    @property
    def spectral_gap(self) -> float | None:
        """The chosen gap, loss per parameter²."""
        return (
            None if self.n_fast is None else self.gaps.at(self.n_fast)["spectral_gap"]
        )

    @property
    def relative_gap(self) -> float | None:
        """The chosen gap divided by λ_k."""
        return (
            None if self.n_fast is None else self.gaps.at(self.n_fast)["relative_gap"]
        )

    @property
    def sharpness_product(self) -> float | None:
        """η λ_1: near 2 the sharpest direction is the slowest of all."""
        if self.learning_rate is None:
            return None
        return self.learning_rate * _value(self.pairs, 1)

    @property
    def attraction_rate(self) -> float | None:
        """(λ_k + λ_{k+1}) / 2 per unit of flow time; C5 needs it positive."""
        if self.n_fast is None:
            return None
        k = self.n_fast
        return 0.5 * (_value(self.pairs, k) + _value(self.pairs, k + 1))

    @property
    def applicable(self) -> bool:
        """Whether the manifold lies inside the ball and no kink was seen there."""
        return (
            self.graph_distance is not None
            and self.radius is not None
            and self.graph_distance < self.radius
            and self.smooth is not False
        )

    @property
    def certified_k(self) -> int:
        """Directions that the theorem slaves as far as was tested, else 0.

        n_fast if the gap is resolved, attraction is positive, the manifold lies in the
        ball, and C1 was tested there with no condition failed; 0 otherwise. Since C1 is
        sampled this is the most that can be said for k, not a proof.
        """
        tested = {check.name: check.verdict for check in self.conditions}
        held = tested.get("C1") == "not refuted" and "failed" not in tested.values()
        positive = (self.attraction_rate or 0.0) > 0.0
        if self.n_fast is None or not (
            held and self.resolved and self.applicable and positive
        ):
            return 0
        return self.n_fast

    @property
    def densities(self) -> dict[str, float | None]:
        """The three readings of k as a density of all P coordinates.

        ``slaving`` 1 − k/P, ``freezing`` k/P, ``participation`` d_PR.
        """
        if self.n_fast is None:
            return dict.fromkeys(("slaving", "freezing", "participation"))
        share = self.n_fast / self.size
        return {
            "slaving": 1.0 - share,
            "freezing": share,
            "participation": self.participation,
        }

    def scores(self, score: Score = "curvature") -> dict[str, Tensor]:
        """Return scores of every parameter by name; larger = keep.

        Args:
            score: As for :func:`dynprune.manifold.leverage_scores`.

        Returns:
            Name to tensor; zero where the system is masked.

        Raises:
            AssumptionError: If there is no positive curvature, so no split.
        """
        if self.n_fast is None:
            raise AssumptionError(
                f"The largest of {len(self.pairs)} eigenvalues is "
                f"{_value(self.pairs, 1):.3g}: no direction is sharp, so nothing "
                "can be scored. Use a longer transient, or another pruner."
            )
        found = leverage_scores(
            self.pairs, n_fast=self.n_fast, state=self.state, score=score
        )
        return self.coordinates.unflatten(found)

    def __repr__(self) -> str:
        """Name the report in one line, without tensors.

        Returns:
            The line.
        """
        verdicts = ", ".join(f"{c.name} {c.verdict}" for c in self.conditions)
        return (
            f"ManifoldReport(P={self.size}, n_fast={self.n_fast}, "
            f"resolved={self.resolved}, certified_k={self.certified_k}"
            f"{', ' if verdicts else ''}{verdicts})"
        )

    def summary(self) -> str:
        """Return a few lines a person reads."""
        lines = [
            f"Split of {self.size} coordinates after {self.transient} steps",
            f"  certified k = {self.certified_k} of {self.size}",
            _gap_line(self),
        ]
        lines += [f"  {check.summary()}" for check in self.conditions]
        if self.sharpness_product is not None:
            lines.append(f"  η λ_1 = {self.sharpness_product:.3g} (stability edge 2)")
        if self.graph_distance is not None and self.radius is not None:
            word = "inside" if self.graph_distance < self.radius else "OUTSIDE"
            lines.append(
                f"  manifold {self.graph_distance:.3g} from the state, {word} the ball "
                f"of radius {self.radius:.3g}"
            )
        if self.smooth is False:
            lines.append("  the gradient has kinks here: the theorem does not apply")
        readings = ", ".join(
            f"{name} {value:.4g}"
            for name, value in self.densities.items()
            if value is not None
        )
        if readings:
            lines.append(f"  readings as a density (not certified): {readings}")
        lines.append(
            f"  cost {self.cost.gradients:.3g} gradients, {self.cost.hvps:.4g} HVPs"
        )
        return "\n".join(lines)

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """Draw the spectrum with enclosures and the chosen gap.

        Args:
            ax: Where to draw; a new one if None.

        Returns:
            The axes.
        """
        return _plot.plot_split(self, ax)

    def to_frame(self) -> "DataFrame":
        """Return one row per eigenpair, with whether it counts as fast."""
        frame = self.pairs.to_frame()
        frame["fast"] = frame["pair"] <= (self.n_fast or 0)
        return frame

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file.

        Args:
            path: Where it shall be.
        """
        tensors = {name: getattr(self.pairs, name) for name in _PAIRS}
        tensors["state"] = self.state
        if self.coordinates.survivors is not None:
            tensors["survivors"] = self.coordinates.survivors
        tensors |= {f"buffer.{name}": part for name, part in self.buffers}
        save_tensors(path, tensors, _plain(self))

    @staticmethod
    def load(path: str | os.PathLike[str]) -> "ManifoldReport":
        """Read what :meth:`save` wrote.

        Args:
            path: The file.

        Returns:
            The report, on the CPU.

        Raises:
            InvalidInputError: If the file is missing, truncated, of another kind, or
                lacks a part.
        """  # noqa: DOC502 - raised by load_result
        return load_result(
            path,
            _KIND,
            _from_plain,
            what="a manifold report",
            writer="ManifoldReport.save",
        )


def _value(pairs: Eigenpairs, k: int) -> float:
    return float(pairs.values[k - 1])  # noqa: PD011 - no frame


def _gap_line(report: ManifoldReport) -> str:
    if report.n_fast is None:
        return "  no positive curvature: there is no split"
    word = "resolved" if report.resolved else "NOT resolved"
    gap = report.gaps.at(report.n_fast)
    return (
        f"  gap at n_fast = {report.n_fast} ({word}): {gap['spectral_gap']:.4g}, "
        f"relative {gap['relative_gap']:.3g}"
    )


def _plain(report: ManifoldReport) -> dict[str, Any]:
    pairs = report.pairs
    return {
        "kind": _KIND,
        **{name: getattr(report, name) for name in _PLAIN},
        "conditions": [check.to_dict() for check in report.conditions],
        "names": list(report.coordinates.names),
        "shapes": [list(shape) for shape in report.coordinates.shapes],
        "mask_cost": asdict(report.mask_cost),
        "cost": asdict(report.cost),
        "outcome": report.outcome.name,
        "provenance": report.provenance.to_dict(),
        "pairs": {
            "complete": pairs.complete,
            "which": pairs.which,
            "matvecs": pairs.matvecs,
            "outcome": pairs.outcome.name,
            "provenance": pairs.provenance.to_dict(),
        },
    }


def _check(plain: Mapping[str, Any]) -> ConditionCheck:
    values: dict[str, Any] = dict(plain) | {"margins": tuple(plain["margins"])}
    return ConditionCheck(**values)


def _from_plain(
    tensors: Mapping[str, Tensor], plain: Mapping[str, Any]
) -> ManifoldReport:
    pairs: dict[str, Any] = {name: tensors[name] for name in _PAIRS} | plain["pairs"]
    pairs["outcome"] = Outcome[pairs["outcome"]]
    pairs["provenance"] = Provenance.from_dict(pairs["provenance"])
    return ManifoldReport(
        pairs=Eigenpairs(**pairs),
        conditions=tuple(_check(check) for check in plain["conditions"]),
        state=tensors["state"],
        buffers=tuple(
            (name.removeprefix("buffer."), part)
            for name, part in tensors.items()
            if name.startswith("buffer.")
        ),
        coordinates=Coordinates(
            names=tuple(plain["names"]),
            shapes=tuple(tuple(shape) for shape in plain["shapes"]),
            survivors=tensors.get("survivors"),
        ),
        mask_cost=Cost(**plain["mask_cost"]),
        cost=Cost(**plain["cost"]),
        outcome=Outcome[plain["outcome"]],
        provenance=Provenance.from_dict(plain["provenance"]),
        **{name: plain[name] for name in _PLAIN},
    )
