"""The product of a study: each claim next to what was measured, with a verdict."""

import math
from collections.abc import Sequence
from dataclasses import fields
from typing import TYPE_CHECKING

from dynprune.study._findings import Findings, LedgerLine
from dynprune.study.claims._draft import decide
from dynprune.study.claims._koopman import koopman_claims
from dynprune.study.claims._manifold import manifold_claims
from dynprune.study.claims._pruning import pruning_claims
from dynprune.study.claims._rgflow import rgflow_claims

if TYPE_CHECKING:
    import pandas as pd


def ledger(findings: Findings) -> tuple[LedgerLine, ...]:
    r"""Hold each theory's claims against what a study measured.

    A claim is decided by numbers of the findings alone. Where it rests on rejecting a
    null hypothesis it is *held* only if Holm's corrected p-value, over all p-values of
    the ledger, is at most .05 as well as the 95 % interval in its favour; it is *not
    refuted* if only the correction stands in the way, and *failed* if the interval is
    not in its favour. Sampled conditions can only fail or be not refuted.

    Args:
        findings: What was measured.

    Returns:
        One line a claim, in a fixed order: Koopman, inertial manifold,
        renormalization group, lottery ticket. What cannot be evaluated is *not
        testable*, with the reason in its note.

    Cost:
        Milliseconds.
    """
    return decide([
        *koopman_claims(findings),
        *manifold_claims(findings),
        *rgflow_claims(findings),
        *pruning_claims(findings),
    ])


def to_frame(lines: Sequence[LedgerLine]) -> "pd.DataFrame":
    """Return a ledger as a table, one row a claim.

    Args:
        lines: The ledger.

    Returns:
        The fields of :class:`LedgerLine` in order, the interval as ``low``, ``high``.
    """
    import pandas as pd

    names = [field.name for field in fields(LedgerLine)]
    at = names.index("interval")
    columns = [*names[:at], "low", "high", *names[at + 1 :]]
    rows = [
        {name: getattr(line, name) for name in names if name != "interval"}
        | {"low": line.interval[0], "high": line.interval[1]}
        for line in lines
    ]
    return pd.DataFrame(rows, columns=columns)


def summary(lines: Sequence[LedgerLine]) -> str:
    """Say in one line a claim what was found.

    Args:
        lines: The ledger.

    Returns:
        Verdict, key, measured value with its interval, predicted value, seeds.
    """
    if not lines:
        return "The ledger is empty."
    width = max(len(line.key) for line in lines)
    return "\n".join(
        f"{line.verdict:<14} {line.key:<{width}}  {_numbers(line)}".rstrip()
        for line in lines
    )


def _numbers(line: LedgerLine) -> str:
    if math.isnan(line.measured):
        return line.note
    text = f"{line.measured:.3g}"
    if not any(math.isnan(end) for end in line.interval):
        text += f" [{line.interval[0]:.3g}, {line.interval[1]:.3g}]"
    text += f" {line.unit}"
    if not math.isnan(line.predicted):
        text += f", predicted {line.predicted:.3g}"
    if not math.isnan(line.p_holm):
        text += f", p {line.p_holm:.2g}"
    return text
