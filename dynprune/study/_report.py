"""One HTML file that says what a study found and holds everything it shows."""

import base64
import itertools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from dynprune.study._findings import Findings, LedgerLine
from dynprune.study._report_tables import (
    cost_table,
    flow_table,
    ledger_groups,
    results_table,
    timing_table,
)
from dynprune.study._report_text import what_was_found
from dynprune.study.figures._figures import figures

TEMPLATE = "report.html.jinja"
SOURCES = (
    "Iterative magnitude pruning: J. Frankle, M. Carbin, The Lottery Ticket "
    "Hypothesis: Finding Sparse, Trainable Neural Networks, ICLR 2019.",
    "Rewinding: J. Frankle, G. K. Dziugaite, D. M. Roy, M. Carbin, Linear Mode "
    "Connectivity and the Lottery Ticket Hypothesis, ICML 2020.",
    "Shuffled and re-initialised controls: the same authors, Pruning Neural Networks "
    "at Initialization: Why Are We Missing the Mark?, ICLR 2021.",
    "SNIP: N. Lee, T. Ajanthan, P. H. S. Torr, SNIP: Single-shot Network Pruning based "
    "on Connection Sensitivity, ICLR 2019.",
    "GraSP: C. Wang, G. Zhang, R. Grosse, Picking Winning Tickets Before Training by "
    "Preserving Gradient Flow, ICLR 2020.",
    "SynFlow: H. Tanaka, D. Kunin, D. L. K. Yamins, S. Ganguli, Pruning neural "
    "networks without any data by iteratively conserving synaptic flow, NeurIPS 2020.",
    "Inertial manifold: Z. Zhang et al., Validating the Lottery Ticket Hypothesis with "
    "Inertial Manifold Theory, NeurIPS 2021. The operator and the map from gap to mask "
    "are not public: ours is a reconstruction.",
    "Koopman forecasts: A. S. Dogra, W. T. Redman, Optimizing Neural Networks via "
    "Koopman Operator Theory, NeurIPS 2020; J. H. Tu et al., On dynamic mode "
    "decomposition: Theory and applications, 2014.",
    "Renormalization group: W. T. Redman, T. Chen, Z. Wang, A. S. Dogra, Universality "
    "of Winning Tickets: A Renormalization Group Perspective, ICML 2022.",
    "Eigenvalues: K. Wu, H. Simon, Thick-restart Lanczos method for large symmetric "
    "eigenvalue problems, 2000.",
    "Corrected p-values: S. Holm, A simple sequentially rejective multiple test "
    "procedure, 1979.",
)
VERDICT_MEANINGS = (
    ("held", "measured, and within the claim's tolerance"),
    ("failed", "measured, and not within it"),
    ("vacuous", "true, but too weak to say anything"),
    ("not refuted", "sampled or not significant after correction: could only fail"),
    ("not applicable", "the theorem's hypothesis does not hold here"),
    ("not testable", "the study has not the numbers for it"),
)


def write_report(
    findings: Findings,
    lines: tuple[LedgerLine, ...],
    *,
    timings: Iterable[Mapping[str, Any]],
    provenance: Mapping[str, Any],
) -> str:
    """Write the report: one HTML text with its figures inside.

    Nothing in it is loaded from elsewhere and nothing runs; the same arguments give
    the same bytes.

    Args:
        findings: What was measured.
        lines: The ledger.
        timings: Rows of timings.csv.
        provenance: What provenance.json holds: versions, device, fingerprint …

    Returns:
        The HTML text.

    Cost:
        Some seconds, for the figures.
    """
    import jinja2
    import tomli_w

    text = Path(__file__).with_name(TEMPLATE).read_text(encoding="utf-8")
    page = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    ).from_string(text)
    config = findings.config
    drawn = [
        {
            "name": figure.name,
            "title": figure.title,
            "caption": figure.caption,
            "description": figure.description,
            "wide": _data_uri(figure.wide),
            "narrow": _data_uri(figure.narrow),
        }
        for figure in figures(findings).values()
    ]
    return page.render(
        config=config,
        problem=findings.problem,
        model=_model(findings),
        seeds=_seeds(config.seed_values),
        single=config.seeds == 1,
        found=what_was_found(findings, lines),
        ledger=ledger_groups(lines),
        meanings=VERDICT_MEANINGS,
        figures=drawn,
        results=results_table(findings),
        costs=cost_table(findings),
        flow=flow_table(findings),
        timings=timing_table(timings),
        toml=tomli_w.dumps(config.to_dict()),
        facts=_facts(provenance),
        sources=SOURCES,
    )


def _data_uri(svg: str) -> str:
    code = base64.b64encode(svg.encode()).decode()
    return f"data:image/svg+xml;base64,{code}"


def _model(findings: Findings) -> str:
    there = [str(name) for name in findings.results["model"].dropna().unique()]
    names = [name for name in there if name not in {"", "default"}]
    return ", ".join(names) or findings.config.model or "the task's own"


def _seeds(values: tuple[int, ...]) -> str:
    if len(values) < 3:
        return " and ".join(map(str, values))
    return f"{values[0]} to {values[-1]}"


def _facts(provenance: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = [
        [(f"{name}: {key}", str(part)) for key, part in value.items()]
        if isinstance(value, Mapping)
        else [(name.replace("_", " "), str(value))]
        for name, value in provenance.items()
        if name != "complete"
    ]
    return list(itertools.chain.from_iterable(rows))
