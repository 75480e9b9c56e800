import gc
import warnings

import pytest
import torch
from dense_curvature import dense_gauss_newton, output_vector, rows
from problems import (
    classes,
    dense_hessian,
    half_squares,
    linear_regression,
    small_net,
)
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from dynprune.core import InvalidInputError, NumericalWarning
from dynprune.operators import (
    EmpiricalFisherOperator,
    GaussNewtonOperator,
    HessianOperator,
    NTKOperator,
)
from dynprune.system import GradientSystem

CROSS = nn.functional.cross_entropy
ROUTES = ("auto", "budget", "kept", "rebuilt", "batched")


def parts(x, y, sizes):
    return list(zip(x.split(sizes), y.split(sizes), strict=True))


# -- closed forms ---------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [(16,), (8, 8), (15, 1)], ids=str)
def test_linear_regression_has_its_closed_form(sizes):
    model, (x, y), hessian = linear_regression()
    system = GradientSystem(model, half_squares, parts(x, y, sizes))
    G = GaussNewtonOperator(system)
    assert torch.allclose(G.dense(), hessian, rtol=1e-12, atol=1e-14)
    assert torch.allclose(G.dense(), HessianOperator(system).dense(), atol=1e-13)


@pytest.mark.parametrize("sizes", [(16,), (8, 8), (15, 1)], ids=str)
def test_softmax_regression_has_its_closed_form(sizes):
    x, y = classes(16, 3, 4)
    model = nn.Linear(3, 4, bias=False).double()
    system = GradientSystem(model, CROSS, parts(x, y, sizes))
    p = (x @ model.weight.detach().T).softmax(1)
    bend = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    wanted = torch.einsum("nab,ni,nj->aibj", bend, x, x).reshape(12, 12) / 16
    assert torch.allclose(GaussNewtonOperator(system).dense(), wanted, atol=1e-14)


def test_logistic_regression_has_its_closed_form():
    x, _ = classes(16, 3, 2)
    y = (x[:, :1] > 0).double()
    model = nn.Linear(3, 1, bias=False).double()
    bce = nn.functional.binary_cross_entropy_with_logits
    system = GradientSystem(model, bce, parts(x, y, (15, 1)))
    p = torch.sigmoid(x @ model.weight.detach().T)
    wanted = (x * p * (1 - p)).T @ x / 16
    assert torch.allclose(GaussNewtonOperator(system).dense(), wanted, atol=1e-14)


# -- dense twins ----------------------------------------------------------------------


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("kind", ["resident", "microbatched"])
def test_every_route_equals_the_dense_twin(kind, route):
    system = GradientSystem(
        small_net(),
        CROSS,
        classes(13, 3, 3),
        l2=0.01,
        microbatch=4 if kind[0] == "m" else None,
    )
    G = GaussNewtonOperator(system, route=route)
    twin = dense_gauss_newton(system)
    assert torch.allclose(G.dense(), twin, rtol=1e-11, atol=1e-14)
    v = torch.linspace(-1, 1, system.size, dtype=torch.float64)
    assert torch.allclose(G @ v, twin @ v, rtol=1e-11, atol=1e-14)
    assert G.plan.kept == (route != "rebuilt")
    assert G.plan.way == "batched" or route != "batched"


@pytest.mark.parametrize("route", ["auto", "batched"])
def test_a_loader_is_read_once_per_block(route):
    class Counted(TensorDataset):
        reads = 0

        def __getitem__(self, index):
            Counted.reads += 1
            return super().__getitem__(index)

    x, y = classes(13, 3, 3)
    system = GradientSystem(small_net(), CROSS, DataLoader(Counted(x, y), 5))
    G = GaussNewtonOperator(system, route=route)
    V = torch.eye(system.size, dtype=torch.float64)[:, :6]
    twin = dense_gauss_newton(system)
    G @ V
    Counted.reads = 0
    assert torch.allclose(G @ V, twin[:, :6], rtol=1e-11, atol=1e-14)
    assert Counted.reads == 13
    assert G.matvecs == 12


