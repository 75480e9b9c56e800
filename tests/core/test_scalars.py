"""Numbers of NumPy and torch stand for the plain ones that they equal."""

import json
from typing import Any

import numpy as np
import pytest
import torch

from dynprune.core import (
    InvalidInputError,
    Provenance,
    derive_seed,
    generator,
    isolated,
)

ONES = [np.int64(1), np.int32(1), np.uint8(1), torch.tensor(1), np.array(1)]


@pytest.mark.parametrize("one", ONES, ids=lambda one: f"{type(one).__name__} {one!r}")
def test_a_seed_is_its_value_whatever_its_type(one: Any) -> None:
    assert derive_seed("a", one) == derive_seed("a", 1)
    assert derive_seed("a", (one, [one, "b"])) == derive_seed("a", (1, [1, "b"]))
    assert torch.equal(
        torch.rand(3, generator=generator(one)), torch.rand(3, generator=generator(1))
    )
    with isolated(one):
        found = torch.rand(3), np.random.rand()  # noqa: NPY002
    with isolated(1):
        wanted = torch.rand(3), np.random.rand()  # noqa: NPY002
    assert torch.equal(found[0], wanted[0])
    assert found[1] == wanted[1]


def test_other_numbers_are_their_values_too() -> None:
    half = derive_seed("a", 0.5, True, "b")
    assert derive_seed("a", np.float32(0.5), np.bool_(True), np.str_("b")) == half
    assert derive_seed("a", np.float64(0.5), torch.tensor(True), "b") == half
    assert derive_seed(np.arange(2)) == derive_seed([0, 1])


def test_plain_seeds_are_what_they_were() -> None:
    # golden: first 8 bytes of sha256(repr(parts)) modulo 2**63, computed with hashlib
    import hashlib

    for parts in (("a", 1), (1.5, -3), ("x", (1, (2.0, "y"))), (None, True), ([1],)):
        digest = hashlib.sha256(repr(parts).encode()).hexdigest()
        assert derive_seed(*parts) == int(digest[:16], 16) % 2**63


@pytest.mark.parametrize("bad", [0.5, "1", None, np.float64(1.0)], ids=repr)
def test_a_seed_that_is_no_integer_is_refused(bad: Any) -> None:
    with pytest.raises(InvalidInputError, match=r"seed is .*Pass an integer"):
        generator(bad)
    with pytest.raises(InvalidInputError, match="seed is"), isolated(bad):
        pass


def test_a_record_holds_plain_numbers() -> None:
    made = Provenance(
        made_by="test",
        seed=np.int64(3),  # type: ignore[arg-type]
        examples=np.int64(7),  # type: ignore[arg-type]
        settings=(
            ("density", np.float32(0.5)),
            ("nest", {"a": [np.int64(1), (torch.tensor(2.0),)], "b": None}),
            ("seeds", np.arange(2)),
        ),
    )
    again = Provenance.from_dict(json.loads(json.dumps(made.to_dict())))
    assert (again.seed, again.examples) == (3, 7)
    wanted = {"density": 0.5, "nest": {"a": [1, [2.0]], "b": None}, "seeds": [0, 1]}
    assert dict(again.settings) == wanted
    assert type(made.seed) is int
    plain = (("density", 0.5), ("layers", ("a", "b")))
    assert Provenance(made_by="test", settings=plain).settings == plain
