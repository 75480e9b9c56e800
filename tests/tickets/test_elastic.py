"""Tickets move between depths: each block of the target is one of the source."""

import pytest
import torch
from hypothesis import given, strategies as st
from other_models import hugging_face
from torch import nn

from dynprune.core import Cost, InvalidInputError, Provenance, cite
from dynprune.tasks import resnet
from dynprune.tickets import Ticket, matched, squeeze, stretch
from dynprune.tickets._blocks import find_stages
from dynprune.tickets._mapping import read_mapping, stretched, write_mapping


def net(depth: int, *, width: int = 4, classes: int = 10) -> nn.Module:
    return resnet(depth, width, in_shape=(2, 8, 8), classes=classes)


def random_ticket(model: nn.Module, seed: int = 0) -> Ticket:
    """Random state, buffers and masks, so that no two blocks are alike."""
    draw = torch.Generator().manual_seed(seed)
    state = {
        n: torch.randn(p.shape, generator=draw) for n, p in model.named_parameters()
    }
    buffers = {
        n: torch.randn(b.shape, generator=draw)
        if b.is_floating_point()
        else torch.randint(0, 99, b.shape, generator=draw)
        for n, b in model.named_buffers()
    }
    masks = {
        n: torch.rand(p.shape, generator=draw) < 0.3
        for n, p in model.named_parameters()
        if p.ndim > 1
    }
    return Ticket.make(
        masks,
        state,
        buffers,
        cost=Cost(steps=7),
        provenance=Provenance(made_by="pruning.imp", seed=3, sources=("imp",)),
    )


