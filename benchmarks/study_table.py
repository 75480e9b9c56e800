"""Turn a finished study into the committed table of benchmarks/results.

    python benchmarks/study_table.py dynprune-studies/mnist-... benchmarks/results/mnist

Copies config, ledger, results, timings and provenance, writes the report's figures as
SVG, and a README.md with accuracy by method and density, each method's difference to
dense (mean over seeds, paired 95 % t-interval), and cost.
"""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from dynprune.study import parse_config
from dynprune.study._collect import findings_of
from dynprune.study._store import Store
from dynprune.study.figures import figures
from dynprune.study.units import problem_of, units_of

COPIED = ("config.toml", "ledger.csv", "results.csv", "timings.csv", "provenance.json")


def interval(differences: np.ndarray) -> str:
    """Mean and half-width of the 95 % t-interval, in points."""
    mean = 100 * differences.mean()
    if len(differences) < 2:
        return f"{mean:+.2f}"
    half = stats.t.ppf(0.975, len(differences) - 1) * stats.sem(100 * differences)
    return f"{mean:+.2f} ± {half:.2f}"


def accuracy_table(results: pd.DataFrame) -> str:
    """Accuracy and paired difference to dense, in points, of each method."""
    dense = results[results.method == "dense"].set_index("seed").accuracy
    rows = []
    for (method, density), part in results.groupby(["method", "density"]):
        part = part.set_index("seed")
        paired = (part.accuracy - dense.loc[part.index]).to_numpy()
        rows.append({
            "method": method,
            "density %": f"{100 * density:.2f}",
            "test accuracy %": f"{100 * part.accuracy.mean():.2f}",
            "minus dense, points": interval(paired),
            "gradients": f"{part.gradients.mean():.1f}",
            "HVPs": f"{part.hvps.mean():.1f}",
            "seeds": str(len(part)),
            "order": -density,
        })
    frame = pd.DataFrame(rows).sort_values(["method", "order"]).drop(columns="order")
    lines = ["| " + " | ".join(frame.columns) + " |", "|---" * len(frame.columns) + "|"]
    lines += ["| " + " | ".join(row) + " |" for row in frame.to_numpy()]
    return "\n".join(lines)


def ledger_table(path: Path) -> str:
    """The ledger as a table in text."""
    ledger = pd.read_csv(path)
    lines = ["| claim | measured | interval | verdict |", "|---|---|---|---|"]
    for line in ledger.itertuples():
        unit = line.unit if isinstance(line.unit, str) else ""
        claim, unit = line.claim.replace("|", r"\|"), unit.replace("|", r"\|")
        lines.append(
            f"| {claim} | {line.measured:.4g} {unit} "
            f"| [{line.low:.4g}, {line.high:.4g}] | {line.verdict} |"
        )
    return "\n".join(lines).replace("[nan, nan]", "–").replace("nan ", "– ")


def main(folder: Path, target: Path, command: str) -> None:
    """Write the table of one study."""
    target.mkdir(parents=True, exist_ok=True)
    for name in COPIED:
        shutil.copy(folder / name, target / name)
    config = parse_config((folder / "config.toml").read_text())
    store = Store(folder=folder)
    findings = findings_of(store, config, units_of(config), problem_of(config))
    for name, figure in figures(findings).items():
        (target / f"{name}.svg").write_text(figure.wide)
    provenance = json.loads((folder / "provenance.json").read_text())
    timings = pd.read_csv(folder / "timings.csv")
    text = f"""# Study of {config.task}

Made by `{command}` (dynprune {provenance["versions"]["dynprune"]}, torch
{provenance["versions"]["torch"]}, Python {provenance["versions"]["python"]}, device
{config.device}, one thread per unit); {config.seeds} seeds from {config.seed},
{timings.seconds.sum():.0f} seconds of units in sum. One gradient is a pass over all
training examples; costs are totals, finding and training included. Intervals are
paired over seeds, 95 %.

{accuracy_table(findings.results)}

## Ledger

{ledger_table(folder / "ledger.csv")}
"""
    (target / "README.md").write_text(text)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
