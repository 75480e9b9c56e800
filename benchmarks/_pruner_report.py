"""README.md, tables and figures of the comparison, from the rows alone."""

import math
import textwrap
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from _pruner_figures import accuracy_density, similarity, square
from _pruner_methods import DENSE, GROUPS, METHODS
from _pruner_results import COLUMNS, Results
from _pruner_settings import SETTINGS, Setting, imp_densities
from _pruner_similarity import COLUMNS as PAIRS, similarities
from _pruner_units import Unit, is_done, replace_text
from _pruner_words import (
    best_of,
    complete,
    group_table,
    likeness,
    ordering,
    points,
    seeds_of,
)

from dynprune.core import mean_interval

_ORDERED = 0.03
# ResNet-20 on CIFAR-10, per cent, as published: other data copy, longer training
_PUBLISHED = (
    ("Gem-Miner, 300 epochs (Rare Gems)", 1.44, "77.89"),
    ("Gem-Miner, 3000 epochs (Rare Gems)", 1.44, "79.50"),
    ("IMP with warm-up, 3000 epochs (Rare Gems)", 1.44, "74.52"),
    ("learning-rate rewinding, 3000 epochs (Rare Gems)", 1.44, "80.21"),
    ("Gem-Miner (Rare Gems)", 3.72, "83.4"),
    ("Gem-Miner, shuffled (Rare Gems)", 3.72, "78.73"),
    ("Gem-Miner, re-initialised (Rare Gems)", 3.72, "78.6"),
    ("iterative learning-rate rewinding (Renda et al.)", 21.0, "91.89"),
)


def write_report(
    results: Results, units: list[Unit], *, work: Path, command: str
) -> None:
    """Write every table, figure and the README of a results folder.

    Args:
        results: All rows.
        units: Those that were asked for now.
        work: Where tickets lie.
        command: What was called.
    """
    settings = _settings(results)
    seeds = 1 + max(
        *(key[4] for key in results.rows), *(max(unit.seeds) for unit in units), 0, 0
    )
    short = [one for one in settings if one.recipe != "full"]
    pairs = pd.DataFrame(
        similarities(
            short, seeds, work=work, folder=results.folder, blank=results.blank
        ),
        columns=list(PAIRS),
    )
    results.provenance["command"] = command
    results.write()
    frame = pd.DataFrame(results.rows.values(), columns=list(COLUMNS))
    checks = pd.DataFrame(results.checks.values())
    missing = [unit for unit in units if not is_done(unit, results.rows_of(unit))]
    titles = {one.task: one.title for one in short}
    drawn = frame[frame.recipe != "full"]
    if len(drawn):
        accuracy_density(drawn, titles, results.folder / "accuracy-density.svg")
    parts = [_opening(results, missing, command)]
    if len(drawn):
        parts.append(_answer(settings, frame, pairs))
        parts.append("![test error against density](accuracy-density.svg)")
    parts.append(_methods(short))
    for setting in settings:
        own = frame[(frame.task == setting.task) & (frame.recipe == setting.recipe)]
        name = f"{setting.task}-{setting.recipe}"
        machines = results.provenance["machines"].get(name, {})
        made = prose(f"{_recipe(setting)} {_made(machines)}")
        if setting.recipe == "full":
            parts += _full(setting, own, made=made)
            continue
        alike = pairs[pairs.task == setting.task]
        parts += _task(setting, own, alike, checks, results.folder, made=made)
    replace_text(results.folder / "README.md", "\n\n".join(parts) + "\n")


def _settings(results: Results) -> list[Setting]:
    found = []
    for plain in results.provenance["settings"].values():
        one = Setting.of(plain)
        if any(key[:2] == (one.task, one.recipe) for key in results.rows):
            found.append(one)
    order = list(SETTINGS)
    return sorted(found, key=lambda one: (order.index(one.task), one.recipe == "full"))