def test_a_small_budget_makes_microbatches_and_changes_no_number():
    system = GradientSystem(small_net(widths=(3, 40, 3)), CROSS, classes(200, 3, 3))
    whole = GaussNewtonOperator(system)
    size = whole.plan.nbytes
    cut = GaussNewtonOperator(system, memory_budget=size)
    assert cut.plan.microbatch is not None
    assert not cut.plan.kept
    v = torch.linspace(-1, 1, system.size, dtype=torch.float64)
    assert torch.allclose(cut @ v, whole @ v, rtol=1e-11, atol=1e-14)


def test_products_equal_finite_differences_of_the_outputs():
    # independent of any derivative in torch but the loss's own
    system = GradientSystem(small_net(), half_squares, _curve(11))
    v, w = torch.randn(2, system.size, generator=torch.Generator().manual_seed(3))
    v, w = v.double(), w.double()
    step = 1e-6

    def push(vector):
        ahead, behind = (
            output_vector(system, _leaf(system.state + s * vector), system.data)
            for s in (step, -step)
        )
        return (ahead - behind).detach() / (2 * step)

    # the loss is |f − y|²/N, so w'Gv = (2/N) (Jw)'(Jv); steps are exact to
    # step² |∇³f| and eps / step
    wanted = 2 / 11 * push(w) @ push(v)
    found = w @ (GaussNewtonOperator(system) @ v)
    assert float(found) == pytest.approx(float(wanted), rel=1e-8)


def _leaf(theta):
    return theta.clone().requires_grad_()


def _curve(n):
    x, _ = classes(n, 3, 3)
    return x, x.cos()


@pytest.mark.parametrize("scale", [0.1, 3.0])
def test_it_is_positive_semidefinite_for_convex_losses(scale):
    net = small_net(widths=(3, 6, 3))
    system = GradientSystem(net, CROSS, classes(13, 3, 3))
    at = scale * system.state
    G = GaussNewtonOperator(system, at).dense()
    H = HessianOperator(system, at).dense()
    scale = float(torch.linalg.eigvalsh(G)[-1])
    assert float(torch.linalg.eigvalsh(G)[0]) >= -1e-14 * scale * system.size
    assert float(torch.linalg.eigvalsh(H)[0]) < -1e-6 * scale  # H is not


def test_a_loss_that_is_not_convex_gives_a_negative_eigenvalue():
    def welsch(outputs, targets):
        return (1 - (-(outputs - targets).square()).exp()).mean()

    model, (x, y), _ = linear_regression()
    system = GradientSystem(model, welsch, (x, y))
    twin = dense_hessian(system, system.state)  # outputs are affine: H = G
    assert float(torch.linalg.eigvalsh(twin)[0]) < 0
    assert torch.allclose(GaussNewtonOperator(system).dense(), twin, atol=1e-14)


def test_a_loss_that_is_affine_in_the_outputs_gives_l2_alone():
    system = GradientSystem(small_net(), lambda f, y: (f * y).mean(), _curve(5), l2=0.5)
    G = GaussNewtonOperator(system).dense()
    assert torch.equal(G, 0.5 * torch.eye(system.size, dtype=torch.float64))


def test_masked_system_gives_the_block_of_the_survivors():
    dense = GradientSystem(small_net(), CROSS, classes(13, 3, 3))
    masked = dense.with_mask({"0.weight": torch.arange(12).reshape(4, 3) % 3 > 0})
    at = dense.with_state({
        **dense.unflatten(dense.state),
        **masked.unflatten(masked.state),
    })
    kept = masked.coordinates.survivors
    want = dense_gauss_newton(at)[kept][:, kept]
    assert torch.allclose(GaussNewtonOperator(masked).dense(), want, atol=1e-14)


