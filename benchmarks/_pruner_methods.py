"""The methods that are compared, each from a seed and a density to a trained ticket."""

import functools
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

import torch
from _pruner_settings import Setting, imp_densities, problem_of
from torch import Tensor

import dynprune as dp
from dynprune import pruning
from dynprune.core import Cost

DENSE = "dense"
INITIAL, LEARNT = "at initialisation", "mask learning"
REWOUND, TUNED = "after training, rewound", "after training, fine-tuned"
DURING = "during training"


@final
@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Found:
    """Hold a ticket and what training made of it.

    Args:
        ticket: Its mask, and the state that it was trained from.
        state: The trained parameters by name.
        buffers: The buffers after training.
        cost: Of finding and training, in passes over the whole training split.
        note: What a reader of the table has to know.
    """

    ticket: dp.Ticket
    state: Mapping[str, Tensor]
    buffers: Mapping[str, Tensor]
    cost: Cost
    note: str = ""


@final
class Bench:
    """Everything that the methods share on one task and seed, made when asked for.

    Args:
        setting: The comparison.
        seed: Of initial weights, data order and every draw.
        folder: Where dense trained weights are kept between units.
    """

    def __init__(self, setting: Setting, seed: int, folder: Path) -> None:
        self.setting, self.seed, self._folder = setting, seed, folder
        self.order = setting.seed("order", seed)

    @property
    def problem(self) -> dp.Problem:
        """The data and the network."""
        return problem_of(self.setting.source, self.setting.model)

    @functools.cached_property
    def recipe(self) -> dp.Recipe:
        """How every ticket is trained."""
        return self.setting.trainer(self.problem)

    @functools.cached_property
    def system(self) -> dp.GradientSystem:
        """The dense network at its initialisation, over the whole training split."""
        model = self.problem.model(self.setting.seed("init", self.seed))
        x, y = self.problem.train
        device = torch.device(self.setting.device)
        if device.type == "cuda" and x.shape[1] == 3:  # colours: a third less time
            model = model.to(memory_format=torch.channels_last)
        return dp.GradientSystem(
            model.to(device), self.problem.loss_fn, (x.to(device), y.to(device))
        )

    @functools.cached_property
    def subset(self) -> dp.GradientSystem:
        """The same network over the examples that scores are taken from."""
        x, y = self.system.data
        count = self.setting.scored
        return self.system.with_data((x[:count], y[:count]))

    @functools.cached_property
    def dense(self) -> dp.Ticket:
        """All weights, at the state that dense training ends with."""
        path = self._folder / "tickets" / f"{self.name(DENSE)}.safetensors"
        if path.exists():
            return dp.Ticket.load(path)
        run = self.recipe(self.system, seed=self.order)
        ticket = dp.Ticket.make(
            {
                name: torch.ones_like(part, dtype=torch.bool)
                for name, part in self.named(run.state).items()
                if name in self.system.prunable
            },
            self.named(run.state),
            run.buffers,
            cost=run.cost,
        )
        ticket.save(path)
        return ticket

    @functools.cached_property
    def trained(self) -> dp.GradientSystem:
        """The dense network after training, over the whole training split."""
        dense = self.dense
        return self.system.with_state(dict(dense.state), buffers=dict(dense.buffers))

    @functools.cached_property
    def rewound(self) -> dp.GradientSystem:
        """The dense network at the rewind step."""
        step = self.setting.rewind_step
        if not step:
            return self.system
        run = self.recipe(self.system, seed=self.order, stop_step=step)
        return self.system.with_state(run.state, buffers=run.buffers)

    def checkpoints(self, method: str) -> Path:
        """Return the folder of a method's checkpoints."""
        return self._folder / "checkpoints" / self.name(method)

    def name(self, method: str, density: float | None = None) -> str:
        """Return the name of the files of a method."""
        parts = [self.setting.task, self.setting.recipe, method]
        parts += [] if density is None else [f"d{density:g}"]
        return "-".join([*parts, f"s{self.seed}"])

    def draw(self, method: str, density: float) -> int:
        """Return the seed of a method's own draws."""
        return self.setting.seed(method, self.seed, density)

    def named(
        self, vector: Tensor, system: dp.GradientSystem | None = None
    ) -> dict[str, Tensor]:
        """Return parameters by name, frozen ones included and pruned ones zero."""
        own = self.system.module.named_parameters()
        known = {name: part.detach() for name, part in own}
        return known | (system or self.system).unflatten(vector)

    def over_all(self, cost: Cost) -> Cost:
        """Count passes over the subset in passes over the whole split."""
        share = self.subset.examples / self.system.examples
        return replace(
            cost,
            gradients=share * cost.gradients,
            hvps=share * cost.hvps,
            forwards=share * cost.forwards,
        )

    def train(self, ticket: dp.Ticket, *, start: int = 0, note: str = "") -> Found:
        """Train a ticket with the recipe of all."""
        masked = self.system.with_ticket(ticket)
        run = self.recipe(masked, seed=self.order, start_step=start)
        return Found(
            ticket=ticket,
            state=self.named(run.state, masked),
            buffers=run.buffers,
            cost=ticket.cost + run.cost,
            note=note,
        )


