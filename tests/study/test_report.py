"""The report: one file, all of its numbers, nothing from elsewhere."""

import base64
import dataclasses
import math
import re
from collections.abc import Callable
from html.parser import HTMLParser
from typing import Any

import matplotlib as mpl
import pandas as pd
import pytest

from dynprune.study._config import METHODS
from dynprune.study._findings import VERDICTS, Findings, LedgerLine
from dynprune.study._report import write_report
from dynprune.study._report_tables import text_of
from dynprune.study._report_text import what_was_found
from dynprune.study.figures._data import figure_data
from dynprune.study.figures._figures import Figure, figures
from dynprune.study.figures._frames_pruning import (
    accuracy_frame,
    chosen_densities,
    cost_in_gradients,
)
from dynprune.study.figures._seed_intervals import interval, log_interval

FIGURES = (
    "accuracy-density",
    "accuracy-cost",
    "spectrum",
    "forecast-example",
    "forecast-error",
    "flow",
    "layer-densities",
)
Drawn = dict[str, Figure]
Make = Callable[..., Findings]
Lines = Callable[[Findings], tuple[LedgerLine, ...]]
PROVENANCE = {"versions": {"dynprune": "0.1", "torch": "2.13"}, "device": "cpu"}
TIMINGS = [{"unit": "imp-s0", "kind": "imp", "seed": 0, "seconds": 1.25, "host": "h"}]
SMALL = {"seeds": 2, "densities": (1.0, 0.5, 0.1), "methods": ("imp", "random")}


def build(findings: Findings, lines: tuple[LedgerLine, ...]) -> str:
    return write_report(findings, lines, timings=TIMINGS, provenance=PROVENANCE)


@pytest.fixture(scope="module")
def findings(findings_factory: Make) -> Findings:
    return findings_factory()


@pytest.fixture(scope="module")
def page(findings: Findings, lines_factory: Lines) -> str:
    return build(findings, lines_factory(findings))


@pytest.fixture(scope="module")
def drawn(findings_factory: Make) -> Drawn:
    return figures(findings_factory(**SMALL))


@pytest.fixture(scope="module")
def drawn_of_other_seeds(findings_factory: Make) -> Drawn:
    return figures(findings_factory(**{**SMALL, "seed": 50}))


