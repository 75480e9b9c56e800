"""Every pruner on a GPU chooses the weights that it chooses on the CPU."""

import pytest
import torch
from torch import nn

from dynprune import pruning
from dynprune.manifold import analyse, prune as manifold_prune
from dynprune.system import GradientSystem
from dynprune.tasks import Problem
from dynprune.training import Recipe

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"),
]

CROSS = nn.functional.cross_entropy
RECIPE = Recipe(
    lambda params: torch.optim.SGD(params, lr=0.05, momentum=0.9),
    steps=12,
    batch_size=16,
)


def net(seed: int) -> nn.Module:
    draw = torch.Generator().manual_seed(seed)
    made = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 6, 3, stride=2, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(54, 3),
    ).double()
    with torch.no_grad():
        for name, part in made.named_parameters():
            noise = torch.randn(part.shape, generator=draw, dtype=part.dtype)
            scale = 0.02 if name[0] in "14" else 0.3
            part.copy_(scale * noise + (1.0 if name in {"1.weight", "4.weight"} else 0))
    return made


def images():
    draw = torch.Generator().manual_seed(5)
    x = torch.randn(48, 1, 6, 6, generator=draw, dtype=torch.float64)
    return x, torch.arange(48) % 3


def system(device: str) -> GradientSystem:
    x, y = images()
    return GradientSystem(net(0).to(device), CROSS, (x.to(device), y.to(device)))


def state(made: GradientSystem) -> dict[str, torch.Tensor]:
    return {name: 1.1 * part for name, part in made.unflatten(made.state).items()}


PRUNERS = {
    "random": lambda s: pruning.random(s, density=0.3),
    "erk": lambda s: pruning.erk(s, density=0.3),
    "magnitude": lambda s: pruning.magnitude(s, density=0.3),
    "magnitude by layer": lambda s: pruning.magnitude(s, density=0.3, scope="layer"),
    "magnitude, trained": lambda s: pruning.magnitude(s, density=0.3, state=state(s)),
    "lamp": lambda s: pruning.lamp(s, density=0.3),
    "snip": lambda s: pruning.snip(s, density=0.3),
    "iterative snip": lambda s: pruning.iterative_snip(s, density=0.3, rounds=3),
    "force": lambda s: pruning.force(s, density=0.3, rounds=3),
    "grasp": lambda s: pruning.grasp(s, density=0.3),
    "synflow": lambda s: pruning.synflow(s, density=0.3, rounds=5),
    "obd": lambda s: pruning.obd(s, density=0.3, matvecs=20),
    "obs": lambda s: pruning.obs(s, density=0.5, curvature="fisher", block_size=20),
    "sparsegpt": lambda s: pruning.sparsegpt(s, density=0.5),
    "rigl": lambda s: pruning.rigl(s, density=0.3, train=RECIPE, update_every=4),
    "set": lambda s: pruning.sparse_evolution(
        s, density=0.3, train=RECIPE, update_every=4
    ),
    "gmp": lambda s: pruning.gradual_magnitude(
        s, density=0.3, train=RECIPE, update_every=4
    ),
    "imp": lambda s: pruning.imp(
        s, densities=[1.0, 0.6, 0.3], train=RECIPE, rewind_step=3
    ),
    "gem-miner": lambda s: pruning.gem_miner(
        s, density=0.5, epochs=4, freeze_every=1, batch_size=16, throw=False
    ),
    "edge-popup": lambda s: pruning.edge_popup(s, density=0.5, epochs=2, batch_size=16),
    "early-bird": lambda s: pruning.early_bird(
        s, train=RECIPE, density=0.3, unit="weight", start="initial", throw=False
    ),
    "early-bird, channels": lambda s: pruning.early_bird(
        s, train=RECIPE, density=0.5, throw=False
    ),
    "manifold": lambda s: manifold_prune(
        s, density=0.3, report=analysed(s), warn=False
    ),
}


def analysed(made: GradientSystem):
    return analyse(
        made,
        k_max=6,
        samples=0,
        optimizer=RECIPE.optimizer,
        transient=4,
        batch_size=16,
        warn=False,
    )


def masks(found) -> dict[str, torch.Tensor]:
    if hasattr(found, "tickets"):  # IMP: the last level's
        found = found.tickets[-1]
    if getattr(found, "ticket", None) is not None:
        found = found.ticket
    return {name: mask.cpu() for name, mask in found.masks.items()}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("prune", PRUNERS.values(), ids=PRUNERS.keys())
def test_masks_are_those_of_the_cpu(prune):
    here, there = masks(prune(system("cpu"))), masks(prune(system("cuda")))
    assert here.keys() == there.keys()
    for name, mask in here.items():
        assert torch.equal(mask, there[name]), name


@pytest.mark.filterwarnings("ignore")
def test_sanity_checks_run_where_the_system_is():
    def problem(device):
        data = tuple(part.to(device) for part in images())
        return Problem(
            make_model=net,
            loss_fn=CROSS,
            train=data,
            validation=data,
            test=data,
            name="images",
        )

    found = []
    for device in ("cpu", "cuda"):
        made = system(device)
        ticket = pruning.snip(made, density=0.3)
        found.append(
            pruning.sanity_check(
                ticket,
                made,
                train=RECIPE,
                problem=problem("cpu"),
                split="test",
                seeds=[1, 2],
                how="serial",
            ).to_frame()
        )
    assert list(found[0].control) == list(found[1].control)
    assert (found[0].metric - found[1].metric).abs().max() < 1e-6