def blocks_of(depth: int) -> list[list[str]]:
    return [
        [f"stage{s}_block{b + 1}" for b in range((depth - 2) // 6)] for s in (1, 2, 3)
    ]


def transcribed(name: str, mapping: list[list[int]], target, source) -> str:
    """Return where a tensor of the target comes from."""
    for stage, paths in enumerate(target):
        for place, path in enumerate(paths):
            if name.startswith(path + "."):
                return source[stage][mapping[stage][place]] + name[len(path) :]
    return name


def check(found: Ticket, source: Ticket, model, mapping, target, origin) -> None:
    wanted = dict(model.named_parameters())
    assert list(found.state) == list(wanted)
    assert list(found.buffers) == [name for name, _ in model.named_buffers()]
    for kind in ("state", "buffers", "masks"):
        old = getattr(source, kind)
        for name, part in getattr(found, kind).items():
            assert torch.equal(part, old[transcribed(name, mapping, target, origin)])
    assert list(found.masks) == [n for n, p in wanted.items() if p.ndim > 1]
    found.apply_(model)


@pytest.mark.parametrize(
    ("method", "blocks"),
    [("append", [0, 1, 2, 1, 2]), ("interpolate", [0, 1, 1, 2, 2])],
    ids=["append", "interpolate"],
)
def test_resnet20_to_resnet32(method, blocks):
    source, model = random_ticket(net(20)), net(32)
    found = stretch(source, model, method=method)
    check(found, source, model, [blocks] * 3, blocks_of(32), blocks_of(20))
    assert found.cost == source.cost
    assert found.provenance.made_by == "tickets.stretch"
    assert "chen2021elastic" in cite(found)


def test_the_mapping_of_the_design_is_interpolation():
    source, model = random_ticket(net(20)), net(32)
    a = stretch(source, model, "0:0;1:1,2;2:3,4")
    b = stretch(source, model, method="interpolate")
    assert all(torch.equal(a.state[n], b.state[n]) for n in a.state)
    settings = dict(a.provenance.settings)
    assert settings["mapping"] == "|".join(["0:0;1:1,2;2:3,4"] * 3)
    assert (settings["origin"], settings["origin_seed"]) == ("pruning.imp", 3)


def test_stages_may_be_mapped_differently():
    source, model = random_ticket(net(14)), net(20)
    found = stretch(source, model, "0:0,2;1:1|0:0;1:1,2|0:0;1:2,1")
    mapping = [[0, 1, 0], [0, 1, 1], [0, 1, 1]]
    check(found, source, model, mapping, blocks_of(20), blocks_of(14))


def test_resnet20_to_resnet14_keeps_the_earliest():
    source, model = random_ticket(net(20)), net(14)
    found = squeeze(source, model)
    check(found, source, model, [[0, 1]] * 3, blocks_of(14), blocks_of(20))
    later = squeeze(source, model, "0:0;2:1")
    check(later, source, model, [[0, 2]] * 3, blocks_of(14), blocks_of(20))
    assert later.provenance.made_by == "tickets.squeeze"


def test_there_and_back_is_the_ticket():
    source = random_ticket(net(14))
    for method in ("append", "interpolate"):
        far = stretch(source, net(26), method=method)
        text = "0:0;1:1" if method == "append" else "0:0;3:1"
        back = squeeze(far, net(14), text)
        for kind in ("state", "masks", "buffers"):
            old, new = getattr(source, kind), getattr(back, kind)
            assert all(torch.equal(old[n], new[n]) for n in old)


def test_a_file_keeps_the_transfer(tmp_path):
    found = stretch(random_ticket(net(14)), net(20))
    found.save(tmp_path / "t")
    assert Ticket.load(tmp_path / "t").provenance == found.provenance


# -- where blocks are found -----------------------------------------------------------


def shapes(model: nn.Module) -> dict:
    return {name: tuple(part.shape) for name, part in model.named_parameters()}


def torchvision_like(depths):
    """Names and shapes as of a torchvision ResNet with basic blocks."""
    tensors = {"conv1.weight": (4, 3, 7, 7), "bn1.weight": (4,)}
    before = 4
    for stage, depth in enumerate(depths, start=1):
        width = 4 * 2 ** (stage - 1)
        for block in range(depth):
            at = f"layer{stage}.{block}"
            tensors[f"{at}.conv1.weight"] = (width, before, 3, 3)
            tensors[f"{at}.conv2.weight"] = (width, width, 3, 3)
            if before != width:
                tensors[f"{at}.downsample.0.weight"] = (width, before, 1, 1)
            before = width
    return tensors | {"fc.weight": (10, before)}


@pytest.mark.parametrize("depths", [(2, 2, 2, 2), (3, 4, 6, 3), (1, 1, 1, 1)], ids=str)
def test_blocks_of_torchvision_names(depths):
    wanted = tuple(
        tuple(f"layer{stage}.{block}" for block in range(depth))
        for stage, depth in enumerate(depths, start=1)
    )
    assert find_stages(torchvision_like(depths)) == wanted


def test_more_than_nine_blocks_are_in_the_order_of_their_numbers():
    tensors = torchvision_like((12, 2))
    assert find_stages(dict(sorted(tensors.items())))[0][9:] == (
        "layer1.9",
        "layer1.10",
        "layer1.11",
    )


def test_blocks_of_torch_transformers():
    with torch.random.fork_rng():
        layer = nn.TransformerEncoderLayer(8, 2, 16)
        model = nn.Transformer(8, 2, 2, 3, 16, batch_first=True)
        encoder = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
    assert find_stages(shapes(encoder)) == (("layers.0", "layers.1", "layers.2"),)
    assert [len(stage) for stage in find_stages(shapes(model))] == [2, 3]


def test_a_chain_of_layers_has_no_blocks():
    with torch.random.fork_rng():
        model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    assert find_stages(shapes(model)) == ()
    source = random_ticket(model)
    with pytest.raises(InvalidInputError, match="No repeated blocks are found"):
        stretch(source, model)
    # unless the user names them
    with torch.random.fork_rng():
        deeper = nn.Sequential(*model, nn.ReLU(), nn.Linear(4, 4))
    found = stretch(
        source, deeper, source_blocks=[["0", "2"]], blocks=[["0", "2", "4"]]
    )
    assert torch.equal(found.state["4.weight"], source.state["0.weight"])


def bert(layers: int) -> nn.Module:
    return hugging_face("bert", layers=layers).model


@pytest.mark.parametrize(
    ("method", "blocks"),
    [("append", [0, 1, 0, 1]), ("interpolate", [0, 0, 1, 1])],
    ids=["append", "interpolate"],
)
def test_encoder_layers_of_bert(method, blocks):
    source, model = random_ticket(bert(2)), bert(4)
    found = stretch(source, model, method=method)
    target = [[f"bert.encoder.layer.{i}" for i in range(4)]]
    check(found, source, model, [blocks], target, target)
    back = squeeze(found, bert(2), "0:0;2:1")
    first = "bert.encoder.layer.1.output.dense.weight"
    origin = f"bert.encoder.layer.{blocks[2]}.output.dense.weight"
    assert torch.equal(back.masks[first], source.masks[origin])


def test_stages_of_a_hugging_face_resnet():
    transformers = pytest.importorskip("transformers")

    def make(*depths):
        config = transformers.ResNetConfig(
            num_channels=2,
            embedding_size=4,
            hidden_sizes=[4, 8],
            depths=list(depths),
            layer_type="basic",
            num_labels=3,
        )
        with torch.random.fork_rng():
            return transformers.ResNetForImageClassification(config)

    source, model = random_ticket(make(2, 3)), make(3, 4)
    found = stretch(source, model)
    stages = [
        [f"resnet.encoder.stages.{s}.layers.{b}" for b in range(n)]
        for s, n in enumerate((3, 4))
    ]
    check(found, source, model, [[0, 1, 1], [0, 1, 2, 1]], stages, stages)


# -- mappings -------------------------------------------------------------------------


@given(
    sources=st.lists(st.integers(2, 6), min_size=1, max_size=3),
    more=st.integers(0, 7),
    method=st.sampled_from(["append", "interpolate"]),
    keep=st.booleans(),
)
def test_every_block_is_written_and_every_block_is_read(sources, more, method, keep):
    targets = [count + more for count in sources]
    mapped = stretched(sources, targets, method, keep_first=keep)
    for stage, source, target in zip(mapped, sources, targets, strict=True):
        assert len(stage) == target
        assert set(stage) == set(range(source))
        assert not keep or (stage[0] == 0 and 0 not in stage[1:])
        if method == "interpolate":
            assert list(stage) == sorted(stage)
        counts = [stage.count(block) for block in range(int(keep), source)]
        assert max(counts) - min(counts) <= 1
    paths = tuple(tuple(f"{s}.{i}" for i in range(n)) for s, n in enumerate(targets))
    assert read_mapping(write_mapping(mapped), sources, paths) == mapped


@pytest.mark.parametrize(
    ("mapping", "says"),
    [
        ("0:0;1:1", r"no source to stage1_block3 \(stage 0\)"),
        ("0:0;1:1,2|0:0;1:1|0:0;1:1,2", r"no source to stage2_block3 \(stage 1\)"),
        ("0:0;1:1,2,2", r"Block 2 of stage 0 \(stage1_block3\) is written twice"),
        ("0:0;1:1;2:2", "source has blocks 0 to 1, the mapping reads block 2"),
        ("0:0;1:1,2,3", "target has blocks 0 to 2, the mapping writes block 3"),
        ("0:0;1=1,2", "Cannot read '1=1,2' in stage 0"),
        ("0:0;1:1,2|0:0;1:1,2", "has 2 stages, the networks have 3"),
        ("", "no source to stage1_block1, stage1_block2, stage1_block3"),
        ("0:0,1,2", r"a block .*differ.*in the model: stage2_block2.shortcut.conv.w"),
        ("1:0,1,2", r"missing in what the ticket gives: stage2_block1.shortcut"),
    ],
    ids=str,
)
def test_wrong_mappings_are_refused(mapping, says):
    with pytest.raises(InvalidInputError, match=says):
        stretch(random_ticket(net(14)), net(20), mapping)


def test_wrong_networks_are_refused():
    source = random_ticket(net(14))
    with pytest.raises(InvalidInputError, match=r"may not be shallower.*squeeze"):
        stretch(source, net(8))
    with pytest.raises(InvalidInputError, match=r"may not be deeper.*stretch"):
        squeeze(source, net(20))
    with pytest.raises(
        InvalidInputError, match=r"stem.weight \(8, 2, 3, 3\)|of another"
    ):
        stretch(source, net(20, width=8))
    with pytest.raises(InvalidInputError, match=r"fc.weight \(5, 16\) instead of \(10"):
        stretch(source, net(20, classes=5))
    with pytest.raises(
        InvalidInputError, match=r"torch.float64 instead of torch.float"
    ):
        stretch(source, net(20).double())
    with pytest.raises(InvalidInputError, match=r"has only its first block.*blocks="):
        stretch(random_ticket(net(8)), net(14))
    with pytest.raises(InvalidInputError, match="method is 'repeat'"):
        stretch(source, net(20), method="repeat")
    with pytest.raises(InvalidInputError, match="The ticket has 3 stages"):
        stretch(source, net(20), blocks=[["stage1_block1"]])


def test_equal_layers_without_blocks_are_refused_with_the_way_out():
    # stem, equal layers and head in one list: the head is taken for a layer
    def isotropic(depth):
        with torch.random.fork_rng():
            layers = [nn.Linear(4, 4) for _ in range(depth)]
            return nn.Sequential(nn.Linear(2, 4), *layers, nn.Linear(4, 3))

    source, model = random_ticket(isotropic(2)), isotropic(4)
    with pytest.raises(InvalidInputError, match=r"blocks= .* source_blocks="):
        stretch(source, model)
    knobs = {
        "blocks": [["1", "2", "3", "4"]],
        "source_blocks": [["1", "2"]],
    }
    with pytest.raises(InvalidInputError, match=r"stem or head, differ.*blocks="):
        stretch(source, model, **knobs)


@pytest.mark.parametrize(
    ("blocks", "says"),
    [
        ([], "Pass at least one block for each stage"),
        ([["stage1_block1"], []], "Pass at least one block for each stage"),
        ([["nowhere"]], "nowhere of the model hold no tensor"),
        ([["stage1_block1", "stage1_block1"]], "stage1_block1 of the model are named"),
        ([["stage1_block1", "stage1_block1.conv1"]], "lie inside another block"),
    ],
    ids=["none", "empty stage", "unknown", "twice", "nested"],
)
def test_wrong_blocks_are_refused(blocks, says):
    with pytest.raises(InvalidInputError, match=says):
        stretch(random_ticket(net(14)), net(20), blocks=blocks)


# -- matched controls -----------------------------------------------------------------


def test_a_control_has_the_density_of_the_transferred_ticket():
    found = stretch(random_ticket(net(14)), net(20))
    pair = matched(found, seed=4)
    assert pair.ticket is found
    assert pair.control.layer_densities == found.layer_densities
    assert pair.density == pair.control.density
    assert all(torch.equal(pair.control.state[n], t) for n, t in found.state.items())
    assert pair.overlap < 1
    frame = pair.to_frame()
    assert frame["overlap"].sum() == round(pair.overlap * found.kept)
    assert len(pair.summary().splitlines()) == 5
    assert "\n" not in repr(pair)
    assert pair.provenance.seed == 4
    again = matched(found, seed=4).control.masks
    assert all(torch.equal(pair.control.masks[n], again[n]) for n in again)


def test_the_model_is_only_read(untouched):
    model = net(20)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    with untouched():
        matched(stretch(random_ticket(net(14)), model))
    assert all(torch.equal(model.state_dict()[n], t) for n, t in before.items())