def test_selected_parameters_give_their_block():
    net, data = small_net(), classes(13, 3, 3)
    whole = GradientSystem(net, CROSS, data)
    system = GradientSystem(net, CROSS, data, parameters="2.*")
    place = slice(whole.coordinates.slices["2.weight"].start, whole.size)
    want = dense_gauss_newton(whole)[place, place]
    assert torch.allclose(GaussNewtonOperator(system).dense(), want, atol=1e-14)


def test_float32_agrees_with_float64_to_its_rounding():
    system = GradientSystem(small_net().float(), CROSS, classes(13, 3, 3))
    G = GaussNewtonOperator(system).dense()
    assert G.dtype == torch.float32
    twin = dense_gauss_newton(system.double())
    rounding = torch.finfo(torch.float32).eps * 100  # sums of 13 × 3 × 4 terms
    assert float((G.double() - twin).norm()) <= rounding * float(twin.norm())


# -- any network ----------------------------------------------------------------------


class Nested(nn.Module):
    """Outputs: a dictionary with tensors of two shapes, a constant and a number."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(4, 3), nn.Linear(4, 2)

    def forward(self, x):
        hidden = {"a": self.one(x), "b": [self.two(x).tanh(), x.detach()]}
        return {**hidden, "count": len(x)}


def nested_loss(outputs, targets):
    count, (b, constant) = outputs["count"], outputs["b"]
    assert count == len(targets)
    assert not constant.requires_grad
    mixed = (outputs["a"].sum(1) * b[:, 0].exp()).mean()
    return CROSS(outputs["a"], targets) + mixed.square() * 0 + b.pow(4).sum(1).mean()


class Embedded(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(7, 4, padding_idx=0)
        self.out = nn.Linear(4, 7, bias=False)
        self.out.weight = self.embedding.weight  # tied

    def forward(self, x):
        return self.out(self.embedding(x).tanh().mean(1))[:, :3]


class Unused(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.never = nn.Linear(4, 3), nn.Linear(2, 2)

    def forward(self, x):
        return self.used(x)


class InnerDerivative(nn.Module):
    """Outputs that hold a derivative of a network in its input."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1))

    def forward(self, x):
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            value = self.net(x)
            (slope,) = torch.autograd.grad(value.sum(), x, create_graph=True)
        return torch.cat([value, slope[:, :2]], 1)


class Fused(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(4, 12)

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, -1)
        return nn.functional.scaled_dot_product_attention(q, k, v).mean(1)[:, :3]


def conv(*layers, out=4):
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        *layers,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(out, 3),
    )


IMAGES, TOKENS, POINTS = (5, 2, 4, 4), (5, 3, 4), (5, 4)
NETS = {
    "conv, norm, rectifier in place": (
        lambda: conv(nn.BatchNorm2d(4), nn.ReLU(inplace=True)),
        IMAGES,
    ),
    "conv without bias": (
        lambda: conv(nn.Conv2d(4, 4, 3, stride=2, bias=False), nn.Tanh()),
        IMAGES,
    ),
    "grouped conv, plain norm": (
        lambda: conv(
            nn.Conv2d(4, 4, 3, groups=2, dilation=2, padding=2),
            nn.BatchNorm2d(4, affine=False),
            nn.Tanh(),
        ),
        IMAGES,
    ),
    "same padding": (lambda: conv(nn.Conv2d(4, 4, 3, padding="same")), IMAGES),
    "transposed conv": (lambda: conv(nn.ConvTranspose2d(4, 4, 2), nn.Tanh()), IMAGES),
    "one channel more, twice used": (
        lambda: conv(nn.BatchNorm2d(4), nn.GroupNorm(2, 4), nn.InstanceNorm2d(4)),
        IMAGES,
    ),
    "conv1d": (
        lambda: nn.Sequential(nn.Conv1d(3, 2, 2), nn.Tanh(), nn.Flatten()),
        TOKENS,
    ),
    "linear, norm": (
        lambda: nn.Sequential(
            nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3)
        ),
        POINTS,
    ),
    "linear over tokens, norm over tokens": (
        lambda: nn.Sequential(
            nn.Linear(4, 5), nn.BatchNorm1d(3), nn.Flatten(), nn.Linear(15, 3)
        ),
        TOKENS,
    ),
    "layer norm": (
        lambda: nn.Sequential(nn.LayerNorm(4), nn.Tanh(), nn.Linear(4, 3)),
        POINTS,
    ),
    "transformer layer": (
        lambda: nn.Sequential(
            nn.TransformerEncoderLayer(4, 2, 8, batch_first=True, activation="gelu"),
            nn.Flatten(),
            nn.Linear(12, 3),
        ),
        TOKENS,
    ),
    "fused attention": (Fused, TOKENS),
    "tied embedding": (Embedded, (5, 6)),
    "inner derivative": (InnerDerivative, POINTS),
    "no parameter moves it": (
        lambda: nn.Sequential(nn.Linear(4, 3), nn.Hardtanh(1e3, 2e3)),
        POINTS,
    ),
}


