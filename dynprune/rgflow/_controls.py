"""The two controls without which an exponent of IMP says little."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, final

import torch
from torch import Tensor

from dynprune.core import (
    InvalidInputError,
    Provenance,
    derive_seed,
    generator,
    load_result,
    save_tensors,
    unknown,
)
from dynprune.rgflow._nested import (
    PrunedRun,
    RankedTicket,
    Scope,
    StateLevel,
    magnitude_ranks,
    random_ranks,
)
from dynprune.rgflow._observables import (
    Groups,
    common_densities,
    group_members,
    group_sums,
    normalise,
    observables,
)
from dynprune.rgflow._runs import (
    Magnitude,
    Normalisation,
    RunLike,
    Stage,
    check_choice,
    check_runs,
)
from dynprune.system import GradientSystem
from dynprune.training import Trainer

_KIND = "rgflow.Controls"
CONTROLS = ("no-retraining", "random")


@final
@dataclass(frozen=True, kw_only=True, eq=False, slots=True, weakref_slot=True)
class Controls:
    """Hold the sums of magnitudes of each tensor under the controls.

    Args:
        names: Names of the T masked tensors.
        densities: Density of each level, shape ``(R,)``.
        sums: ``"control.magnitude.stage"`` to its sums, ``(S, R, T)``, one level less
            after pruning: not normalised, so that any grouping can be read from them.
        provenance: What made them.
    """

    names: tuple[str, ...]
    densities: Tensor
    sums: tuple[tuple[str, Tensor], ...]
    provenance: Provenance

    def observables(
        self,
        control: Literal["no-retraining", "random"],
        *,
        groups: Groups = "tensor",
        magnitude: Magnitude = "L1",
        stage: Stage = "before",
        normalisation: Normalisation = "share",
    ) -> Tensor:
        """Return the observables of one control, as :func:`observables` defines them.

        Args:
            control: ``"no-retraining"`` or ``"random"``.
            groups: See :func:`dynprune.rgflow.observables`.
            magnitude: ``"L1"`` or ``"L2"``.
            stage: ``"before"`` or ``"after"`` pruning.
            normalisation: ``"share"`` or ``"absolute"``.

        Returns:
            Shape ``(S, R, G)``; R − 1 levels after pruning.
        """
        check_choice("control", control, CONTROLS)
        check_choice("magnitude", magnitude, ("L1", "L2"))
        check_choice("stage", stage, ("before", "after"))
        check_choice("normalisation", normalisation, ("share", "absolute"))
        _, members = group_members(self.names, groups)
        sums = dict(self.sums)[f"{control}.{magnitude}.{stage}"]
        return normalise(group_sums(sums, members), normalisation)

    @property
    def no_retraining(self) -> Tensor:
        """L1 shares of the tensors without retraining, ``(S, R, T)``."""
        return self.observables("no-retraining")

    @property
    def random(self) -> Tensor:
        """L1 shares of the tensors under random pruning, ``(S, R, T)``."""
        return self.observables("random")

    def __repr__(self) -> str:
        """Return the size in one line."""
        S, R, T = len(self.sums[0][1]), len(self.densities), len(self.names)
        return f"Controls({S} seeds, {R} levels, {T} tensors)"

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the controls to one safetensors file.

        Args:
            path: Where; written whole or not at all.
        """
        metadata = {
            "kind": _KIND,
            "names": list(self.names),
            "provenance": self.provenance.to_dict(),
        }
        save_tensors(path, {"densities": self.densities, **dict(self.sums)}, metadata)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> "Controls":
        """Read controls that :meth:`save` wrote.

        Args:
            path: The file.

        Returns:
            The controls.

        Raises:
            InvalidInputError: If the file is missing, truncated, of another kind, or
                lacks a part.
        """  # noqa: DOC502 - raised by load_result
        return load_result(
            path, _KIND, _unpack, what="the controls of a flow", writer="Controls.save"
        )


