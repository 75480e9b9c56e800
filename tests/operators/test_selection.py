import pytest
import torch
from problems import classes, dense_hessian, small_net
from torch import nn

from dynprune.core import InvalidInputError
from dynprune.operators import (
    EmpiricalFisherOperator,
    GaussNewtonOperator,
    HessianOperator,
    MatrixOperator,
    NTKOperator,
    ResidualOperator,
    select,
)
from dynprune.system import GradientSystem

CROSS = nn.functional.cross_entropy


def make(**settings):
    return GradientSystem(small_net(), CROSS, classes(13, 3, 3), **settings)


def test_select_marks_the_entries_of_matching_parameters():
    system = make()  # 0.weight 12, 0.bias 4, 2.weight 12, 2.bias 3
    want = torch.zeros(31, dtype=torch.bool)
    want[:16] = True
    assert torch.equal(select(system, "0.*"), want)
    want[12:] = False
    want[16:28] = True
    assert torch.equal(select(system, "*.weight"), want)
    assert torch.equal(select(system, ["0.weight", "2.w*"]), want)


def test_restriction_by_name_is_the_block_of_the_hessian():
    system = make()
    H = dense_hessian(system, system.state)
    found = HessianOperator(system).restrict(select(system, "2.*")).dense()
    assert torch.allclose(found, H[16:, 16:], rtol=1e-11, atol=1e-14)


def test_select_counts_survivors():
    masked = make().with_mask({"0.weight": torch.arange(12).reshape(4, 3) % 3 > 0})
    mask = select(masked, "0.weight")
    assert mask.shape == (27,)
    assert int(mask.sum()) == 8
    gone = masked.with_mask({"0.weight": torch.zeros(4, 3, dtype=torch.bool)})
    with pytest.raises(InvalidInputError, match="pruned them all"):
        select(gone, "0.weight")
    assert int(select(gone, "0.*").sum()) == 4


def test_select_refuses_unknown_names():
    with pytest.raises(InvalidInputError, match=r"'1.\*'.*Known: 0\.weight"):
        select(make(), ["0.*", "1.*"])


@pytest.mark.parametrize("form", ["mapping", "list"])
@pytest.mark.parametrize("columns", [(), (1,), (3,)], ids=str)
def test_products_with_named_tensors_equal_products_with_vectors(form, columns):
    system = make()
    H = HessianOperator(system, route="budget")
    V = torch.randn(31, *columns, generator=torch.Generator().manual_seed(0)).double()
    tensors = {
        name: V[place].reshape(*shape, *columns)
        for (name, place), shape in zip(
            system.coordinates.slices.items(), system.coordinates.shapes, strict=True
        )
    }
    given = dict(reversed(tensors.items())) if form == "mapping" else tensors.values()
    given = given if form == "mapping" else list(given)
    found = H @ given
    assert isinstance(found, dict if form == "mapping" else list)
    if form == "mapping":
        assert tuple(found) == system.names
        found = list(found.values())
    assert [part.shape for part in found] == [part.shape for part in tensors.values()]
    flat = torch.cat([part.reshape(-1, *columns) for part in found])
    assert torch.equal(flat, H @ V)


def test_pruned_entries_are_ignored_and_come_back_zero():
    keep = torch.arange(12).reshape(4, 3) % 3 > 0
    masked = make().with_mask({"0.weight": keep})
    H = HessianOperator(masked, route="budget")
    tensors = {n: torch.ones(p.shape).double() for n, p in _shapes(masked)}
    found = H @ tensors
    assert not bool(found["0.weight"][~keep].any())
    assert torch.equal(masked.flatten(found), H @ torch.ones(27, dtype=torch.float64))
    tensors["0.weight"] = tensors["0.weight"] + 5.0 * ~keep
    again = H @ tensors
    assert all(torch.equal(found[name], again[name]) for name in found)


def _shapes(system):
    return [(n, p) for n, p in system.model.named_parameters() if n in system.names]


def test_parameters_without_coordinates_may_be_left_out():
    gone = make().with_mask({"0.weight": torch.zeros(4, 3, dtype=torch.bool)})
    H = HessianOperator(gone, route="budget")
    tensors = {n: torch.ones(p.shape).double() for n, p in _shapes(gone)}
    del tensors["0.weight"]
    found = H @ tensors
    assert not bool(found["0.weight"].any())
    del tensors["0.bias"]
    with pytest.raises(InvalidInputError, match=r"'0\.bias' is missing"):
        H @ tensors


def test_named_products_refuse_what_does_not_fit():
    system = make()
    H = HessianOperator(system)
    good = {n: torch.ones(p.shape).double() for n, p in _shapes(system)}
    with pytest.raises(InvalidInputError, match=r"Unknown parameter '0\.wight'"):
        H @ (good | {"0.wight": good["0.weight"]})
    with pytest.raises(InvalidInputError, match=r"'0\.bias' has shape \(5,\)"):
        H @ (good | {"0.bias": torch.ones(5).double()})
    with pytest.raises(InvalidInputError, match=r"'0\.weight' has shape"):
        H @ (good | {"0.weight": torch.ones(4, 3, 2).double()})
    with pytest.raises(InvalidInputError, match="3 tensors were given for 4"):
        H @ list(good.values())[:3]
    with pytest.raises(InvalidInputError, match="Convert the vector"):
        H @ {name: part.float() for name, part in good.items()}
    with pytest.raises(InvalidInputError, match="rows are no parameters"):
        MatrixOperator(torch.eye(3)) @ good


def test_a_restricted_operator_takes_the_tensors_it_is_of():
    system = make()
    H = HessianOperator(system, route="budget")
    block = H.restrict(select(system, "2.*"))
    good = {n: torch.ones(p.shape).double() for n, p in _shapes(system)}
    found = block @ {name: good[name] for name in ("2.weight", "2.bias")}
    whole = dense_hessian(system, system.state)[16:, 16:].sum(1)
    flat = torch.cat([found[name].reshape(-1) for name in ("2.weight", "2.bias")])
    assert torch.allclose(flat, whole, rtol=1e-11, atol=1e-13)
    assert not bool(found["0.weight"].any())
    shifted = (block.shifted(2.0) + block) @ good
    again = torch.cat([shifted[name].reshape(-1) for name in ("2.weight", "2.bias")])
    assert torch.allclose(again, 2 * whole + 2, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize(
    "kind", [GaussNewtonOperator, ResidualOperator, EmpiricalFisherOperator]
)
def test_every_operator_of_a_system_takes_named_tensors(kind):
    system = make()
    op = kind(system, route="budget")
    good = {n: torch.ones(p.shape).double() for n, p in _shapes(system)}
    found = system.flatten(op @ good)
    assert torch.equal(found, op @ torch.ones(31, dtype=torch.float64))
    with pytest.raises(InvalidInputError, match="NTKOperator, whose rows"):
        NTKOperator(system) @ good
