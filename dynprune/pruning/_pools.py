"""Which weights compete with each other in iterative pruning, and how fast they go."""

import fnmatch
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, final, get_args

import torch
from torch import Tensor

from dynprune.core import InvalidInputError
from dynprune.pruning._count_rules import Rule
from dynprune.pruning._numbers import as_number
from dynprune.pruning._select import Scope, check_choice, select

IMPScope = Literal["global", "layer", "grouped"]
Groups = Mapping[str, str] | Callable[[str], str]
_ALL = "all layers"


@final
@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Pools:
    """Partition prunable weights; each part has a count of its own at each level.

    Args:
        names: Part to the names of its tensors, in order.
        rates: Part to its rate, 1 = as the densities say.
    """

    names: dict[str, tuple[str, ...]]
    rates: dict[str, float]

    @staticmethod
    def of(
        prunable: Sequence[str],
        scope: str,
        *,
        groups: Groups | None,
        rates: Mapping[str, float] | None,
    ) -> "Pools":
        """Make the partition that the arguments of ``imp`` ask for.

        Args:
            prunable: Names of the weights.
            scope: ``"global"``, ``"layer"`` or ``"grouped"``.
            groups: Name to group, or a function of the name.
            rates: Pattern of part names to rate; the first that matches counts.

        Returns:
            The partition.

        Raises:
            InvalidInputError: If the arguments contradict each other, a name has no
                group, or a pattern matches nothing.
        """
        if scope not in get_args(IMPScope):
            raise InvalidInputError(
                f"scope is {scope!r}. Pass 'global', 'layer' or 'grouped'."
            )
        if (groups is not None) != (scope == "grouped"):
            raise InvalidInputError(
                f"scope={scope!r} came {'without' if groups is None else 'with'} "
                "groups. Pass groups= with scope='grouped', and only then."
            )
        if scope == "global":
            names = {_ALL: tuple(prunable)}
        elif scope == "layer":
            names = {name: (name,) for name in prunable}
        else:
            assert groups is not None
            names = _grouped(prunable, groups)
        if rates is not None and scope == "global":
            raise InvalidInputError(
                "rates came with scope='global', where all weights compete. Pass "
                "scope='layer' or 'grouped'."
            )
        return Pools(names=names, rates=_rates(names, {} if rates is None else rates))

    def densities(self, densities: Sequence[float]) -> list[dict[str, float]]:
        r"""Return the density of each part at each level.

        .. math:: d_{g,n} = \prod_{j \le n} (1 - r_g (1 - d_j / d_{j-1}))

        which is :math:`d_n` itself for a rate of 1.

        Args:
            densities: :math:`d_n`, 1 first, strictly decreasing.

        Returns:
            For each level, part to density.

        Raises:
            InvalidInputError: If a rate removes all of a part.
        """
        found = [dict.fromkeys(self.names, 1.0)]
        for n in range(1, len(densities)):
            removed = 1.0 - densities[n] / densities[n - 1]
            row = {}
            for part, rate in self.rates.items():
                row[part] = (
                    float(densities[n])
                    if rate == 1.0
                    else found[-1][part] * (1.0 - rate * removed)
                )
                if row[part] <= 0.0:
                    raise InvalidInputError(
                        f"A rate of {rate} for {part!r} removes {rate * removed:.3g} "
                        f"of its weights at level {n}. Pass a lower rate, or densities "
                        "that are closer together."
                    )
            found.append(row)
        return found

    def rehearse(
        self,
        alive: Mapping[str, Tensor],
        densities: Sequence[Mapping[str, float]],
        rule: Rule,
    ) -> None:
        """Refuse, before any training, a rule that will find nothing to keep.

        Args:
            alive: Name to boolean tensor, of the dense level.
            densities: For each level, part to density.
            rule: Which.

        Raises:
            InvalidInputError: If it keeps nothing of a part at some level, were all
                scores different; or removes some of a part that is never pruned.
        """
        if rule == "exact":
            return
        for part, rate in self.rates.items():
            if rate == 0.0 and rule in {"open_lth", "lth2018"}:
                raise InvalidInputError(
                    f"The rate of {part!r} is 0, and rule={rule!r} removes one weight "
                    "more than it is asked for, of every part. Pass rule='exact', or "
                    "leave the weights out with GradientSystem(..., prunable=...)."
                )
        ranks = {
            name: torch.arange(mask.numel(), dtype=torch.float64).view(mask.shape)
            for name, mask in alive.items()
        }
        left = dict(alive)
        for before, now in itertools.pairwise(densities):
            left = self.select(ranks, left, now, before=before, rule=rule)

    def select(
        self,
        scores: Mapping[str, Tensor],
        alive: Mapping[str, Tensor],
        densities: Mapping[str, float],
        *,
        before: Mapping[str, float],
        rule: Rule,
    ) -> dict[str, Tensor]:
        """Keep the highest scores of each part, as many as its density says.

        Args:
            scores: Name to scores.
            alive: Name to boolean tensor, True = may be kept.
            densities: Part to density.
            before: Those of the level before, which chose ``alive``.
            rule: How many a density keeps, and who wins ties.

        Returns:
            Name to boolean tensor, in the order of ``scores``.

        Raises:
            InvalidInputError: If all scores of a part are equal, where some must go.
        """  # noqa: DOC502 - raised by check_choice
        masks: dict[str, Tensor] = {}
        for part, names in self.names.items():
            own = {name: scores[name] for name in names}
            left = {name: alive[name] for name in names}
            scope: Scope = "layer" if len(names) == 1 else "global"
            check_choice(own, left, densities[part], scope)
            masks |= select(
                own,
                left,
                density=densities[part],
                scope=scope,
                rule=rule,
                before=before[part],
            )
        return {name: masks[name] for name in scores}


