"""What sparse networks found by different methods have in common."""

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

from dynprune.core import Cost, Provenance, derive_seed, track
from dynprune.system import GradientSystem
from dynprune.tickets._barrier import NormStatistics, error_barrier, trained_weight
from dynprune.tickets._comparable import (
    Tickets,
    check_alike,
    check_model,
    check_numbers,
    check_runs,
    labelled,
    ordered,
    warnings_of,
)
from dynprune.tickets._comparison import Comparison
from dynprune.tickets._degrees import degree_readings, degrees
from dynprune.tickets._locality import trained_locality
from dynprune.tickets._measures import TicketMeasures, Values
from dynprune.tickets._overlap import pair_overlaps
from dynprune.tickets._readings import ALL, Reading
from dynprune.tickets._relational_graph import GROUPS
from dynprune.tickets._shuffle import shuffle
from dynprune.tickets._ticket import Ticket

_SOURCES = {
    "effective_density": "effective",
    "ramanujan_s": "ramanujan",
    "clustering": "relational_graph",
    "path_norm": "path_norm",
    "locality": "ipr",
    "error_barrier": "rewinding",
}


def compare(
    a: Tickets,
    b: Ticket | None = None,
    *,
    labels: Sequence[str] | None = None,
    system: GradientSystem | None = None,
    model: Any = None,
    example: Any = None,
    runs: Sequence[Any] | None = None,
    problem: Any = None,
    shuffles: int = 20,
    eigenvalues: int = 0,
    groups: int = GROUPS,
    power: int = 1,
    split: str = "test",
    points: int = 30,
    buffers: NormStatistics = "interpolate",
    seed: int = 0,
    progress: bool = False,
) -> Comparison:
    r"""Compare the tickets of one model: masks, graphs, paths, curvature, barriers.

    **Between two masks**, with X weights kept by both: Hamming distance / N, Jaccard
    similarity, overlap coefficient X / min(A, B), and the overlap beyond chance
    :math:`(X - E X) / (\sum_l \min(A_l, B_l) - E X)`. Their null is that of
    independent masks with these layer densities, exact: X is a sum of hypergeometric
    numbers with

    .. math:: E X = \sum_l \frac{A_l B_l}{n_l}, \qquad \operatorname{Var} X =
              \sum_l \frac{A_l B_l (n_l - A_l)(n_l - B_l)}{n_l^2 (n_l - 1)}.

    Also the correlation of how many weights each input and output unit keeps.

    **Of one ticket**: density; effective density (:func:`effective_density`) and path
    norm (:func:`path_norm`), where a model is known; Ramanujan δ_S and δ_R of each
    layer, clustering and path length of the relational graph (:func:`graph_measures`);
    locality, the mean :math:`\sum w^4 / (\sum w^2)^2` of the units of the first layer;
    with a system, gradient flow :math:`\|m \odot \nabla L(m \odot \theta)\|^2` (of the
    survivors alone) and eigenvalues of their Hessian at the start of training. Their
    null is ``shuffles`` layer-wise
    shuffles of the ticket: mean, standard deviation, z (of few shuffles heavier-tailed
    than a normal number), and a permutation p-value that cannot fall below
    1 / (shuffles + 1). Where a ticket's state is zero at pruned weights, its shuffles
    uncover zeros; a note names it (:func:`zeros_where_pruned`).

    **Between two trained states**, with ``runs``: error and loss barrier
    (:func:`error_barrier`), without a null; and of each the locality of the trained
    first layer, against permutations of its weights.

    Where a system or model is known, weights are read as their layers use them:
    convolutions with groups as block-diagonal ones without, transposed convolutions and
    Hugging Face ``Conv1D`` transposed. Otherwise every weight is (out, in, …).

    Densities differ from method to method: compare at one density, or read the overlap
    beyond chance.

    Args:
        a: A ticket, a sequence of tickets, or a mapping of labels to tickets.
        b: The other ticket, where ``a`` is one.
        labels: One per ticket; by default what made it and its density.
        system: The dense system the tickets are of, on the data to measure on.
        model: A model for effective density and path norm, where there is no system;
            or ``"chain"``: read the masks as a chain of Linear and Conv layers.
        example: One example for the model, shape ``(1, …)``; from the system's data by
            default.
        runs: A finished run for each ticket.
        problem: What the runs were trained on.
        shuffles: Of each ticket; 0 for no null of the measures of one ticket.
        eigenvalues: How many of the largest eigenvalues of the Hessian; needs a system.
            One that does not converge is NaN, or left out of the null; a note counts.
        groups: Nodes of the relational graph.
        power: Of the path norm, 1 or 2.
        split: Where barriers are evaluated.
        points: Of each barrier.
        buffers: Norm statistics along a barrier: ``"interpolate"`` or
            ``"reestimate"``.
        seed: Of the shuffles.
        progress: Draw bars.

    Returns:
        Every value with its null, in one frame and one figure.

    Raises:
        InvalidInputError: If there are not two tickets, they differ in names or shapes
            of masks or parameters (it says which), a layer has no weights, runs or a
            problem are missing, or a number is out of range.

    Cost:
        For each of the T tickets and each of its shuffles: two singular values per
        layer; with a model three passes of one example; with a system one gradient,
        and for eigenvalues some 30 to 100 HVPs. About 20 ms for LeNet-300-100 and 1.5 s
        for 16 million weights, on one core, beside gradients and HVPs (pass
        ``system.with_data(part)`` to spend less on them). For barriers, ``points``
        forward passes over the split for each pair of tickets.

    Source:
        Chance by shuffles: Frankle et al., *Pruning Neural Networks at Initialization:
        Why Are We Missing the Mark?*, ICLR 2021; the measures: see each.

    Example:
        >>> import torch
        >>> state = {"w": torch.ones(2, 2)}
        >>> eye, row = torch.eye(2).bool(), torch.tensor([[True, True], [False, False]])
        >>> pair = (Ticket.make({"w": mask}, state) for mask in (eye, row))
        >>> found = compare(*pair, labels=("eye", "row"))
        >>> found.similarity("jaccard").loc["eye", "row"].round(3)
        np.float64(0.333)
    """  # noqa: DOC502 - raised by the checks
    tickets, names = labelled(a, b, labels)
    check_alike(tickets, names)
    shuffles, eigenvalues, groups = check_numbers(
        shuffles=shuffles, eigenvalues=eigenvalues, groups=groups, power=power
    )
    check_model(tickets[0], system, model, eigenvalues)
    check_runs(len(tickets), runs, problem)
    tickets = [ordered(ticket, like=tickets[0]) for ticket in tickets]
    measures = TicketMeasures(
        tickets[0],
        system=system,
        model=model,
        example=example,
        groups=groups,
        power=power,
        eigenvalues=eigenvalues,
        seed=seed,
    )
    readings = list(pair_overlaps([one.mask_items for one in tickets], names))
    counts = []
    for index in track(range(len(tickets)), label="tickets.compare", show=progress):
        own = tickets[index]
        values, degree = [measures.of(own)], [degrees(own, measures.forms)]
        for draw in range(shuffles):
            mixed = shuffle(own, seed=derive_seed("tickets.compare", seed, index, draw))
            values.append(measures.of(mixed))
            degree.append(degrees(mixed, measures.forms))
        counts.append(degree)
        readings += _own_readings(own, names[index], values)
    readings += degree_readings(counts, names)
    cost = measures.cost
    if runs is not None:
        barriers, spent = _barriers(
            runs,
            names,
            problem,
            split=split,
            points=points,
            buffers=buffers,
            progress=progress,
        )
        first = measures.forms.first(dict(tickets[0].mask_items))
        readings += [
            trained_locality(
                trained_weight(run, first),
                layer=first,
                label=label,
                shuffles=shuffles,
                seed=seed,
                forms=measures.forms,
            )
            for run, label in zip(runs, names, strict=True)
        ]
        readings, cost = readings + barriers, cost + spent
    measured = {one.measure for one in readings}
    settings: dict[str, Any] = {
        "shuffles": shuffles,
        "eigenvalues": eigenvalues,
        "groups": groups,
        "power": power,
    }
    if runs is not None:
        settings |= {"split": split, "points": points, "buffers": buffers}
    return Comparison(
        labels=tuple(names),
        layers=tuple(name for name, _ in tickets[0].mask_items),
        densities=tuple((t.density, *t.layer_densities.values()) for t in tickets),
        readings=tuple(readings),
        notes=tuple([*warnings_of(tickets, names), *measures.notes]),
        cost=cost,
        provenance=Provenance(
            made_by="tickets.compare",
            seed=seed,
            dtype=tickets[0].provenance.dtype,
            examples=0 if system is None else round(system.examples),
            settings=tuple(settings.items()),
            sources=("sanity", *(_SOURCES[m] for m in _SOURCES if m in measured)),
        ),
    )


