"""One adapter per rival: its best fair use for products, pairs and densities."""

import abc
import contextlib
import functools
import importlib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, final

import numpy as np
import torch
from _models import Case
from torch import Tensor
from torch.func import functional_call

from dynprune.core import isolated

FRESH = "torch, fresh graph"


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence the warnings of other packages."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


class AbstractProducts(abc.ABC):
    """Products with the Hessian of a case, in a rival's own vector format.

    Making one is the rival's construction; vectors are converted outside of timings.
    """

    batched = False

    @abc.abstractmethod
    def __init__(self, case: Case) -> None:
        """Construct the rival's operator."""

    @abc.abstractmethod
    def native(self, vectors: Tensor) -> Any:
        """Convert vectors of shape ``(P,)``, or ``(P, k)`` for a batched product."""

    @abc.abstractmethod
    def product(self, native: Any) -> Any:
        """Return the product in the rival's format."""

    @abc.abstractmethod
    def flat(self, product: Any) -> Tensor:
        """Convert a product to shape ``(P,)`` or ``(P, k)``."""


class _AbstractListed(AbstractProducts):
    # Vectors as lists of tensors like the parameters.
    parameters: list[torch.nn.Parameter]

    @final
    def native(self, vectors: Tensor) -> list[Tensor]:
        """Split into tensors like the parameters."""
        parts = vectors.split([part.numel() for part in self.parameters])
        return [
            a.view_as(b).clone() for a, b in zip(parts, self.parameters, strict=True)
        ]

    @final
    def flat(self, product: Any) -> Tensor:
        """Concatenate."""
        return torch.cat([part.detach().reshape(-1) for part in product])


class _AbstractFlat(AbstractProducts):
    # Vectors of shape (P,) as they are.
    @final
    def native(self, vectors: Tensor) -> Tensor:
        """As it is."""
        return vectors

    @final
    def flat(self, product: Any) -> Tensor:
        """As it is."""
        return product.detach()


@final
class Fresh(_AbstractListed):
    """Plain double backward, the graph built again for each product."""

    def __init__(self, case: Case) -> None:
        self.case, self.parameters = case, case.parameters

    def product(self, native: Any) -> Any:
        """Sum over the batches."""
        return _over_batches(self.case, lambda x, y: self._one(x, y, native))

    def _one(self, x: Tensor, y: Tensor, native: list[Tensor]) -> list[Tensor]:
        value = self.case.loss(self.case.model(x), y)
        grads = torch.autograd.grad(value, self.parameters, create_graph=True)
        return list(torch.autograd.grad(grads, self.parameters, native))


@final
class PyHessian(_AbstractListed):
    """``hessian(data=)`` keeps its graph; ``dataloader=`` builds it per batch."""

    def __init__(self, case: Case) -> None:
        from pyhessian import hessian

        case.model.zero_grad(set_to_none=True)
        whole = len(case.batches) == 1
        data = {"data": case.batches[0]} if whole else {"dataloader": case.batches}
        with quiet():
            self.made = hessian(
                case.model, case.loss, cuda=case.device.type == "cuda", **data
            )
        self.parameters = case.parameters

    def product(self, native: Any) -> Any:
        """Use the kept graph, or pass over the loader."""
        from pyhessian.utils import hessian_vector_product

        made = self.made
        if made.full_dataset:
            with quiet():
                return made.dataloader_hv_product(native)[1]
        return hessian_vector_product(made.gradsH, made.params, native)


@final
class Eigenthings(_AbstractFlat):
    """``hessian_eigenthings.HessianOperator``, its exact method."""

    def __init__(self, case: Case) -> None:
        from hessian_eigenthings import HessianOperator, supervised_loss

        self.made = HessianOperator(
            case.model, case.batches, supervised_loss(case.loss)
        )

    def product(self, native: Any) -> Any:
        """Its matvec."""
        return self.made.matvec(native)


@final
class Curvlinops(_AbstractFlat):
    """``curvlinops.HessianLinearOperator`` without its check of determinism."""

    batched = True

    def __init__(self, case: Case) -> None:
        from curvlinops import HessianLinearOperator

        with quiet():
            self.made = HessianLinearOperator(
                case.model,
                case.loss,
                case.parameters,
                case.batches,
                check_deterministic=False,
                num_data=sum(len(y) for _, y in case.batches),
            )

    def product(self, native: Any) -> Any:
        """Its ``H @ v`` or ``H @ V``."""
        with quiet():
            return self.made @ native