def table(rows: Iterable[Mapping[str, Any]]) -> str:
    """Return rows as a table in Markdown."""
    rows = list(rows)
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    for row in rows:
        cells = [str(row.get(column, "–")).replace("|", r"\|") for column in columns]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _opening(results: Results, missing: list[Unit], command: str) -> str:
    seconds = sum(results.provenance["seconds"].values())
    done = len({(key[0], key[1], key[2], key[4]) for key in results.rows})
    state = "Every unit that was asked for is there."
    if missing:
        state = (
            f"**Partial:** {len(missing)} units that were asked for are missing "
            f"({_count(missing)}); their cells are empty or rest on fewer seeds."
        )
    parts = (
        "# Pruners against IMP",
        "What do sparse networks that different methods find on the same data have in "
        "common? Every method prunes the same networks (same initial weights per seed) "
        "to the same densities, and every ticket is trained by one recipe in the same "
        "data order (fine-tuned ones from trained weights).",
        f"Written by `{command}`; which machine computed which comparison is said "
        f"with it. One thread per unit, {seconds:.0f} seconds of units in sum, other "
        "work on the machines at times. "
        f"{done} units (task, method, seed). {state} Results are as they came: nothing "
        "was tuned, and no unit that was computed is left out.",
        "Accuracies are on the test split, in per cent: mean over seeds ± half of the "
        "95 % Student interval (with three seeds 2.5 standard deviations); a number "
        "alone rests on one seed. Choices between methods use validation accuracy. "
        "`units.csv` has every row with its cost, `similarity.csv` every pair of "
        "masks, `sanity.csv` every control.",
    )
    return "\n\n".join(map(prose, parts))


def prose(text: str) -> str:
    """Wrap a paragraph."""
    return textwrap.fill(text, 88, break_long_words=False, break_on_hyphens=False)


def _answer(settings: list[Setting], frame: pd.DataFrame, pairs: pd.DataFrame) -> str:
    parts = ["## What the numbers say"]
    for setting in settings:
        own = frame[(frame.task == setting.task) & (frame.recipe == setting.recipe)]
        density = _ordered(setting)
        said, _ = ordering(own, density)
        long = f", {setting.steps:,} steps" if setting.recipe == "full" else ""
        parts.append(
            f"**{setting.title}{long}: accuracy.** Is it IMP > magnitude after "
            f"training > at initialisation > random, at {100 * density:g} %? {said} "
            f"Best by validation accuracy: {best_of(own, density)}."
        )
        if long:
            continue
        least = min(setting.alike)
        alike = pairs[(pairs.task == setting.task) & (pairs.density == least)]
        words = likeness(alike, own, least)
        if words:
            parts.append(f"**{setting.title}: masks.** {' '.join(words)}")
    return "\n\n".join(map(prose, parts))


def _ordered(setting: Setting) -> float:
    return _ORDERED if _ORDERED in setting.densities else setting.checked


def _count(missing: list[Unit]) -> str:
    found: dict[str, int] = {}
    for unit in missing:
        what = f"{unit.setting.task}, {unit.setting.recipe} recipe"
        kind = f"{what}, sanity checks" if unit.kind == "sanity" else what
        found[kind] = found.get(kind, 0) + 1
    return "; ".join(f"{name}: {number}" for name, number in found.items())


def _recipe(setting: Setting) -> str:
    how = f"Adam at {setting.learning_rate:g}"
    if not setting.adam:
        how = (
            f"SGD at {setting.learning_rate:g} with momentum 0.9, a cosine and weight "
            f"decay {setting.decay:g}"
        )
    shifted = ", images shifted and flipped" if setting.augment else ""
    levels = len(imp_densities(setting.densities, factor=setting.factor)) - 1
    return (
        f"{setting.steps:,} steps of {how}, batch {setting.batch_size}{shifted}; IMP "
        f"in {levels} levels of about {100 * (1 - setting.factor):.0f} %, rewound to "
        f"step {setting.rewind_step}."
    )


def _made(machines: Mapping[str, str]) -> str:
    if not machines:
        return ""
    return f"Made on {'; '.join(machines)}."