def make(name, loss=CROSS):
    maker, shape = NETS.get(name, (Transformed, POINTS))
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(0)
        net = maker().double()
        for part in net.parameters():  # norms away from 1 and 0
            part.data.add_(0.3 * torch.randn(part.shape).double())
        for name_, part in net.named_buffers():
            if "running" in name_:
                part.copy_(torch.linspace(0.5, 1.5, part.numel()))
        x = torch.randn(shape, dtype=torch.float64)
        if name == "tied embedding":
            x = torch.randint(0, 7, shape)
        y = torch.randint(0, 3, shape[:1])
    return GradientSystem(net, loss, (x, y))


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("small", [False, True], ids=["as chosen", "all replaced"])
def test_any_network_equals_the_dense_twin(name, small, monkeypatch, untouched):

    from dynprune.operators import _cotangents

    if small:
        monkeypatch.setattr(_cotangents, "_SMALL", 0)
    system = make(name)
    before = {k: p.clone() for k, p in system.model.state_dict().items()}
    with untouched():
        G = GaussNewtonOperator(system, route="budget")
        found = G.dense()
    twin = dense_gauss_newton(system)
    scale = float(twin.norm()) + 1e-30
    assert float((found - twin).norm()) <= 1e-11 * scale
    after = system.model.state_dict()
    assert all(torch.equal(after[key], part) for key, part in before.items())
    assert all(part.grad is None for part in system.model.parameters())