Maker = Callable[[Bench, float], dp.Ticket]
Search = Callable[[Bench, float], Found]


@final
@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Method:
    """Name a method.

    Args:
        name: What tables call it.
        group: When it prunes.
        find: From a bench and a density to a trained ticket.
        make: The ticket alone, where it can be had without its training.
        title: What it is, for a reader.
        full: Whether it is of the whole recipe of the source only.
    """

    name: str
    group: str
    find: Search
    make: Maker | None = None
    title: str = ""
    full: bool = False


def _initial(name: str, make: Maker, title: str, *, group: str = INITIAL) -> Method:
    def find(bench: Bench, density: float) -> Found:
        return bench.train(make(bench, density))

    return Method(name=name, group=group, find=find, make=make, title=title)


def _scored(name: str, prune: Any, title: str) -> Method:
    # scored on the subset; trained on everything from the system's own state
    def make(bench: Bench, density: float) -> dp.Ticket:
        found = prune(
            bench.subset,
            density=density,
            collapse="ignore",
            seed=bench.draw(name, density),
        )
        return replace(found, cost=bench.over_all(found.cost))

    return _initial(name, make, title)


def _drawn(name: str, prune: Any, title: str) -> Method:
    def make(bench: Bench, density: float) -> dp.Ticket:
        made: dp.Ticket = prune(
            bench.system,
            density=density,
            collapse="ignore",
            seed=bench.draw(name, density),
        )
        return made

    return _initial(name, make, title)


def _manifold(bench: Bench, density: float) -> dp.Ticket:
    report = _kept(bench, "manifold", lambda: _analyse(bench))
    return dp.manifold.prune(
        bench.system, density=density, report=report, collapse="ignore", warn=False
    )


def _analyse(bench: Bench) -> dp.manifold.ManifoldReport:
    return dp.manifold.analyse(
        bench.system,
        k_max=20,
        samples=0,
        optimizer=bench.recipe.optimizer,
        transient=10,
        batch_size=bench.setting.batch_size,
        hessian_data=bench.subset.data,
        seed=bench.order,
        warn=False,
    )


def _gem_miner(bench: Bench, density: float) -> dp.Ticket:
    return pruning.gem_miner(
        bench.system,
        density=density,
        epochs=bench.setting.mask_epochs,
        freeze_every=1,
        rule="exact",
        data=bench.recipe.data,
        batch_size=None if bench.recipe.data is not None else bench.setting.mask_batch,
        seed=bench.draw("gem-miner", density),
        throw=False,
    )


def _edge_popup(bench: Bench, density: float) -> dp.Ticket:
    return pruning.edge_popup(
        bench.system,
        density=density,
        epochs=bench.setting.mask_epochs,
        data=bench.recipe.data,
        batch_size=None if bench.recipe.data is not None else bench.setting.mask_batch,
        seed=bench.draw("edge-popup", density),
    )


def _early_bird(bench: Bench, density: float) -> Found:
    # the last look where it did not draw one; the note says which it was
    found = pruning.early_bird(
        bench.system,
        train=bench.recipe,
        density=density,
        unit="weight",
        start="initial",
        collapse="ignore",
        seed=bench.order,
        throw=False,
    )
    ticket, note = found.ticket, f"drawn at step {found.drawn_step}"
    if ticket is None:
        note = f"not drawn in {bench.setting.steps} steps: the mask of the last look"
        ticket = dp.Ticket.make(
            found.masks,
            bench.named(bench.system.state),
            bench.system.buffers,
            provenance=found.provenance,
            cost=found.cost,
        )
    return bench.train(ticket, note=note)