def _methods(settings: list[Setting]) -> str:
    one = settings[0] if settings else next(iter(SETTINGS.values()))
    rows = [
        {"method": f"`{name}`", "when": method.group, "what": method.title}
        for name, method in METHODS.items()
        if name != DENSE
    ]
    return f"""## Methods and budgets

{table(sorted(rows, key=lambda row: GROUPS.index(row["when"])))}

- Networks, steps and optimiser are said with each comparison; MNIST's recipe is that
  of the lottery-ticket paper, shortened from 50,000 steps, with fused Adam. IMP is
  global, in levels that pass exactly through the densities of the table.
- Scores at initialisation (snip, iterative-snip, force, grasp, synflow's shape), the
  Hessian of manifold and of obd ({one.matvecs} products), the Fisher matrix of
  woodfisher and the inputs of sparsegpt are taken on the **first {one.scored:,}
  training examples**; costs count them as that share of a pass.
- gem-miner and edge-popup train their scores for {one.mask_epochs} passes (batch
  {one.mask_batch}; sources: 150 and 100), gem-miner freezes after every pass, with
  exact counts; both then train the weights that they found the mask on, signed
  constants. early-bird is unstructured (our extension) and rewound to the start.
- *Fine-tuned* methods prune the trained dense network once and train on for as many
  steps again; *during training* masks change while the one training runs, and
  nothing is trained again.
- snip, iterative-snip, force and grasp score in **eval mode**, where batch norms at
  initialisation divide by one: of no concern to LeNet and the conv net, but ResNet-20
  is another network in that mode (grasp there is below random).
- Masks are compared within a seed, and means are over the seeds that have all pairs;
  they are compared between seeds also where their tickets are not trained yet.
- The recipe of the lottery-ticket paper prunes layer by layer (20 %, the output layer
  10 %): imp-layer and magnitude-layer, at 50,000 steps; the hidden layers have the
  density of the table, the output layer more. imp and magnitude are global.
- early-bird's rule (masks of five looks differ in at most 10 % of all weights) cannot
  fail at 5 % and below, where two masks differ in at most 10 %: there it is the mask of
  the fifth look.
- The re-initialised control of gem-miner has new signs at the ticket's magnitudes.
- Masks that lost a layer are trained all the same; `note` in units.csv has warnings."""


def _task(
    setting: Setting,
    frame: pd.DataFrame,
    pairs: pd.DataFrame,
    checks: pd.DataFrame,
    folder: Path,
    *,
    made: str,
) -> list[str]:
    parts = [f"## {setting.title}", made, table(_accuracies(frame, setting))]
    if setting.task == "cifar10":
        parts.append(_published())
    density = _ordered(setting)
    _, rows = ordering(frame, density)
    if rows:
        parts += [
            f"### The expected order at {100 * density:g} %",
            "Differences of test accuracy, paired over seeds.",
            table(rows),
        ]
    parts.append("### Cost of one ticket, its training included")
    parts.append(table(_costs(frame, setting)))
    parts += _alike(setting, frame, pairs, folder)
    own = checks[checks.task == setting.task] if len(checks) else checks
    if len(own):
        parts += _sanity(own, setting)
    return parts


def _accuracies(frame: pd.DataFrame, setting: Setting) -> list[dict[str, str]]:
    rows = []
    for group in (DENSE, *GROUPS):
        for name, method in METHODS.items():
            own = frame[(frame.method == name)]
            if method.group != group or not len(own):
                continue
            row = {"method": f"`{name}`", "when": "" if group == DENSE else group}
            if name == DENSE:
                said = points(own.test_accuracy.dropna())
                row |= {f"{100 * d:g} %": said for d in setting.densities}
            else:
                row |= {
                    f"{100 * d:g} %": points(
                        own[own.density == d].test_accuracy.dropna()
                    )
                    for d in setting.densities
                }
            rows.append(row | {"seeds": str(own.seed.nunique())})
    return rows


def _costs(frame: pd.DataFrame, setting: Setting) -> list[dict[str, str]]:
    rows = []
    for name in METHODS:
        wanted = 1.0 if name == DENSE else setting.checked
        own = frame[(frame.method == name) & (frame.density == wanted)]
        own = own.dropna(subset=["gradients"])
        if len(own):
            mean = own[["gradients", "forwards", "hvps", "steps"]].mean()
            rows.append({
                f"method, at {100 * setting.checked:g} %": f"`{name}`",
                "gradients": f"{mean.gradients:.2f}",
                "forwards": f"{mean.forwards:.2f}",
                "HVPs": f"{mean.hvps:.2f}",
                "optimiser steps": f"{mean.steps:.0f}",
            })
    return rows