def _own_readings(
    ticket: Ticket, label: str, values: Sequence[Values]
) -> Iterable[Reading]:
    densities = {ALL: ticket.density} | ticket.layer_densities
    for layer, value in densities.items():
        yield Reading(measure="density", layer=layer, tickets=(label,), value=value)
    for measure, layer in values[0]:
        drawn = [found[measure, layer] for found in values]
        yield Reading.sampled(measure, layer, (label,), value=drawn[0], null=drawn[1:])


def _barriers(
    runs: Sequence[Any],
    labels: Sequence[str],
    problem: Any,
    *,
    split: str,
    points: int,
    buffers: NormStatistics,
    progress: bool,
) -> tuple[list[Reading], Cost]:
    readings, cost = [], Cost()
    pairs = list(itertools.combinations(range(len(runs)), 2))
    for i, j in track(pairs, label="tickets.barriers", show=progress):
        found = error_barrier(
            runs[i], runs[j], problem, split=split, points=points, buffers=buffers
        )
        cost += found.cost
        pair = (labels[i], labels[j])
        readings += [
            Reading(measure=measure, layer=ALL, tickets=pair, value=value)
            for measure, value in (
                ("error_barrier", found.error_barrier),
                ("loss_barrier", found.loss_barrier),
            )
        ]
    return readings, cost
