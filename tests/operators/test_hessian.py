import pytest
import torch
from problems import classes, dense_hessian, half_squares, linear_regression, small_net
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from dynprune.core import InvalidInputError, NotDeterministicError, Rows
from dynprune.operators import AbstractOperator, HessianOperator, MatrixOperator
from dynprune.system import GradientSystem

CROSS = nn.functional.cross_entropy


class Nothing(AbstractOperator):
    rows, coordinates = Rows.whole(20_001), None
    dtype, device, matvecs = torch.float32, torch.device("cpu"), 0.0

    def _product(self, block):
        return 0.0 * block


@pytest.mark.parametrize("sizes", [(16,), (8, 8), (15, 1)], ids=str)
def test_linear_regression_has_its_closed_form(sizes):
    model, (x, y), hessian = linear_regression()
    data = list(zip(x.split(sizes), y.split(sizes), strict=True))
    H = HessianOperator(GradientSystem(model, half_squares, data))
    assert torch.allclose(H.dense(), hessian, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("kind", ["resident", "microbatched", "loader", "rebuilt"])
def test_products_equal_the_dense_twin_and_finite_differences(kind):
    x, y = classes(13, 3, 3)
    data = DataLoader(TensorDataset(x, y), 5) if kind == "loader" else (x, y)
    system = GradientSystem(
        small_net(), CROSS, data, l2=0.01, microbatch=4 if kind[0] == "m" else None
    )
    H = HessianOperator(system, route="rebuilt" if kind == "rebuilt" else "auto")
    twin = dense_hessian(system, system.state)
    assert torch.allclose(H.dense(), twin, rtol=1e-11, atol=1e-13)
    v = torch.linspace(-1, 1, system.size, dtype=torch.float64)
    step = 1e-5
    ahead, behind = (system.gradient(system.state + s * v) for s in (step, -step))
    # central differences are exact to step² ‖∇⁴L‖/6 + eps/step
    assert torch.allclose(H @ v, (ahead - behind) / (2 * step), atol=1e-7)
    V = torch.eye(system.size, dtype=torch.float64)[:, :3]
    assert torch.allclose(H @ V, twin[:, :3], rtol=1e-11, atol=1e-13)


def test_masked_system_gives_the_block_of_the_survivors():
    x, y = classes(13, 3, 3)
    dense = GradientSystem(small_net(), CROSS, (x, y))
    masked = dense.with_mask({"0.weight": torch.arange(12).reshape(4, 3) % 3 > 0})
    at = dense.with_state({
        **dense.unflatten(dense.state),
        **masked.unflatten(masked.state),
    })
    kept = masked.coordinates.survivors
    want = dense_hessian(at, at.state)[kept][:, kept]
    assert torch.allclose(HessianOperator(masked).dense(), want, atol=1e-13)
    mask = torch.zeros(dense.size, dtype=torch.bool)
    mask[kept] = True
    restricted = HessianOperator(at).restrict(mask)
    assert torch.allclose(restricted.dense(), want, atol=1e-13)


def test_the_operator_keeps_its_state_and_counts():
    net = small_net()
    system = GradientSystem(net, CROSS, classes(13, 3, 3))
    H = HessianOperator(system)
    v = torch.ones(system.size, dtype=torch.float64)
    before = H @ v
    with torch.no_grad():
        net[0].weight.mul_(2)
    assert torch.equal(H @ v, before)
    assert H.matvecs == 2
    H @ torch.stack([v, v], 1)
    assert H.matvecs == 4


def test_compositions_equal_dense_algebra():
    A = torch.randn(6, 6, dtype=torch.float64)
    A, op = A + A.T, MatrixOperator(A + A.T)
    U = torch.linalg.qr(torch.randn(6, 2, dtype=torch.float64)).Q
    P = torch.eye(6, dtype=torch.float64) - U @ U.T
    eye = torch.eye(6, dtype=torch.float64)
    assert torch.allclose(op.shifted(2.0).dense(), A + 2 * eye)
    assert torch.allclose(op.deflated(U).dense(), P @ A @ P, atol=1e-13)
    assert torch.allclose((op + op.shifted(1.0)).dense(), 2 * A + eye)
    assert torch.allclose((op - op).dense(), 0 * A)


def test_scipy_bridge_agrees_with_eigsh():
    from scipy.sparse.linalg import eigsh

    model, data, hessian = linear_regression(40, 12)
    op = HessianOperator(GradientSystem(model, half_squares, data)).to_scipy()
    values = eigsh(op, k=3, return_eigenvectors=False)
    assert sorted(values) == pytest.approx(torch.linalg.eigvalsh(hessian)[-3:].tolist())


def test_operators_refuse_what_does_not_fit():
    op = MatrixOperator(torch.eye(3))
    with pytest.raises(InvalidInputError, match=r"Pass \(3,\) or \(3, k\)"):
        op @ torch.ones(2)
    with pytest.raises(InvalidInputError, match="Convert the vector"):
        op @ torch.ones(3, dtype=torch.float64)
    with pytest.raises(InvalidInputError, match="not symmetric"):
        MatrixOperator(torch.tensor([[0.0, 1.0], [0.0, 0.0]]))
    with pytest.raises(InvalidInputError, match="not square"):
        MatrixOperator(torch.ones(2, 3))
    with pytest.raises(InvalidInputError, match="keeps no coordinate"):
        op.restrict(torch.zeros(3, dtype=torch.bool))
    with pytest.raises(InvalidInputError, match=r"torch\.bool"):
        op.restrict(torch.zeros(3))
    with pytest.raises(InvalidInputError, match="not orthonormal"):
        op.deflated(torch.ones(3, 1))
    with pytest.raises(InvalidInputError, match="basis of shape"):
        op.deflated(torch.ones(2, 1))
    with pytest.raises(InvalidInputError, match="cannot be added"):
        op + MatrixOperator(torch.eye(2))
    with pytest.raises(InvalidInputError, match="would hold"):
        Nothing().dense()


class _Noisy(nn.Module):
    def __init__(self):
        nn.Module.__init__(self)
        self.linear = nn.Linear(3, 3).double()

    def forward(self, x):
        return self.linear(nn.functional.dropout(x, 0.5, training=True))


class _Augmented(TensorDataset):
    def __getitem__(self, index):
        x, y = super().__getitem__(index)
        return x + torch.randn(x.shape, dtype=x.dtype), y


def _train_mode(model, batch):
    return CROSS(model.train()(batch[0]), batch[1])


def _nets():
    norm = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)).double()
    drop = nn.Sequential(nn.Dropout(), nn.Linear(3, 3)).double()
    x, y = classes(13, 3, 3)
    plain = small_net()
    return {
        "batch norm": (
            GradientSystem(norm, None, (x, y), batch_loss=_train_mode),
            "batch norm in training",
        ),
        "dropout": (
            GradientSystem(drop, None, (x, y), batch_loss=_train_mode),
            "dropout in training mode \\(0\\)",
        ),
        "functional dropout": (
            GradientSystem(_Noisy(), CROSS, (x, y)),
            "forward pass itself",
        ),
        "augmentation": (
            GradientSystem(plain, CROSS, DataLoader(_Augmented(x, y), 4)),
            "augmentation",
        ),
        "shuffle with drop_last": (
            GradientSystem(
                plain,
                CROSS,
                DataLoader(TensorDataset(x, y), 4, shuffle=True, drop_last=True),
            ),
            "shuffle with drop_last",
        ),
    }