@final
class BackPack(_AbstractListed):
    """``hessian_vector_product`` with the gradient's graph kept for one batch."""

    def __init__(self, case: Case) -> None:
        from backpack.hessianfree.hvp import hessian_vector_product

        self.case, self.parameters = case, case.parameters
        self._call = hessian_vector_product
        self._kept: tuple[Tensor, tuple[Tensor, ...]] | None = None
        if len(case.batches) == 1:
            x, y = case.batches[0]
            value = case.loss(case.model(x), y)
            grads = torch.autograd.grad(value, self.parameters, create_graph=True)
            self._kept = (value, grads)

    def product(self, native: Any) -> Any:
        """Use the kept graph, or one graph per batch."""
        if self._kept is not None:
            value, grads = self._kept
            return self._call(value, self.parameters, native, grad_params=grads)
        return _over_batches(self.case, lambda x, y: self._one(x, y, native))

    def _one(self, x: Tensor, y: Tensor, native: list[Tensor]) -> list[Tensor]:
        value = self.case.loss(self.case.model(x), y)
        return list(self._call(value, self.parameters, native))


@final
class CoLA(_AbstractFlat):
    """``cola.ops.Hessian`` of the loss as a function of a flat vector."""

    batched = True

    def __init__(self, case: Case) -> None:
        with quiet():
            import cola

        named = [n for n, part in case.model.named_parameters() if part.requires_grad]
        shapes = [part.shape for part in case.parameters]
        sizes = [part.numel() for part in case.parameters]

        def loss(theta: Tensor) -> Tensor:
            views = zip(named, theta.split(sizes), shapes, strict=True)
            values = {name: part.view(shape) for name, part, shape in views}
            total = theta.new_zeros(())
            for x, y in case.batches:
                total = total + case.loss(functional_call(case.model, values, (x,)), y)
            return total / len(case.batches)

        theta = torch.cat([part.detach().reshape(-1) for part in case.parameters])
        self.made = cola.SelfAdjoint(cola.ops.Hessian(loss, theta))

    def product(self, native: Any) -> Any:
        """Its ``H @ v`` or ``H @ V``."""
        with quiet():
            return self.made @ native


def _over_batches(
    case: Case, one: Callable[[Tensor, Tensor], list[Tensor]]
) -> list[Tensor]:
    total = None
    for x, y in case.batches:
        parts = one(x, y)
        total = (
            parts
            if total is None
            else [a + b for a, b in zip(total, parts, strict=True)]
        )
    assert total is not None
    return [part / len(case.batches) for part in total]


PRODUCTS: dict[str, type[AbstractProducts]] = {
    FRESH: Fresh,
    "PyHessian": PyHessian,
    "hessian-eigenthings": Eigenthings,
    "curvlinops": Curvlinops,
    "BackPACK": BackPack,
    "CoLA": CoLA,
}
_MODULES = {
    "PyHessian": "pyhessian",
    "hessian-eigenthings": "hessian_eigenthings",
    "curvlinops": "curvlinops",
    "BackPACK": "backpack.hessianfree.hvp",
    "CoLA": "cola",
    "SciPy": "scipy.sparse.linalg",
}


NAMES = tuple(_MODULES)
_WANTED: set[str] = set()


def want(names: list[str] | None) -> dict[str, str]:
    """Leave out all rivals but these (None for all); return what is left out."""
    _WANTED.clear()
    _WANTED.update(names or ())
    absent.cache_clear()
    return absent()


def word(error: BaseException) -> str:
    """Say in a word why something did not work."""
    if isinstance(error, ModuleNotFoundError):
        return "absent"
    return type(error).__name__


@functools.cache
def absent() -> dict[str, str]:
    """Return the rivals that are left out, each with a word of reason."""
    reasons = {}
    for name, module in _MODULES.items():
        if _WANTED and name not in _WANTED:
            reasons[name] = "not asked"
            continue
        try:
            with quiet():
                importlib.import_module(module)
        except Exception as error:
            reasons[name] = word(error)
    return reasons


