import copy

import pytest
import torch
from torch import nn

from dynprune.core import Cost, InvalidInputError, Provenance, cite, save_tensors
from dynprune.system import GradientSystem
from dynprune.tickets import Ticket, reinitialise, shuffle


def net(seed: int = 0) -> nn.Sequential:
    """A float64 MLP with batch norm and weights from its own generator."""
    made = nn.Sequential(
        nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3)
    ).double()
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for part in made.parameters():
            part.copy_(torch.randn(part.shape, generator=draw, dtype=part.dtype))
        made[1].running_mean.fill_(0.5)
    return made


def ticket(model: nn.Module | None = None, *, seed: int = 0) -> Ticket:
    model = model or net()
    draw = torch.Generator().manual_seed(seed)
    shapes = {"0.weight": (5, 4), "3.weight": (3, 5)}
    masks = {n: torch.rand(s, generator=draw) < 0.5 for n, s in shapes.items()}
    masks["0.weight"][0, 0] = True
    return Ticket.make(
        masks,
        dict(model.named_parameters()),
        dict(model.named_buffers()),
        provenance=Provenance(
            made_by="pruning.snip",
            seed=3,
            dtype="float64",
            settings=(("mode", "eval"),),
            sources=("snip",),
        ),
        cost=Cost(gradients=1.5, hvps=2.0, steps=3),
    )


def same(a: dict, b: dict) -> bool:
    return list(a) == list(b) and all(
        a[n].dtype == b[n].dtype and torch.equal(a[n], b[n]) for n in a
    )


def test_density_is_counted_from_the_masks():
    masks = {"a": torch.tensor([True, False, False]), "b": torch.ones(4).bool()}
    found = Ticket.make(masks, {"a": torch.ones(3), "b": torch.ones(4)})
    assert (found.kept, found.prunable_size, found.density) == (5, 7, 5 / 7)
    assert found.layer_densities == {"a": 1 / 3, "b": 1.0}


def test_owns_its_tensors():
    model = net()
    made = ticket(model)
    before = made.state["0.weight"]
    with torch.no_grad():
        model[0].weight.zero_()
    made.masks["0.weight"].zero_()
    made.state["0.weight"].zero_()
    assert torch.equal(made.state["0.weight"], before)
    assert made.masks["0.weight"][0, 0]


def test_round_trip_through_a_file(tmp_path):
    made = ticket()
    made.save(tmp_path / "a")
    found = Ticket.load(tmp_path / "a")
    assert same(found.masks, made.masks)
    assert same(found.state, made.state)
    assert same(found.buffers, made.buffers)
    assert (found.cost, found.provenance) == (made.cost, made.provenance)
    found.save(tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.999], ids=str)
def test_truncated_file_is_refused(tmp_path, share):
    path = tmp_path / "ticket.safetensors"
    ticket().save(path)
    raw = path.read_bytes()
    path.write_bytes(raw[: int(share * len(raw))])
    with pytest.raises(InvalidInputError, match="truncated or not a safetensors"):
        Ticket.load(path)


def test_file_of_another_kind_is_refused(tmp_path):
    save_tensors(tmp_path / "a", {"x": torch.ones(1)}, {"kind": "trajectory"})
    with pytest.raises(InvalidInputError, match="'trajectory', not a ticket"):
        Ticket.load(tmp_path / "a")
    save_tensors(tmp_path / "b", {"x": torch.ones(1)}, {"kind": "ticket"})
    with pytest.raises(InvalidInputError, match="lacks part of a ticket"):
        Ticket.load(tmp_path / "b")


def test_apply_writes_masked_state_and_buffers():
    made, model = ticket(), net(seed=1)
    storage = model[0].weight.data_ptr()
    model[1].running_mean.zero_()
    made.apply_(model)
    assert model[0].weight.data_ptr() == storage
    for name, part in model.named_parameters():
        masked = made.state[name] * made.masks.get(name, 1.0)
        assert torch.equal(part, masked)
    assert torch.equal(model[1].running_mean, torch.full((5,), 0.5).double())


def wide():
    return nn.Sequential(
        nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3)
    ).double()


def longer():
    return net().append(nn.Linear(3, 2).double())


def shorter():
    return net()[:2]


def renamed():
    return nn.Sequential(nn.Identity(), *net())


def single():
    return net().float()


def empty():
    return net().to("meta")


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (wide, r"of another shape: 0.weight \(6, 4\) instead of \(5, 4\)"),
        (longer, r"missing in the ticket: 4.weight, 4.bias"),
        (shorter, r"missing there: 3.weight, 3.bias"),
        (renamed, r"missing there: 0.weight, 0.bias, 3.weight, 3.bias"),
        (single, r"0.weight torch.float32 instead of torch.float64"),
        (empty, r"without data \(meta device\): 0.weight"),
    ],
    ids=lambda value: getattr(value, "__name__", "message"),
)
def test_wrong_model_is_named_and_unchanged(make, says):
    with torch.random.fork_rng():
        model = make()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(InvalidInputError, match=says):
        ticket().apply_(model)
    if make is not empty:
        assert same(dict(model.state_dict()), dict(before))


def test_wrong_buffers_change_no_parameter():
    made, model = ticket(), net(seed=1)
    model.register_buffer("extra", torch.zeros(2))
    before = model[0].weight.detach().clone()
    with pytest.raises(InvalidInputError, match=r"buffers do not fit.*extra"):
        made.apply_(model)
    assert torch.equal(model[0].weight, before)


