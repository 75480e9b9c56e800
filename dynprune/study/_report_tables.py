"""The report's tables as plain rows of text."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

from dynprune.study._findings import Findings, LedgerLine
from dynprune.study._report_text import percent, plus_minus
from dynprune.study.figures._frames_pruning import (
    chosen_densities,
    cost_in_gradients,
    methods_of,
)
from dynprune.study.figures._strokes import label_of

COST_COLUMNS = 3


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """A table of text.

    Args:
        head: Column titles.
        rows: Cells, the first of each row its title.
        keys: What the CSV files call each row; empty if nothing else.
    """

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    keys: tuple[str, ...] = ()


def text_of(value: float, *, digits: int = 3) -> str:
    """Write a number for reading.

    Args:
        value: The number; NaN for none.
        digits: Significant ones.

    Returns:
        A dash for NaN; powers of ten where zeros would hide the number.

    Example:
        >>> text_of(0.12345), text_of(-1.5e-7), text_of(float("nan"))
        ('0.123', '−1.5 × 10⁻⁷', '–')
    """
    if math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if value == 0.0 or 1e-4 <= abs(value) < 1e6:
        places = 0 if abs(value) >= 10**digits else None
        text = f"{value:.0f}" if places == 0 else f"{value:.{digits}g}"
    else:
        base, power = f"{value:.{digits - 1}e}".split("e")
        base = base.rstrip("0").rstrip(".")
        raised = str(int(power)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
        text = f"{base} × 10{raised}"
    return text.replace("-", "−")


def ledger_groups(lines: Sequence[LedgerLine]) -> list[dict[str, Any]]:
    """Group the ledger by theory, in its own order.

    Args:
        lines: The ledger.

    Returns:
        For each theory its name and its rows of text.
    """
    theories = dict.fromkeys(line.theory for line in lines)
    return [
        {
            "theory": theory,
            "rows": [_ledger_row(line) for line in lines if line.theory == theory],
        }
        for theory in theories
    ]


def results_table(findings: Findings) -> Table:
    """Tabulate accuracy, methods by densities.

    Args:
        findings: What was measured.

    Returns:
        Mean ± half of the 95 % interval, in percent.
    """
    results = findings.results
    densities = sorted(results["density"].unique(), reverse=True)
    rows = []
    for method in methods_of(results["method"]):
        of_method = results[results["method"] == method]
        cells = [
            plus_minus(of_method.loc[of_method["density"] == d, "accuracy"], scale=100)
            for d in densities
        ]
        rows.append((label_of(method), *cells))
    return Table(
        head=("method", *map(percent, densities)),
        rows=tuple(rows),
        keys=tuple(methods_of(results["method"])),
    )


def cost_table(findings: Findings) -> Table:
    """Tabulate the mean total cost of a trained ticket, methods by densities.

    Args:
        findings: What was measured.

    Returns:
        Per density: gradients, HVPs, forwards and their sum in gradient equivalents.
    """
    results = findings.results.assign(total=cost_in_gradients(findings.results))
    kinds = ("gradients", "hvps", "forwards", "total")
    words = ("gradients", "HVPs", "forwards", "gradient equivalents")
    densities = chosen_densities(findings, COST_COLUMNS)
    rows = []
    for method in methods_of(results["method"]):
        cells = []
        for density in densities:
            at = results["density"] == (1.0 if method == "dense" else density)
            there = results[at & (results["method"] == method)]
            mean = there[list(kinds)].mean()
            cells += [text_of(float(mean[kind]), digits=4) for kind in kinds]
        rows.append((label_of(method), *cells))
    head = [f"{word} at {percent(d)}" for d in densities for word in words]
    return Table(
        head=("method", *head),
        rows=tuple(rows),
        keys=tuple(methods_of(results["method"])),
    )


def timing_table(timings: Iterable[Mapping[str, Any]]) -> Table:
    """Tabulate the seconds of each kind of unit.

    Args:
        timings: Rows of timings.csv.

    Returns:
        Kind, number of units, seconds in all and of the longest.
    """
    seconds: dict[str, list[float]] = {}
    for row in timings:
        value = row.get("seconds")
        if value is not None:
            seconds.setdefault(str(row.get("kind", "")), []).append(float(value))
    rows = [
        (kind, str(len(values)), f"{math.fsum(values):.1f}", f"{max(values):.1f}")
        for kind, values in seconds.items()
    ]
    return Table(
        head=("unit", "number", "seconds in all", "longest (s)"), rows=tuple(rows)
    )


def flow_table(findings: Findings) -> Table | None:
    """Tabulate the exponents of the flow with their controls.

    Args:
        findings: What was measured.

    Returns:
        One row a layer, or None without a flow.
    """
    if findings.flow is None:
        return None
    frame = findings.flow.to_frame()
    rows = [
        (
            str(row["group"]),
            _with_error(row["exponent"], row["standard_error"]),
            str(row["class"]),
            text_of(float(row["r2"])),
            text_of(float(row["no_retraining"])),
            text_of(float(row["random"])),
            _with_error(row["excess"], row["excess_standard_error"]),
        )
        for _, row in frame.iterrows()
    ]
    error = " ± s.e." if findings.flow.seeds > 1 else ""
    head = ("layer", f"σ{error}", "class", "R²", "σ, no retraining", "σ, random")
    return Table(head=(*head, f"excess{error}"), rows=tuple(rows))


def _with_error(value: float, error: float) -> str:
    text = text_of(float(value))
    return text if math.isnan(error) else f"{text} ± {text_of(float(error), digits=2)}"


def _ledger_row(line: LedgerLine) -> dict[str, Any]:
    low, high = line.interval
    measured = text_of(line.measured)
    if not (math.isnan(low) or math.isnan(high)):
        measured += f" [{text_of(low)}, {text_of(high)}]"
    if line.unit and not math.isnan(line.measured):
        measured += f" {line.unit}"
    return {
        "key": line.key,
        "claim": line.claim,
        "predicted": text_of(line.predicted),
        "measured": measured,
        "p": "–" if math.isnan(line.p_holm) else _probability(line.p_holm),
        "seeds": f"{line.seeds} seed{'' if line.seeds == 1 else 's'}",
        "verdict": line.verdict,
        "mark": line.verdict.replace(" ", "-"),
        "note": line.note,
    }


def _probability(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.0995 else f"{p:.2f}"