def installed() -> dict[str, type[AbstractProducts]]:
    """Return the adapters whose rivals can be imported."""
    missing = absent()
    return {name: kind for name, kind in PRODUCTS.items() if name not in missing}


@final
@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Found:
    """Eigenpairs as a rival returned them.

    Args:
        values: Shape ``(k,)``.
        vectors: Shape ``(P, k)``, not necessarily orthonormal.
        matvecs: Products that were made.
    """

    values: Tensor
    vectors: Tensor
    matvecs: float


@final
@dataclass(kw_only=True, eq=False, slots=True)
class _Counter:
    count: float = field(default=0.0)

    def around(self, call: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def counted(block: Any) -> Any:
            self.count += block.shape[1] if block.ndim == 2 else 1
            return call(block)

        return counted


@contextlib.contextmanager
def _counting_pyhessian() -> Iterator[_Counter]:
    # PyHessian's solvers look its product up in their module, which its class hides.
    module: Any = importlib.import_module("pyhessian.hessian")
    counter = _Counter()
    kept = module.hessian_vector_product

    def counted(*arguments: Any) -> Any:
        counter.count += 1
        return kept(*arguments)

    module.hessian_vector_product = counted
    try:
        yield counter
    finally:
        module.hessian_vector_product = kept


def pyhessian_top(case: Case, k: int, *, seed: int, tol: float = 1e-3) -> Found:
    """Run PyHessian's deflated power iteration; its default tolerance is 1e-3."""
    with isolated(seed), _counting_pyhessian() as counter:
        made = PyHessian(case).made
        values, vectors = made.eigenvalues(maxIter=100, tol=tol, top_n=k)
    columns = [torch.cat([part.reshape(-1) for part in v]) for v in vectors]
    return Found(
        values=torch.tensor(values),
        vectors=torch.stack(columns, 1).detach(),
        matvecs=counter.count,
    )


def eigenthings_top(case: Case, k: int, *, seed: int, steps: int) -> Found:
    """Run hessian-eigenthings' Lanczos with reorthogonalisation, so many steps."""
    from hessian_eigenthings import lanczos

    found = lanczos(
        Eigenthings(case).made,
        k=k,
        max_iter=steps,
        which="LA",
        seed=seed,
        reorthogonalize=True,
    )
    return Found(
        values=found.eigenvalues,
        vectors=found.eigenvectors.T,
        matvecs=float(found.iterations),
    )


def curvlinops_top(case: Case, k: int, *, seed: int, tol: float) -> Found:
    """Run SciPy's eigsh on the curvlinops Hessian, in the model's dtype."""
    made = Curvlinops(case)
    return eigsh_top(made.product, case.size, case.dtype, k, seed=seed, tol=tol)


def cola_top(case: Case, k: int, *, seed: int, steps: int) -> Found:
    """Run CoLA's Lanczos on its own Hessian, so many steps."""
    import cola

    hessian = CoLA(case)
    counter = _Counter()
    made = cola.SelfAdjoint(
        cola.ops.LinearOperator(
            case.dtype, (case.size,) * 2, matmat=counter.around(hessian.product)
        )
    )
    start = torch.randn(case.size, generator=torch.Generator().manual_seed(seed))
    solver = cola.linalg.Lanczos(
        start_vector=start.to(case.dtype), max_iters=steps, tol=1e-7
    )
    with quiet():
        values, vectors = cola.linalg.eig(made, k, "LM", solver)
        dense = vectors.to_dense()
    return Found(values=values.real, vectors=dense.real, matvecs=counter.count)


def eigsh_top(
    product: Callable[[Tensor], Tensor],
    size: int,
    dtype: torch.dtype,
    k: int,
    *,
    seed: int,
    tol: float,
    basis: int | None = None,
    which: str = "LA",
) -> Found:
    """Run SciPy's eigsh (ARPACK) with so many vectors of memory."""
    from scipy.sparse.linalg import LinearOperator, eigsh

    kind = torch.empty(0, dtype=dtype).numpy().dtype
    counter = _Counter()
    counted = counter.around(product)

    def multiply(array: np.ndarray) -> np.ndarray:
        vector = torch.from_numpy(array.reshape(-1)).to(dtype)
        return counted(vector).numpy()

    start = np.random.default_rng(seed).standard_normal(size).astype(kind)
    values, vectors = eigsh(
        LinearOperator((size, size), matvec=multiply, dtype=kind),
        k,
        which=which,
        tol=tol,
        ncv=basis,
        v0=start,
    )
    return Found(
        values=torch.from_numpy(values.copy()),
        vectors=torch.from_numpy(vectors.copy()),
        matvecs=counter.count,
    )


@final
@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Quadrature:
    """Hold a discrete spectral measure: nodes with weights that sum to one."""

    nodes: Tensor
    weights: Tensor


def quadrature(nodes: Tensor, weights: Tensor) -> Quadrature:
    """Return a measure in float64, its weights divided by their sum."""
    weights = weights.reshape(-1).double()
    return Quadrature(nodes=nodes.reshape(-1).double(), weights=weights / weights.sum())


def pyhessian_density(case: Case, *, probes: int, steps: int, seed: int) -> Quadrature:
    """Run PyHessian's density; ``torch.eig``, which torch removed, is put in place."""

    def eig(matrix: Tensor, *, eigenvectors: bool) -> tuple[Tensor, Tensor]:
        assert eigenvectors
        values, vectors = torch.linalg.eigh(matrix)
        return torch.stack([values, torch.zeros_like(values)], 1), vectors

    kept = getattr(torch, "eig", None)
    torch.eig = eig
    try:
        with isolated(seed):
            nodes, weights = PyHessian(case).made.density(iter=steps, n_v=probes)
    finally:
        torch.eig = kept
    return quadrature(torch.tensor(np.array(nodes)), torch.tensor(np.array(weights)))


def eigenthings_density(
    case: Case, *, probes: int, steps: int, seed: int
) -> Quadrature:
    """Run hessian-eigenthings' stochastic Lanczos quadrature."""
    from hessian_eigenthings import spectral_density

    found = spectral_density(
        Eigenthings(case).made,
        num_runs=probes,
        lanczos_steps=steps,
        num_grid_points=2,
        seed=1000 * seed,
    )
    return quadrature(found.raw_eigenvalues.nan_to_num(), found.raw_weights)


def curvlinops_density(case: Case, *, probes: int, steps: int, seed: int) -> Quadrature:
    """Run the Lanczos iteration inside curvlinops' spectral density."""
    from curvlinops.papyan2020traces.spectrum import fast_lanczos

    made = Curvlinops(case).made
    nodes, weights = [], []
    with isolated(seed), quiet():
        for _ in range(probes):
            values, vectors = fast_lanczos(made, steps)
            nodes.append(values)
            weights.append(vectors[0].square())
    return quadrature(torch.cat(nodes), torch.cat(weights))


DENSITIES: dict[str, Callable[..., Quadrature]] = {
    "PyHessian": pyhessian_density,
    "hessian-eigenthings": eigenthings_density,
    "curvlinops": curvlinops_density,
}


def pyhessian_trace(case: Case, *, matvecs: int, seed: int) -> tuple[float, float]:
    """Run PyHessian's trace with its own stopping rule; also return its products."""
    with isolated(seed):
        samples = PyHessian(case).made.trace(maxIter=matvecs)
    return float(np.mean(samples)), float(len(samples))


def eigenthings_trace(case: Case, *, matvecs: int, seed: int) -> tuple[float, float]:
    """Run hessian-eigenthings' Hutch++."""
    from hessian_eigenthings import hutch_plus_plus

    found = hutch_plus_plus(Eigenthings(case).made, num_matvecs=matvecs, seed=seed)
    return float(found.estimate), float(3 * (matvecs // 3))


def curvlinops_trace(case: Case, *, matvecs: int, seed: int) -> tuple[float, float]:
    """Run curvlinops' XTrace, which takes an even number of products."""
    from curvlinops.trace.epperly2024xtrace import xtrace

    even = matvecs - matvecs % 2
    with isolated(seed), quiet():
        return float(xtrace(Curvlinops(case).made, even)), float(even)


TRACES: dict[str, Callable[..., tuple[float, float]]] = {
    "PyHessian": pyhessian_trace,
    "hessian-eigenthings": eigenthings_trace,
    "curvlinops": curvlinops_trace,
}