@pytest.mark.parametrize(
    ("masks", "state", "says"),
    [
        ({"w": torch.ones(2)}, {"w": torch.ones(2)}, "Pass booleans"),
        ({"w": torch.ones(2).bool()}, {"w": torch.ones(3)}, "Pass a parameter for"),
        ({"v": torch.ones(2).bool()}, {"w": torch.ones(2)}, "no tensor"),
        ({"w": torch.zeros(2).bool()}, {"w": torch.ones(2)}, "keep 0 weights"),
        ({}, {"w": torch.ones(2)}, "has 0 masks"),
        ({"w": torch.ones(1).bool()}, {"w": torch.tensor([torch.nan])}, "NaN"),
    ],
    ids=["floats", "shape", "name", "nothing kept", "no mask", "nan"],
)
def test_no_ticket_of_wrong_parts(masks, state, says):
    with pytest.raises(InvalidInputError, match=says):
        Ticket.make(masks, state)


def test_says_what_it_is():
    made = ticket()
    assert len(made.summary().splitlines()) == 5
    assert "\n" not in repr(made)
    assert "tensor(" not in repr(made)
    assert "snip" in cite(made).lower()
    frame = made.to_frame()
    assert list(frame.columns) == ["layer", "kept", "size", "density"]
    assert frame["kept"].sum() == made.kept
    ax = made.plot()
    assert "density" in ax.get_xlabel()
    assert made.plot(ax) is ax


def test_shuffle_keeps_every_layer_count_and_nothing_else():
    made = ticket()
    shuffled = shuffle(made, seed=1)
    assert shuffled.layer_densities == made.layer_densities
    assert same(shuffled.state, made.state)
    assert shuffled.cost == made.cost
    assert not same(shuffled.masks, made.masks)
    assert same(shuffle(made, seed=1).masks, shuffled.masks)
    assert not same(shuffle(made, seed=2).masks, shuffled.masks)


def test_shuffle_is_uniform():
    # 4 standard errors of a binomial with p = 1/4 over 400 draws
    mask = {"w": torch.tensor([True, False, False, False])}
    made = Ticket.make(mask, {"w": torch.ones(4)})
    draws = torch.stack([shuffle(made, seed=s).masks["w"] for s in range(400)])
    shares = draws.double().mean(0)
    assert float((shares - 0.25).abs().max()) < 4 * (0.25 * 0.75 / 400) ** 0.5


def test_reinitialise_keeps_the_masks():
    made, other = ticket(), net(seed=7)
    found = reinitialise(made, dict(other.named_parameters()))
    assert same(found.masks, made.masks)
    assert torch.equal(found.state["3.weight"], other[3].weight)
    assert same(found.buffers, made.buffers)
    buffers = {n: torch.ones_like(b) for n, b in other.named_buffers()}
    fresh = reinitialise(made, dict(other.named_parameters()), buffers)
    assert torch.equal(fresh.buffers["1.running_mean"], torch.ones(5).double())
    with pytest.raises(InvalidInputError, match=r"missing there: 3.weight"):
        reinitialise(made, dict(net()[:2].named_parameters()))


def test_globals_stay(untouched):
    made = ticket()
    with untouched():
        shuffle(made, seed=1)


def test_a_system_of_selected_parameters_takes_the_ticket_s_values_of_the_others():
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(2)).double()
    y = torch.arange(8) % 3
    model, loss = net(), nn.functional.cross_entropy
    system = GradientSystem(model, loss, (x, y), parameters="3.*")
    before = system.loss()
    made = ticket(net(seed=1))
    other = Ticket.make({"3.weight": made.masks["3.weight"]}, made.state, made.buffers)
    applied = copy.deepcopy(model).eval().requires_grad_(False)
    other.apply_(applied)
    found = system.with_ticket(other)
    assert float(found.loss()) == pytest.approx(float(loss(applied(x), y)), rel=1e-12)
    assert found.names == system.names
    assert torch.equal(system.loss(), before)
    wide = {**made.state, "0.weight": torch.ones(5, 1)}
    with pytest.raises(InvalidInputError, match=r"0\.weight has shape \(5, 1\)"):
        system.with_ticket(Ticket.make(other.masks, wide, made.buffers))


def test_a_name_that_comes_twice_is_refused(tmp_path):
    mask, state = torch.tensor([True, False]), torch.ones(2)
    for slot in ("mask_items", "state_items", "buffer_items"):
        items = {
            "mask_items": (("w", mask),),
            "state_items": (("w", state),),
            "buffer_items": (("b", state),),
        }
        items[slot] *= 2
        with pytest.raises(InvalidInputError, match=f"{slot} name . more than once"):
            Ticket(**items)
    tensors, metadata = Ticket.make({"w": mask}, {"w": state}).pack()
    metadata["names"]["mask"] *= 2
    save_tensors(tmp_path / "a", tensors, metadata)
    with pytest.raises(InvalidInputError, match="more than once"):
        Ticket.load(tmp_path / "a")


@pytest.mark.parametrize("names", [None, [], 3, {"mask": None}, {"mask": [3]}])
def test_a_file_with_damaged_names_is_refused(tmp_path, names):
    tensors, metadata = ticket().pack()
    save_tensors(tmp_path / "a", tensors, {**metadata, "names": names})
    with pytest.raises(InvalidInputError, match="lacks part of a ticket"):
        Ticket.load(tmp_path / "a")