def _after(name: str, prune: Any, title: str) -> Method:
    # scores of trained weights
    def make(bench: Bench, density: float) -> dp.Ticket:
        made: dp.Ticket = prune(
            bench.rewound,
            density=density,
            state=dict(bench.dense.state),
            cost=bench.dense.cost,
            collapse="ignore",
        )
        return made

    return _rewound(name, make, title)


def _rewound(name: str, make: Maker, title: str, *, full: bool = False) -> Method:
    # trained again from the rewound weights
    def find(bench: Bench, density: float) -> Found:
        return bench.train(make(bench, density), start=bench.setting.rewind_step)

    return Method(
        name=name, group=REWOUND, find=find, make=make, title=title, full=full
    )


def _tuned(name: str, make: Maker, title: str) -> Method:
    def whole(bench: Bench, density: float) -> dp.Ticket:
        found = make(bench, density)
        return replace(found, cost=bench.dense.cost + bench.over_all(found.cost))

    return _initial(name, whole, title, group=TUNED)


def _trained_subset(bench: Bench) -> dp.GradientSystem:
    return bench.trained.with_data(bench.subset.data)


def _magnitude_tuned(bench: Bench, density: float) -> dp.Ticket:
    return pruning.magnitude(bench.trained, density=density, collapse="ignore")


def _obd(bench: Bench, density: float) -> dp.Ticket:
    system = _trained_subset(bench)
    matvecs = bench.setting.matvecs
    scores = _kept(
        bench,
        "obd",
        lambda: pruning.obd_scores(
            system, matvecs=matvecs, seed=bench.draw("obd", 1.0)
        ),
    )
    cost = Cost(hvps=float(matvecs))
    return pruning.from_scores(
        system, scores, density=density, cost=cost, collapse="ignore"
    )


def _woodfisher(bench: Bench, density: float) -> dp.Ticket:
    return pruning.obs(
        _trained_subset(bench),
        density=density,
        curvature="fisher",
        seed=bench.draw("woodfisher", 1.0),
    )


def _sparsegpt(bench: Bench, density: float) -> dp.Ticket:
    return pruning.sparsegpt(_trained_subset(bench), density=density)