class Page(HTMLParser):
    """Collects what a browser would load, the ids, the text and the tags."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.ids: list[str] = []
        self.tags: list[str] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in {"meta", "link", "img", "source", "br"}:
            self.open.append(tag)
        for name, value in attrs:
            if name in {"src", "srcset", "href", "data", "action", "poster"}:
                self.loaded.append(value or "")
            if name == "id":
                self.ids.append(value or "")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


# --- the page -----------------------------------------------------------------------


def test_every_method_and_claim_is_there(
    page: str, findings: Findings, lines_factory: Lines
) -> None:
    text = Page(page).text
    for method in ("dense", *METHODS):
        assert method in text
    for line in lines_factory(findings):
        assert line.claim in text
        assert line.key in text
    for verdict in VERDICTS:
        assert verdict in text


def test_nothing_is_loaded_from_elsewhere(page: str) -> None:
    read = Page(page)
    assert all(link.startswith(("#", "data:")) for link in read.loaded)
    assert not {"script", "iframe", "object", "embed"} & set(read.tags)
    assert "@import" not in page
    assert "url(" not in page
    assert "http" not in read.text


def test_the_html_is_well_formed(page: str) -> None:
    read = Page(page)
    assert read.open == []
    assert len(read.ids) == len(set(read.ids))
    targets = {link[1:] for link in read.loaded if link.startswith("#")}
    assert targets <= set(read.ids)


def test_figures_inside_the_page_refer_to_nothing(page: str) -> None:
    codes = re.findall(r"data:image/svg\+xml;base64,([A-Za-z0-9+/=]+)", page)
    assert len(codes) == 2 * len(FIGURES)
    for code in codes:
        svg = base64.b64decode(code).decode()
        links = re.findall(r'(?:href|src)="([^"]*)"|url\(([^)]*)\)', svg)
        assert all((a or b).startswith("#") for a, b in links)
        assert "<script" not in svg
        assert "<dc:date>" not in svg


def test_the_page_is_small(page: str) -> None:
    assert len(page.encode()) < 3_000_000


def test_a_second_build_gives_the_same_bytes_whatever_matplotlib_is_set_to(
    findings_factory: Make, lines_factory: Lines
) -> None:
    pages = []
    for size in (10.0, 30.0):
        again = findings_factory(**SMALL)
        with mpl.rc_context({"font.size": size, "lines.linewidth": size / 3}):
            before = dict(mpl.rcParams)
            pages.append(build(again, lines_factory(again)))
            assert dict(mpl.rcParams) == before
    assert pages[0] == pages[1]


def test_names_of_a_user_are_escaped(
    findings_factory: Make, lines_factory: Lines
) -> None:
    evil = "<script>alert(1)</script>"
    few = findings_factory(
        **{**SMALL, "methods": ("imp", "random", "<b>mine</b> $x_1$")},
        task=evil,
        layers=("<i>a</i>", "$b_$"),
    )
    lines = [
        dataclasses.replace(line, claim=evil, note=evil, unit=evil, theory=evil)
        for line in lines_factory(few)
    ]
    page = write_report(few, tuple(lines), timings=[], provenance={"host": evil})
    read = Page(page)
    assert not {"script", "b", "i"} & set(read.tags)
    assert evil in read.text
    assert "<b>mine</b>" in read.text


def test_one_seed_has_no_intervals_and_says_so(
    findings_factory: Make, lines_factory: Lines
) -> None:
    one = findings_factory(seeds=1)
    page = build(one, lines_factory(one))
    assert "One seed only" in page
    assert "±" not in Page(page).text
    assert accuracy_frame(one)[["low", "high"]].isna().all().all()
    assert Page(page).text.count("there are no intervals") >= 6


def test_parts_that_are_missing_are_left_out(
    findings_factory: Make, lines_factory: Lines
) -> None:
    few = findings_factory(**SMALL)
    bare = dataclasses.replace(
        few, flow=None, analyses={}, forecasts={}, layers=few.layers.iloc[:0]
    )
    assert tuple(figure_data(bare)) == ("accuracy-density", "accuracy-cost")
    text = Page(build(bare, ())).text
    assert "No claim was put to the test" in text
    assert "relevant" not in text


def test_numbers_that_are_none_do_not_stop_the_report(findings_factory: Make) -> None:
    few = findings_factory(**SMALL)
    for facts in few.analyses.values():
        facts.update(n_fast=None, spectral_gap=None, relative_gap=None, resolved=False)
        facts["sharpness_product"] = None
        facts["gaps"] = [
            {"n_fast": 1, "spectral_gap": None, "lower_bound": None, "resolved": False}
        ]
    for facts in few.forecasts.values():
        horizons = len(facts["horizons"])
        facts["bound"] = facts["measured"] = [None] * horizons
        for measures in facts["methods"].values():
            measures.update(error2growth=[None] * horizons, accuracy=[None] * horizons)
        facts["example"]["forecast"]["dmd-node"][0] = [None] * horizons
    results = few.results.assign(
        accuracy=few.results["accuracy"].where(few.results["seed"] > 0)
    )
    part = dataclasses.replace(few, results=results)
    text = Page(build(part, ())).text
    assert "resolved in 0 of 2 seeds" in text
    assert "forecast-error" not in figure_data(part)


def test_diverged_and_empty_numbers_can_be_drawn(findings_factory: Make) -> None:
    few = findings_factory(**SMALL)
    for facts in few.forecasts.values():
        facts["methods"]["dmd-node"]["error2growth"][-1] = 1e300
        facts["bound"][-1] = math.inf
    layers = few.layers.assign(layer_density=0.0)
    for facts in few.analyses.values():
        facts["values"] = [-value for value in facts["values"]]
        facts["enclosures"] = [[-high, -low] for low, high in facts["enclosures"]]
    part = dataclasses.replace(few, layers=layers)
    assert set(figures(part)) == set(FIGURES)


def test_many_layers_and_a_method_of_ones_own(findings_factory: Make) -> None:
    layers = tuple(f"stage{i // 5}.block{i % 5}.conv.weight" for i in range(26))
    deep = findings_factory(
        **{**SMALL, "methods": ("imp", "random", "mine")}, layers=layers
    )
    drawn = figures(deep)
    assert "26 layers" in drawn["flow"].caption
    assert "mine" in drawn["accuracy-density"].description


# --- the numbers --------------------------------------------------------------------


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_has_data(findings: Findings, name: str) -> None:
    frame = figure_data(findings)[name]
    assert len(frame)
    assert frame.select_dtypes("number").notna().any().any()


@pytest.mark.parametrize("name", FIGURES)
def test_other_seeds_change_every_figure(findings_factory: Make, name: str) -> None:
    first = figure_data(findings_factory(seed=0, seeds=2))[name]
    other = figure_data(findings_factory(seed=50, seeds=2))[name]
    assert not first.equals(other)


@pytest.mark.parametrize("name", FIGURES)
def test_other_numbers_change_both_renderings(
    drawn: Drawn, drawn_of_other_seeds: Drawn, name: str
) -> None:
    first, other = drawn[name], drawn_of_other_seeds[name]
    assert first.wide != other.wide
    assert first.narrow != other.narrow
    assert first.wide != first.narrow


def test_accuracies_are_means_with_t_intervals(findings: Findings) -> None:
    frame = accuracy_frame(findings)
    row = frame[(frame["method"] == "snip") & (frame["density"] == 0.02)].iloc[0]
    rows = findings.results
    values = (
        100
        * rows.loc[(rows["method"] == "snip") & (rows["density"] == 0.02), "accuracy"]
    )
    half = 2.7764451 * values.std(ddof=1) / math.sqrt(5)  # t quantile, 4 degrees
    assert row["accuracy"] == pytest.approx(values.mean(), rel=1e-12)
    assert row["high"] - row["accuracy"] == pytest.approx(half, rel=1e-7)
    assert row["seeds"] == 5


def test_cost_counts_two_gradients_a_product() -> None:
    frame = pd.DataFrame({
        "gradients": [1.0, 2.0],
        "hvps": [0.0, 5.0],
        "forwards": [3.0, math.nan],
    })
    assert cost_in_gradients(frame).tolist() == [2.0, 12.0]


def test_missing_numbers_do_not_count_as_seeds() -> None:
    assert interval([1.0, None, math.nan, 3.0])[::3] == (2.0, 2)
    assert log_interval([1.0, 4.0, 0.0, None])[::3] == (pytest.approx(2.0), 2)
    assert math.isnan(interval([])[0])


def test_panels_spread_over_the_compared_densities(findings: Findings) -> None:
    chosen = chosen_densities(findings, 3)
    assert set(chosen) <= set(findings.config.compared)
    assert chosen[-1] == 0.02
    assert chosen == tuple(sorted(chosen, reverse=True))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (1234.4, "1234"),
        (-0.5, "−0.5"),
        (3e7, "3 × 10⁷"),
        (math.inf, "∞"),
        (math.nan, "–"),
    ],
)
def test_numbers_are_written_for_reading(value: float, text: str) -> None:
    assert text_of(value) == text


def test_the_summary_follows_the_numbers(
    findings: Findings, lines_factory: Lines
) -> None:
    results: Any = findings.results.copy()
    results.loc[results["method"] == "grasp", "accuracy"] = 0.999
    better = dataclasses.replace(findings, results=results)
    lines = lines_factory(findings)
    before = " ".join(what_was_found(findings, lines))
    after = " ".join(what_was_found(better, lines))
    assert "GraSP, with" not in before
    assert "GraSP, with 99.9 ± 0.0 %" in after
    assert "2 held, 2 failed, 1 vacuous, 1 not refuted" in after