class Transformed(nn.Module):
    """Outputs through torch.func: maps, and derivatives in the input."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))

    def forward(self, x):
        mapped = torch.vmap(self.net)(x)
        slope = torch.func.grad(lambda x: self.net(x).sum())(x)[:, :3]
        return mapped + slope + torch.func.jvp(self.net, (x,), (x.cos(),))[1]


def test_the_jacobian_of_a_network_that_calls_torch_func():
    from dynprune.operators._jacobian import jacobian

    with warnings.catch_warnings():  # torch's own, of its forward mode
        warnings.simplefilter("ignore", DeprecationWarning)
        system = make("transformed")
        theta, x = system.state.requires_grad_(), system.data[0]
        J = jacobian(
            lambda theta: output_vector(system, theta, (x,)),
            system.state,
            substitute=True,
            small=True,
        )
        wanted = rows(output_vector(system, theta, (x,)), theta)
    v = torch.linspace(-1, 1, system.size, dtype=torch.float64)[None]
    w = torch.linspace(-1, 1, 15, dtype=torch.float64)[None]
    assert torch.allclose(J.push(v), v @ wanted.T, rtol=1e-11, atol=1e-13)
    assert torch.allclose(J.pull(w), w @ wanted, rtol=1e-11, atol=1e-13)


def test_outputs_may_be_any_nest_of_tensors():
    x, y = torch.randn(5, 4, generator=torch.Generator().manual_seed(0)), None
    x, y = x.double(), torch.arange(5) % 3
    system = GradientSystem(Nested().double(), nested_loss, (x, y))
    G = GaussNewtonOperator(system)
    theta = system.state.requires_grad_()
    vector = output_vector(system, theta, (x, y))
    J = torch.stack([
        torch.autograd.grad(f, theta, retain_graph=True)[0] for f in vector
    ])

    def loss(flat):
        a, b = flat.split([15, 10])
        outputs = {"a": a.view(5, 3), "b": [b.view(5, 2), x], "count": 5}
        return nested_loss(outputs, y)

    bend = torch.autograd.functional.hessian(loss, vector.detach())
    assert torch.allclose(G.dense(), J.T @ bend @ J, rtol=1e-11, atol=1e-13)


def test_an_unused_parameter_has_zero_rows():
    x, y = classes(5, 4, 3)
    system = GradientSystem(Unused().double(), CROSS, (x, y))
    operator = GaussNewtonOperator(system)
    with pytest.warns(NumericalWarning, match=r"never\.weight"):
        G = operator.dense()
    used = slice(0, system.coordinates.slices["used.bias"].stop)
    assert torch.allclose(G, dense_gauss_newton(system), atol=1e-14)
    assert float(G[used, used].norm()) > 0
    assert not bool(G[used.stop :].any())


# -- fast kernels are checked ---------------------------------------------------------


def test_a_wrong_kernel_is_found_and_named(monkeypatch):

    from dynprune.operators import _cotangents

    right = _cotangents._multiply

    def wrong(x, w, b, settings):
        y = right(x, w, b, settings)
        return y if settings is None or torch.is_grad_enabled() else 1.01 * y

    system = make("conv without bias")
    twin = dense_gauss_newton(system)
    monkeypatch.setattr(_cotangents, "_multiply", wrong)
    G = GaussNewtonOperator(system)
    with pytest.warns(NumericalWarning, match="probably in Conv2d"):
        found = G.dense()
    assert not G.plan.substitute
    assert torch.allclose(found, twin, rtol=1e-11, atol=1e-14)


class Picky(nn.Module):
    """Its backward pass looks at a number, which torch cannot do for several."""

    class Twice(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return 2 * x

        @staticmethod
        def backward(ctx, dy):
            return 2 * dy if bool(dy.abs().sum() >= 0) else dy

    def forward(self, x):
        return self.Twice.apply(x)


def test_vectors_that_torch_cannot_push_together_go_one_by_one():
    net = nn.Sequential(nn.Linear(3, 4), Picky(), nn.Linear(4, 3)).double()
    system = GradientSystem(net, CROSS, classes(5, 3, 3))
    G = GaussNewtonOperator(system, route="batched")
    with pytest.warns(NumericalWarning, match="at once.*probably in Picky"):
        found = G.dense()
    assert G.plan.way == "kept"
    assert torch.allclose(found, dense_gauss_newton(system), rtol=1e-11, atol=1e-14)


def test_a_kept_graph_holds_little_more_than_the_activations():
    # plain torch holds the results of the pull-back, too: about twice as much
    from dynprune.operators._jacobian import jacobian

    net = nn.Sequential(
        nn.Conv2d(2, 8, 3, padding=1), nn.Tanh(), nn.Conv2d(8, 8, 3, padding=1)
    )
    x = torch.randn(4, 2, 16, 16, generator=torch.Generator().manual_seed(0))
    system = GradientSystem(
        net, lambda f, y: (f.mean((1, 2, 3)) * y).mean(), (x, x[:, 0, 0, 0])
    )

    def outputs(theta):
        return system.forward(system.unflatten(theta), {}, x).reshape(-1)

    def nbytes(*, substitute):
        held = {}

        def pack(tensor):
            storage = tensor.untyped_storage()
            held[storage.data_ptr()] = storage.nbytes()
            return tensor.detach()

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept):
            found = jacobian(outputs, system.state, substitute=substitute)
        assert found.pulled.requires_grad
        return sum(held.values())

    activations = x.nbytes + 2 * 4 * x.nbytes  # the input, and before and after tanh
    lean, plain = nbytes(substitute=True), nbytes(substitute=False)
    assert lean <= 1.3 * activations
    assert plain >= 1.4 * lean


@pytest.mark.parametrize(
    "kind", [GaussNewtonOperator, EmpiricalFisherOperator, NTKOperator]
)
def test_graphs_that_are_not_kept_are_freed_at_once(kind):
    def alive():
        return sum(issubclass(type(part), torch.Tensor) for part in gc.get_objects())

    system = GradientSystem(small_net(), CROSS, classes(12, 3, 3), microbatch=4)
    op = kind(system, route="rebuilt")
    v = torch.ones(op.size, dtype=torch.float64)
    op @ v
    gc.collect()
    gc.disable()
    try:
        before = alive()
        op @ v
        assert alive() == before
    finally:
        gc.enable()


# -- the user's world -----------------------------------------------------------------


def test_the_operator_keeps_its_state_and_counts():
    net = small_net()
    system = GradientSystem(net, CROSS, classes(13, 3, 3))
    G = GaussNewtonOperator(system)
    v = torch.ones(system.size, dtype=torch.float64)
    before = G @ v
    with torch.no_grad():
        net[0].weight.mul_(2)
    assert torch.equal(G @ v, before)
    assert G.matvecs == 2
    G @ torch.stack([v, v], 1)
    assert G.matvecs == 4
    assert G.shape == (system.size, system.size)
    assert (G @ v[:, None][:, :0]).shape == (system.size, 0)


def test_it_refuses_what_it_cannot_do():
    data = classes(13, 3, 3)
    net = small_net()
    by_batch = GradientSystem(
        net, None, data, batch_loss=lambda m, b: CROSS(m(b[0]), b[1])
    )
    with pytest.raises(InvalidInputError, match=r"batches \(x, y\), where loss_fn"):
        GaussNewtonOperator(by_batch)
    system = GradientSystem(net, CROSS, data)
    with pytest.raises(InvalidInputError, match="Unknown route 'linearised'"):
        GaussNewtonOperator(system, route="linearised")
    with pytest.raises(InvalidInputError, match=r"first in parameter '0\.weight'"):
        GaussNewtonOperator(system) @ torch.full(
            (system.size,), torch.nan, dtype=torch.float64
        )
    with pytest.raises(InvalidInputError, match="budget"):
        GaussNewtonOperator(system, memory_budget=10, route="kept").dense()

    class Hidden:
        def __init__(self, logits):
            self.logits = logits

    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = small_net()

        def forward(self, x):
            return Hidden(self.net(x))

    hidden = GradientSystem(Wrapped(), lambda f, y: CROSS(f.logits, y), data)
    with pytest.raises(InvalidInputError, match="hold a Hidden"):
        GaussNewtonOperator(hidden).dense()


def test_curvlinops_makes_the_same_products():
    curvlinops = pytest.importorskip("curvlinops")
    x, y = classes(15, 3, 3)
    net = small_net().float()
    data = parts(x.float(), y, (8, 7))
    with warnings.catch_warnings():  # torch's own, of its forward mode
        warnings.simplefilter("ignore", DeprecationWarning)
        theirs = curvlinops.GGNLinearOperator(
            net, nn.CrossEntropyLoss(), list(net.parameters()), data
        )
    system = GradientSystem(net, CROSS, data)
    v = torch.linspace(-1, 1, system.size)
    found, wanted = GaussNewtonOperator(system) @ v, theirs @ v
    assert torch.allclose(found, wanted, rtol=1e-4, atol=1e-6)