@pytest.mark.parametrize(
    "case",
    [
        "batch norm",
        "dropout",
        "functional dropout",
        "augmentation",
        "shuffle with drop_last",
    ],
)
def test_the_probe_names_the_culprit(case, untouched):
    system, message = _nets()[case]
    with untouched(), pytest.raises(NotDeterministicError, match=message):
        HessianOperator(system)


def test_plain_shuffling_passes_the_probe():
    x, y = classes(13, 3, 3)
    loader = DataLoader(TensorDataset(x, y), 4, shuffle=True)
    H = HessianOperator(GradientSystem(small_net(), CROSS, loader))
    twin = HessianOperator(GradientSystem(small_net(), CROSS, (x, y)))
    assert torch.allclose(H.dense(), twin.dense(), atol=1e-13)


def test_a_diverged_state_has_no_hessian():
    system = GradientSystem(small_net(), CROSS, classes(13, 3, 3))
    bad = torch.full((system.size,), torch.nan, dtype=torch.float64)
    with pytest.raises(InvalidInputError, match="diverged run"):
        HessianOperator(system, bad) @ torch.ones(system.size, dtype=torch.float64)


def test_memory_stays_linear_in_coordinates():
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        seen = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            for part in out if isinstance(out, tuple | list) else (out,):
                if isinstance(part, torch.Tensor):
                    self.seen = max(self.seen, part.numel())
            return out

    system = GradientSystem(small_net(widths=(3, 60, 40, 3)), CROSS, classes(13, 3, 3))
    H = HessianOperator(system)
    with Largest() as largest:
        H @ torch.ones(system.size, dtype=torch.float64)
    assert system.size <= largest.seen <= 2 * system.size


def test_a_product_never_shares_memory_with_the_vector():
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.theta = nn.Parameter(torch.ones(3, dtype=torch.float64))

    def half_square(model, batch):
        return 0.5 * model.theta.square().sum()

    data = (torch.zeros(2, 1), torch.zeros(2))
    system = GradientSystem(Half(), None, data, batch_loss=half_square)
    v = torch.arange(3.0, dtype=torch.float64)
    found = HessianOperator(system) @ v
    assert torch.equal(found, v)
    found.zero_()
    assert torch.equal(v, torch.arange(3.0, dtype=torch.float64))