def _unpack(tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> Controls:
    sums = {name: part for name, part in tensors.items() if name != "densities"}
    return Controls(
        names=tuple(metadata["names"]),
        densities=tensors["densities"],
        sums=tuple(sorted(sums.items())),
        provenance=Provenance.from_dict(metadata["provenance"]),
    )


def controls(
    system: GradientSystem,
    runs: Sequence[RunLike],
    *,
    train: Trainer | None = None,
    rewind_step: int = 0,
    scope: Scope = "global",
    seed: int = 0,
) -> Controls:
    r"""Prune the dense-trained weights of each run again, without IMP's retraining.

    *No retraining*: the weights of level 0, :math:`\theta(0)`, keep their
    :math:`K_n` largest magnitudes, :math:`K_n` the number of weights that the run
    keeps at level n; ties go to the lower flat index. That alone gives a structured
    flow wherever tensors differ in scale or in the shape of their distribution.

    *Random*: nested masks that keep :math:`K_n` weights of :math:`\theta(0)` drawn
    without replacement. In expectation every group loses the same share:
    :math:`\sigma = 0` on shares and −1 on absolute sums, a trivial fixed point. Its
    scatter is the sampling noise of the exponents. With ``train`` the survivors of the
    same masks are rewound and retrained at every level as in IMP, and that fixed
    point is no longer forced.

    Args:
        system: The system that was pruned; the runs' masks must be for its prunable
            tensors.
        runs: One IMP run per seed; level 0 must be dense.
        train: Retrains the random-pruning control; None leaves its weights as they
            are.
        rewind_step: Step at which that retraining starts; that of the runs.
        scope: ``"global"`` compares weights of all tensors; ``"layer"`` keeps in each
            tensor as many weights as the run does, the control for layer-wise IMP.
        seed: Of the random masks and their retraining, which also depend on the place
            in ``runs``.

    Returns:
        Sums for every control, run and level, for :func:`dynprune.rgflow.fit`.

    Raises:
        InvalidInputError: Without runs, for runs of other tensors or densities than
            the system or each other, or a level 0 that is not dense.

    Cost:
        Two sorts of the prunable weights and 8 R passes over them per run, no
        gradients; with ``train``, R − 1 trainings per run.

    Source:
        Own controls, for the flow of Redman et al., *Universality of Winning Tickets:
        A Renormalization Group Perspective*, ICML 2022.
    """  # noqa: DOC501 - raised by the checks
    check_choice("scope", scope, ("global", "layer"))
    names = check_runs(runs)
    for name in names:
        if name not in system.prunable:
            raise unknown("prunable tensor", name, system.prunable)
    densities = common_densities(runs)
    if float(densities[0]) < 1.0:
        raise InvalidInputError(
            f"Level 0 has density {float(densities[0]):g}, and the controls prune the "
            "dense-trained weights. Start the densities of IMP at 1."
        )
    rows: dict[str, list[Tensor]] = {}
    for place, run in enumerate(runs):
        draw = generator(derive_seed("rgflow.controls", seed, place))
        dense = {n: run.levels[0].state[n].detach().to("cpu") for n in names}
        by_magnitude = _pruned(run, magnitude_ranks(dense, scope), scope)
        at_random = _pruned(run, random_ranks(dense, scope, draw), scope)
        if train is not None:
            key = derive_seed("rgflow.controls.train", seed, place)
            at_random = _retrained(system, at_random, train, key, rewind_step)
        for control, pruned in zip(CONTROLS, (by_magnitude, at_random), strict=True):
            for part, values in _sums(pruned).items():
                rows.setdefault(f"{control}.{part}", []).append(values)
    return Controls(
        names=names,
        densities=densities,
        sums=tuple(sorted((key, torch.stack(value)) for key, value in rows.items())),
        provenance=Provenance(
            made_by="rgflow.controls",
            seed=seed,
            dtype=str(system.dtype).removeprefix("torch."),
            device=str(system.device),
            settings=(
                ("random_retrained", train is not None),
                ("rewind_step", rewind_step),
                ("runs", len(runs)),
                ("scope", scope),
            ),
            sources=("rg", "imp"),
        ),
    )


def _pruned(run: RunLike, ranks: dict[str, Tensor], scope: Scope) -> PrunedRun:
    tickets = tuple(
        RankedTicket(
            ranks=ranks,
            kept={name: int(mask.sum()) for name, mask in ticket.masks.items()},
            scope=scope,
            source=ticket,
        )
        for ticket in run.tickets
    )
    dense = StateLevel(state={k: v.to("cpu") for k, v in run.levels[0].state.items()})
    return PrunedRun(tickets=tickets, levels=(dense,) * len(tickets))


def _retrained(
    system: GradientSystem, run: PrunedRun, train: Trainer, seed: int, rewind_step: int
) -> PrunedRun:
    levels = [run.levels[0]]
    for n, ticket in enumerate(run.tickets[1:], start=1):
        masked = system.with_ticket(ticket)
        found = train(masked, seed=derive_seed(seed, n), start_step=rewind_step)
        levels.append(StateLevel(state=masked.unflatten(found.state)))
    return PrunedRun(tickets=run.tickets, levels=tuple(levels))


def _sums(run: PrunedRun) -> dict[str, Tensor]:
    stages: tuple[Stage, ...] = ("before", "after")
    magnitudes: tuple[Magnitude, ...] = ("L1", "L2")
    return {
        f"{magnitude}.{stage}": observables(
            run, magnitude=magnitude, stage=stage, normalisation="absolute"
        ).values
        for magnitude in magnitudes
        for stage in stages
    }