def _during(name: str, prune: Any, title: str) -> Method:
    def find(bench: Bench, density: float) -> Found:
        found = prune(
            bench.system,
            density=density,
            train=bench.recipe,
            update_every=max(1, bench.setting.steps // 50),
            seed=bench.order,
        )
        return Found(
            ticket=found.ticket,
            state=found.trained.masked_state,
            buffers=found.trained.buffers,
            cost=found.cost,
        )

    return Method(name=name, group=DURING, find=find, title=title)


def imp_run(bench: Bench, after: Callable[[float, Found], None]) -> None:
    """Run IMP down to the lowest density; hand over what is found at each target.

    Args:
        bench: Task and seed.
        after: Called with each target density and what was found there.
    """
    targets = bench.setting.densities
    densities = imp_densities(targets, factor=bench.setting.factor)

    def level(ticket: dp.Ticket, level: pruning.IMPLevel, run: dp.Run) -> None:
        density = densities[level.level]
        if density in targets:
            after(
                density,
                Found(
                    ticket=ticket,
                    state=level.state,
                    buffers=level.buffers,
                    cost=ticket.cost + level.cost,
                    note=f"level {level.level} of {len(densities) - 1}",
                ),
            )

    pruning.imp(
        bench.system,
        densities=densities,
        rewind_step=bench.setting.rewind_step,
        train=bench.recipe,
        seed=bench.order,
        after_level=level,
    )


def _imp_layer(bench: Bench, density: float) -> Found:
    # the source's own: 20 % of each layer at a level, of the output layer half of that
    run = pruning.imp(
        bench.system,
        densities=imp_densities((density,), factor=bench.setting.factor),
        rewind_step=bench.setting.rewind_step,
        train=bench.recipe,
        scope="layer",
        rates={bench.system.prunable[-1]: 0.5},
        seed=bench.order,
        checkpoints=bench.checkpoints("imp-layer"),
    )
    ticket, level = run.tickets[-1], run.levels[-1]
    return Found(
        ticket=ticket,
        state=level.state,
        buffers=level.buffers,
        cost=run.cost,
        note=f"level {level.level} of {level.level}",
    )


def _magnitude_layer(bench: Bench, density: float) -> dp.Ticket:
    *hidden, output = bench.system.prunable
    layers = dict.fromkeys(hidden, density) | {output: 1.0 - 0.5 * (1.0 - density)}
    return pruning.magnitude(
        bench.rewound,
        layer_densities=layers,
        state=dict(bench.dense.state),
        cost=bench.dense.cost,
        collapse="ignore",
    )


def _imp(bench: Bench, density: float) -> Found:
    found: dict[float, Found] = {}
    imp_run(bench, found.__setitem__)
    return found[density]


def _dense(bench: Bench, density: float) -> Found:
    dense = bench.dense
    return Found(
        ticket=dense, state=dense.state, buffers=dense.buffers, cost=dense.cost
    )


IMP = Method(
    name="imp",
    group=REWOUND,
    find=_imp,
    title="iterative magnitude pruning, weights rewound",
)
METHODS = {
    method.name: method
    for method in (
        Method(name=DENSE, group=DENSE, find=_dense, title="all weights"),
        IMP,
        _drawn("random", pruning.random, "random, all layers alike in the mean"),
        _after("magnitude-trained", pruning.magnitude, "|w| after training, once"),
        _drawn("magnitude-init", pruning.magnitude, "|w| at initialisation"),
        _scored("snip", pruning.snip, "|w·g|"),
        _scored("synflow", pruning.synflow, "synaptic flow, 100 rounds"),
        _scored("grasp", pruning.grasp, "w·Hg, gradient flow"),
        _initial(
            "gem-miner", _gem_miner, "scores trained, low ones frozen", group=LEARNT
        ),
        _drawn("erk", pruning.erk, "random, Erdős–Rényi layer densities"),
        _scored("force", pruning.force, "|w·g| in 10 rounds, weights may return"),
        _scored("iterative-snip", pruning.iterative_snip, "|w·g| in 10 rounds"),
        _initial(
            "manifold", _manifold, "curvature in the fast subspace after 10 steps"
        ),
        _after("lamp-trained", pruning.lamp, "layer-adaptive |w| after training, once"),
        _during("rigl", pruning.rigl, "drops by |w|, grows by |g|"),
        _during("set", pruning.sparse_evolution, "drops by |w|, grows at random"),
        _during("gmp", pruning.gradual_magnitude, "gradual |w|"),
        _tuned("magnitude-finetuned", _magnitude_tuned, "|w| of trained weights"),
        _tuned("obd", _obd, "½ h w², diagonal of the Hessian"),
        _tuned("sparsegpt", _sparsegpt, "layer by layer, errors moved on"),
        Method(
            name="early-bird",
            group=LEARNT,
            find=_early_bird,
            title="|w| once its mask stops moving, rewound (unstructured: ours)",
        ),
        _initial(
            "edge-popup", _edge_popup, "scores trained on frozen weights", group=LEARNT
        ),
        _tuned("woodfisher", _woodfisher, "w²/2[F⁻¹], blocks of 50, survivors moved"),
        Method(
            name="imp-layer",
            group=REWOUND,
            find=_imp_layer,
            title="imp layer by layer, output at half the rate (50,000 steps only)",
            full=True,
        ),
        _rewound(
            "magnitude-layer",
            _magnitude_layer,
            "|w| in each layer once, output at half the rate (50,000 steps only)",
            full=True,
        ),
    )
}
GROUPS = (INITIAL, LEARNT, REWOUND, TUNED, DURING)


def _kept(bench: Bench, name: str, make: Callable[[], Any]) -> Any:
    # once for all densities of a unit
    store = bench.__dict__.setdefault("_made", {})
    if name not in store:
        store[name] = make()
    return store[name]


def noted(work: Callable[[], Found]) -> Found:
    """Return what is found, with the first sentences of its warnings in the note."""
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        found = work()
    told = dict.fromkeys(str(one.message).partition(". ")[0] for one in heard)
    return replace(found, note="; ".join(part for part in (found.note, *told) if part))
