"""One measured value beside what chance gives."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

ALL = "all"


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    r"""Hold one value with its null.

    Args:
        measure: Its name.
        layer: Parameter name, or ``"all"``.
        tickets: Labels of the one or two tickets it is of.
        value: The value; NaN where the measure is not defined.
        null_mean: Mean under the null; NaN where there is none.
        null_sd: Standard deviation under the null.
        z: (value − null_mean) / null_sd; NaN where the null does not vary. Where mean
            and sd are of K draws, z has the heavier tails of
            :math:`\sqrt{1 + 1/K} \, t_{K-1}` if the null is normal, not those of a
            normal number: with K = 20, |z| > 2 has chance 0.07, and p is what to trust.
        p: Two-sided p-value.
    """

    measure: str
    layer: str
    tickets: tuple[str, ...]
    value: float
    null_mean: float = math.nan
    null_sd: float = math.nan
    z: float = math.nan
    p: float = math.nan

    @staticmethod
    def against(
        measure: str,
        layer: str,
        tickets: tuple[str, ...],
        *,
        value: float,
        null_mean: float,
        null_sd: float,
        p: float,
    ) -> "Reading":
        """Make a reading and compute its z.

        Args:
            measure: Its name.
            layer: Parameter name, or ``"all"``.
            tickets: Labels.
            value: The value.
            null_mean: Mean under the null.
            null_sd: Standard deviation under the null.
            p: Two-sided p-value.

        Returns:
            The reading.
        """
        # a null that varies by rounding only gives no z
        varies = null_sd > 1e-12 * abs(null_mean)
        return Reading(
            measure=measure,
            layer=layer,
            tickets=tickets,
            value=value,
            null_mean=null_mean,
            null_sd=null_sd,
            z=(value - null_mean) / null_sd if varies else math.nan,
            p=p if value == value and null_mean == null_mean else math.nan,
        )

    @staticmethod
    def sampled(
        measure: str,
        layer: str,
        tickets: tuple[str, ...],
        *,
        value: float,
        null: Sequence[float],
    ) -> "Reading":
        r"""Make a reading against K values drawn under the null.

        With c the mean of all K + 1 values,

        .. math:: p = \frac{1 + \#\{k : |v_k - c| \ge |v - c|\}}{K + 1},

        a permutation test: valid where the value is exchangeable with the draws, never
        below 1 / (K + 1). Draws where the measure is not defined are left out.

        Args:
            measure: Its name.
            layer: Parameter name, or ``"all"``.
            tickets: Labels.
            value: The value v.
            null: The :math:`v_k`.

        Returns:
            The reading; without a null if fewer than two draws are finite.

        Example:
            >>> draws = [0.9, 1.0, 1.1]
            >>> found = Reading.sampled("m", "all", ("a",), value=2.0, null=draws)
            >>> round(found.z, 6), found.p
            (10.0, 0.25)
        """
        drawn = [float(part) for part in null if math.isfinite(part)]
        if len(drawn) < 2 or not math.isfinite(value):
            return Reading(measure=measure, layer=layer, tickets=tickets, value=value)
        mean = math.fsum(drawn) / len(drawn)
        spread = math.fsum((part - mean) ** 2 for part in drawn) / (len(drawn) - 1)
        centre = math.fsum([*drawn, value]) / (len(drawn) + 1)
        slack = 1e-12 * max(abs(value), *(abs(part) for part in drawn))
        far = abs(value - centre) - slack
        beyond = sum(abs(part - centre) >= far for part in drawn)
        return Reading.against(
            measure,
            layer,
            tickets,
            value=value,
            null_mean=mean,
            null_sd=math.sqrt(spread),
            p=(1 + beyond) / (len(drawn) + 1),
        )