def _alike(
    setting: Setting, frame: pd.DataFrame, pairs: pd.DataFrame, folder: Path
) -> list[str]:
    parts = []
    for density in sorted(setting.alike):
        own = pairs[pairs.density == density]
        said = likeness(own, frame, density)
        if not said:
            continue
        parts.append(f"### What the masks have in common at {100 * density:g} %")
        if density > min(setting.alike):  # that one is answered at the beginning
            parts.append(prose(" ".join(said)))
        same = complete(own[own.seed == own.other_seed])
        parts.append(
            prose(
                "Overlap beyond chance, mean over pairs of methods "
                f"({seeds_of(same)}; ± half of the 95 % interval over them). "
                "Alike by construction: magnitude-trained and magnitude-finetuned "
                "(equal masks), early-bird (earlier in that training), rigl and set "
                "(one random start)."
            )
        )
        parts.append(table(group_table(same)))
        if density == min(setting.alike):
            _draw(setting, frame, same, density, folder)
            if (folder / f"similarity-{setting.task}.svg").exists():
                parts.append(
                    f"![similarity](similarity-{setting.task}.svg)\n\n"
                    "Clusters by average linkage of 1 − overlap; means over these "
                    "seeds."
                )
    return parts


def _draw(
    setting: Setting,
    frame: pd.DataFrame,
    same: pd.DataFrame,
    density: float,
    folder: Path,
) -> None:
    own = frame[(frame.density == density)].dropna(subset=["layer_densities"])
    trained = set(own.method)
    every = square(same, "excess_overlap")
    names = [name for name in every.index if name in trained]
    if len(names) < 2:
        return
    square_ = every.loc[names, names]
    found, layers = {}, []
    for name in square_.index:
        part = own[own.method == name]
        split = pd.DataFrame([_layers(text) for text in part.layer_densities])
        layers = list(split.columns)
        found[name] = [(part.kept / part.prunable).mean(), *split.mean()]
    similarity(
        square_,
        [found[name] for name in square_.index],
        ["all", *layers],
        folder / f"similarity-{setting.task}.svg",
        title=f"{setting.title}, {100 * density:g} % kept",
    )


def _layers(text: str) -> dict[str, float]:
    pairs = (part.partition("=") for part in text.split(";"))
    return {name: float(value) for name, _, value in pairs}


def _sanity(checks: pd.DataFrame, setting: Setting) -> list[str]:
    rows = []
    for name in METHODS:
        own = checks[(checks.method == name) & (checks.recipe == setting.recipe)]
        if not len(own):
            continue
        ticket = own[own.control == "ticket"].test_accuracy
        row, worse = {"method": f"`{name}`", "ticket": points(ticket)}, {}
        for control in [c for c in dict.fromkeys(own.control) if c != "ticket"]:
            part = own[own.control == control]["drop"]
            mean, low, high = mean_interval([100.0 * v for v in part])
            worse[control] = low > 0.0
            row[f"{control}, points below"] = (
                f"{mean:+.2f}"
                if math.isnan(low)
                else f"{mean:+.2f} ({low:+.2f} to {high:+.2f})"
            )
        used = worse.get("shuffled") and worse.get("reinitialised")
        rows.append(row | {"uses its mask": "yes" if used else "not shown"})
    return [
        f"### Sanity checks at {100 * setting.checked:g} %",
        "Each seed's ticket beside copies that forget part of it; drops in points of "
        "test accuracy, paired, with 95 % intervals. A ticket uses its mask only if "
        "the shuffled and the re-initialised copies are both worse outside the "
        "interval.",
        table(rows),
    ]


def _full(setting: Setting, frame: pd.DataFrame, *, made: str) -> list[str]:
    said, rows = ordering(frame, setting.densities[0])
    return [
        f"## {setting.title}: {setting.steps:,} steps, the whole recipe",
        made,
        table(_accuracies(frame, setting)),
        "What each method keeps of each layer, per cent, mean over seeds:",
        table(_kept_of_layers(frame)),
        prose(said),
        *([table(rows)] if rows else []),
    ]


def _kept_of_layers(frame: pd.DataFrame) -> list[dict[str, str]]:
    rows = []
    for name in METHODS:
        own = frame[frame.method == name].layer_densities.dropna()
        if len(own):
            mean = pd.DataFrame([_layers(text) for text in own]).mean()
            kept = {layer: f"{100 * value:.1f}" for layer, value in mean.items()}
            rows.append({"method": f"`{name}`"} | kept)
    return rows


def _published() -> str:
    rows = [
        {"published": what, "density %": f"{density:g}", "test accuracy %": value}
        for what, density, value in _PUBLISHED
    ]
    return (
        "Beside it what was published, **on the official CIFAR-10 and trained for "
        "longer** (ours: JPEG-75 copy, shorter training):\n\n" + table(rows)
    )