def _grouped(prunable: Sequence[str], groups: Groups) -> dict[str, tuple[str, ...]]:
    if isinstance(groups, Mapping):
        missing = [name for name in prunable if name not in groups]
        extra = [name for name in groups if name not in prunable]
        if missing or extra:
            raise InvalidInputError(
                f"groups lacks {missing or 'none'} and has {extra or 'none'} too much. "
                f"Give a group for each of system.prunable: {', '.join(prunable)}."
            )
        of = {name: groups[name] for name in prunable}
    elif not callable(groups):
        raise InvalidInputError(
            f"groups is {groups!r}. Pass a mapping of weight names to group names, or "
            "a function from the one to the other."
        )
    else:
        of = {name: groups(name) for name in prunable}
    wrong = [name for name, group in of.items() if not isinstance(group, str)]
    if wrong:
        raise InvalidInputError(
            f"The group of {wrong[0]!r} is {of[wrong[0]]!r}. Give each a name (str)."
        )
    ordered = dict.fromkeys(of.values())
    return {
        group: tuple(name for name in prunable if of[name] == group)
        for group in ordered
    }


def _rates(parts: Iterable[str], rates: Mapping[str, float]) -> dict[str, float]:
    own = list(parts)
    if not isinstance(rates, Mapping):
        raise InvalidInputError(
            f"rates is {rates!r}. Pass a mapping of patterns to numbers."
        )
    for pattern, rate in rates.items():
        if not 0.0 <= as_number(rate) < float("inf"):
            raise InvalidInputError(
                f"The rate of {pattern!r} is {rate!r}. Pass 0 (never pruned) or more."
            )
        if not any(fnmatch.fnmatchcase(part, str(pattern)) for part in own):
            raise InvalidInputError(
                f"The rate of {pattern!r} is for nothing. There are: {', '.join(own)}."
            )
    found = {}
    for part in own:
        fits = [r for p, r in rates.items() if fnmatch.fnmatchcase(part, p)]
        found[part] = float(fits[0]) if fits else 1.0
    return found
