"""What a sanity check returns: a table, differences with intervals, verdicts."""

from dataclasses import dataclass, field
from typing import Any, Literal, final

import torch
from torch import Tensor

from dynprune.core import Cost, Provenance, mean_interval
from dynprune.pruning import _sanity_check_plot
from dynprune.pruning._sanity_check_controls import (
    CONTROLS,
    REINITIALISED,
    SHUFFLED,
    TICKET,
)

Verdict = Literal["worse", "better", "within the seed noise"]
Interval = tuple[float, float, float]


@final
@dataclass(frozen=True, kw_only=True, eq=False, slots=True, weakref_slot=True)
class SanityCheck:
    r"""Hold how a ticket and its controls do after training, seed by seed.

    With :math:`q_{c,s}` the held-out quality of control c with seed s (the metric, or
    minus the loss where there is none), the *drop* of a control is the mean of the
    paired differences :math:`q_{\text{ticket},s} - q_{c,s}` with its Student interval
    over seeds. A control is *worse* if that interval lies above the margin.

    Args:
        measure: "metric" (larger is better) or "loss" (smaller is better).
        seeds: One for each column of the tables.
        losses: Held-out losses, shape ``(1 + controls, seeds)``, the ticket's first.
        metrics: Held-out metrics, the same shape; NaN where there is none.
        confidence: Coverage of the intervals.
        margin: Smallest drop that counts.
        densities: Density of each row's tickets, mean over seeds.
        how: How the networks were trained, see ``training.train_many``.
        cost: What all trainings took.
        provenance: Where it comes from.
    """

    measure: Literal["metric", "loss"]
    seeds: tuple[int, ...]
    losses: Tensor
    metrics: Tensor
    confidence: float
    margin: float
    densities: tuple[float, ...]
    how: str
    cost: Cost
    provenance: Provenance = field(repr=False)

    def __post_init__(self) -> None:
        """Copy the tables."""
        for name in ("losses", "metrics"):
            object.__setattr__(self, name, getattr(self, name).clone())

    @property
    def controls(self) -> tuple[str, ...]:
        """Names of the controls, in the order of the rows after the ticket's."""
        return CONTROLS

    @property
    def values(self) -> dict[str, Tensor]:
        """Row name to what is compared, the metric or the loss, shape ``(seeds,)``."""
        table = self.metrics if self.measure == "metric" else self.losses
        rows = (TICKET, *CONTROLS)
        return {row: part.clone() for row, part in zip(rows, table, strict=True)}

    @property
    def differences(self) -> dict[str, Tensor]:
        """Control to the paired drop of each seed, shape ``(seeds,)``."""
        values, sign = self.values, 1.0 if self.measure == "metric" else -1.0
        return {name: sign * (values[TICKET] - values[name]) for name in CONTROLS}

    @property
    def drops(self) -> dict[str, Interval]:
        """Control to mean paired drop, lower and upper end; positive = worse."""
        return {
            name: mean_interval(found.tolist(), confidence=self.confidence)
            for name, found in self.differences.items()
        }

    @property
    def verdicts(self) -> dict[str, Verdict]:
        """Control to whether it is worse by more than the seed noise."""
        return {name: self._verdict(drop) for name, drop in self.drops.items()}

    @property
    def uses_mask(self) -> bool:
        """Whether the shuffled and the re-initialised copies are both worse.

        That both hypotheses must be rejected needs no correction for their number.
        """
        verdicts = self.verdicts
        return all(verdicts[name] == "worse" for name in (SHUFFLED, REINITIALISED))

    def summary(self) -> str:
        """Return a few lines a person reads."""
        values, drops, verdicts = self.values, self.drops, self.verdicts
        said = "uses its mask" if self.uses_mask else "is not shown to use its mask"
        lines = [
            f"Sanity check over {len(self.seeds)} seeds, held-out {self.measure}: "
            f"the ticket {said}",
            f"{TICKET:<14}{float(values[TICKET].mean()):.4g}",
        ]
        for name in CONTROLS:
            mean, low, high = drops[name]
            lines.append(
                f"{name:<14}{float(values[name].mean()):.4g}  worse by {mean:.3g} "
                f"({self.confidence:.0%} interval {low:.3g} to {high:.3g}): "
                f"{verdicts[name]}"
            )
        lines.append(f"cost          {self.cost.gradients:.4g} gradients, {self.how}")
        return "\n".join(lines)

    def to_frame(self) -> Any:
        """Return a pandas frame, one row per control and seed.

        Returns:
            Columns control, seed, loss, metric, value (the one compared), drop (paired
            with the ticket, positive = worse), and density.
        """
        import pandas as pd

        values, differences = self.values, self.differences
        same = torch.zeros(len(self.seeds))
        rows = [
            {
                "control": name,
                "seed": seed,
                "loss": float(self.losses[row, column]),
                "metric": float(self.metrics[row, column]),
                "value": float(values[name][column]),
                "drop": float(differences.get(name, same)[column]),
                "density": self.densities[row],
            }
            for row, name in enumerate((TICKET, *CONTROLS))
            for column, seed in enumerate(self.seeds)
        ]
        frame = pd.DataFrame(rows)
        frame.attrs["units"] = {
            "loss": "held-out mean loss",
            "metric": "held-out mean metric",
            "drop": f"{self.measure}, positive = worse than the ticket",
            "density": "kept / prunable",
        }
        return frame

    def plot(self, ax: Any = None) -> Any:
        """Draw the drop of each control, seed by seed and with its interval.

        Args:
            ax: Matplotlib axes; a new figure by default.

        Returns:
            The axes.
        """
        points = {name: found.tolist() for name, found in self.differences.items()}
        return _sanity_check_plot.plot(points, self.drops, measure=self.measure, ax=ax)

    def __repr__(self) -> str:
        """Return one line."""
        return (
            f"SanityCheck(uses_mask={self.uses_mask}, seeds={len(self.seeds)}, "
            f"measure={self.measure!r})"
        )

    def _verdict(self, drop: Interval) -> Verdict:
        _, low, high = drop
        if low > self.margin:
            return "worse"
        return "better" if high < -self.margin else "within the seed noise"
