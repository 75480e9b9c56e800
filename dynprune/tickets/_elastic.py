"""Tickets of one depth become tickets of another, block by block."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import Tensor, nn

from dynprune.core import InvalidInputError
from dynprune.tickets._apply import differences
from dynprune.tickets._blocks import Stages, check_stages, find_stages
from dynprune.tickets._given import check_model, check_tickets
from dynprune.tickets._mapping import (
    Mapped,
    Method,
    read_mapping,
    squeezed,
    stretched,
    write_mapping,
)
from dynprune.tickets._ticket import Ticket

Blocks = Sequence[Sequence[str]]


def stretch(
    ticket: Ticket,
    model: nn.Module,
    mapping: str | None = None,
    *,
    method: Method = "append",
    blocks: Blocks | None = None,
    source_blocks: Blocks | None = None,
) -> Ticket:
    r"""Make a ticket of a deeper network by repeating blocks.

    Block t of the target gets the state (the rewound weights), the masks and the
    buffers of block s(t) of the source:
    :math:`(\theta', m')_t = (\theta, m)_{s(t)}`. Stem, head and everything outside the
    blocks are copied as they are. By default the first block of each stage, which may
    change the width, is kept and the others are repeated: appended (B0, B1, B2, B1, B2)
    or interpolated (B0, B1, B1, B2, B2). Where the deeper stage is no whole multiple
    the last run is cut short, and interpolation rounds down (a reconstruction). In a
    network of one stage of equal blocks, such as the layers of a transformer (our
    extension), the first block is repeated, too.

    Stages and blocks are found by name: modules that differ in one number and repeat
    the same tensors (``layer1.0``, ``layer1.1``; ``stage2_block1``;
    ``encoder.layer.0``).

    Args:
        ticket: Of the shallow network.
        model: The deep network; only names, shapes and dtypes are read.
        mapping: Source block to target blocks in each stage, e.g.
            ``"0:0;1:1,2;2:3,4"``, with ``|`` between stages; one stage stands for all.
        method: ``"append"`` or ``"interpolate"``, where no mapping is given.
        blocks: For each stage the module names of the target's blocks, if they are not
            found or not what is meant.
        source_blocks: The same of the ticket.

    Returns:
        A ticket of ``model``; its cost is that of the old one, its density follows
        from the copies (``dp.tickets.matched`` makes a control of the same density).

    Raises:
        InvalidInputError: If no blocks are found, stages differ in number, the target
            is shallower, the mapping is wrong or leaves a block unwritten, or tensors
            differ in name, shape or dtype; it says which.

    Source:
        Chen et al., *The Elastic Lottery Ticket Hypothesis*, NeurIPS 2021.

    Example:
        >>> import torch
        >>> from dynprune.tasks import resnet
        >>> small, large = (resnet(depth, 4, in_shape=(1, 8, 8)) for depth in (14, 20))
        >>> kept = {"stage1_block2.conv1.weight": torch.eye(4).bool()[:, :, None, None]}
        >>> kept = {name: part.expand(4, 4, 3, 3) for name, part in kept.items()}
        >>> ticket = Ticket.make(
        ...     kept, dict(small.named_parameters()), dict(small.named_buffers())
        ... )
        >>> list(stretch(ticket, large).masks)
        ['stage1_block2.conv1.weight', 'stage1_block3.conv1.weight']
    """  # noqa: DOC502 - raised by the checks
    check_tickets(ticket=ticket)
    check_model(model)
    source, target = _stages(ticket, model, blocks, source_blocks)
    depths = [len(stage) for stage in source], [len(stage) for stage in target]
    _check_depths("stretch", *depths)
    mapped = (
        stretched(*depths, method, keep_first=len(target) > 1)
        if mapping is None
        else read_mapping(mapping, depths[0], target)
    )
    settings = {"method": method if mapping is None else "mapping"}
    return _transferred("stretch", ticket, model, source, target, mapped, settings)


def squeeze(
    ticket: Ticket,
    model: nn.Module,
    mapping: str | None = None,
    *,
    blocks: Blocks | None = None,
    source_blocks: Blocks | None = None,
) -> Ticket:
    r"""Make a ticket of a shallower network by leaving blocks out.

    As :func:`stretch`; by default the earliest blocks of each stage are kept,
    :math:`s(t) = t`.

    Args:
        ticket: Of the deep network.
        model: The shallow network; only names, shapes and dtypes are read.
        mapping: See :func:`stretch`; e.g. ``"0:0;2:1"``.
        blocks: See :func:`stretch`.
        source_blocks: See :func:`stretch`.

    Returns:
        A ticket of ``model``; its cost is that of the old one.

    Raises:
        InvalidInputError: See :func:`stretch`; or if the target is deeper.

    Source:
        Chen et al., *The Elastic Lottery Ticket Hypothesis*, NeurIPS 2021.

    Example:
        >>> import torch
        >>> from dynprune.tasks import resnet
        >>> large, small = (resnet(depth, 4, in_shape=(1, 8, 8)) for depth in (20, 14))
        >>> kept = {"stage1_block2.conv1.weight": torch.ones(4, 4, 3, 3).bool()}
        >>> ticket = Ticket.make(
        ...     kept, dict(large.named_parameters()), dict(large.named_buffers())
        ... )
        >>> squeeze(ticket, small)
        Ticket(density=1, kept=144 of 144, made_by='tickets.squeeze')
    """  # noqa: DOC502 - raised by the checks
    check_tickets(ticket=ticket)
    check_model(model)
    source, target = _stages(ticket, model, blocks, source_blocks)
    depths = [len(stage) for stage in source], [len(stage) for stage in target]
    _check_depths("squeeze", *depths)
    mapped = (
        squeezed(depths[1])
        if mapping is None
        else read_mapping(mapping, depths[0], target)
    )
    return _transferred("squeeze", ticket, model, source, target, mapped, {})


def _stages(
    ticket: Ticket,
    model: nn.Module,
    blocks: Blocks | None,
    source_blocks: Blocks | None,
) -> tuple[Stages, Stages]:
    own = {name: tuple(part.shape) for name, part in ticket.state_items}
    other = {name: tuple(part.shape) for name, part in model.named_parameters()}
    source, target = find_stages(own), find_stages(other)
    if source_blocks is not None:
        source = check_stages(own, source_blocks, "ticket")
    if blocks is not None:
        target = check_stages(other, blocks, "model")
    for whose, stages, shapes in (("ticket", source, own), ("model", target, other)):
        if not stages:
            raise InvalidInputError(
                f"No repeated blocks are found in the {whose}'s names "
                f"({', '.join(list(shapes)[:4])}, …). Pass their module names as "
                "blocks= (of the model) and source_blocks= (of the ticket)."
            )
    if len(source) != len(target):
        raise InvalidInputError(
            f"The ticket has {len(source)} stages ({_shown(source)}), the model "
            f"{len(target)} ({_shown(target)}). Stages are kept: pass a model of as "
            "many, or name the blocks with blocks= and source_blocks=."
        )
    return source, target


def _shown(stages: Stages) -> str:
    return "; ".join(
        stage[0] if len(stage) == 1 else f"{stage[0]} … {stage[-1]}" for stage in stages
    )


def _check_depths(verb: str, sources: list[int], targets: list[int]) -> None:
    pairs = list(zip(sources, targets, strict=True))
    wrong = [s > t if verb == "stretch" else s < t for s, t in pairs]
    if any(wrong):
        way, other = (
            ("shallower", "squeeze")
            if verb == "stretch"
            else (
                "deeper",
                "stretch",
            )
        )
        raise InvalidInputError(
            f"The model's stages have {targets} blocks, the ticket's {sources}: the "
            f"target of {verb} may not be {way}. Use dp.tickets.{other}."
        )


def _transferred(
    verb: str,
    ticket: Ticket,
    model: nn.Module,
    source: Stages,
    target: Stages,
    mapped: Mapped,
    settings: Mapping[str, str],
) -> Ticket:
    paths = {
        path: source[number][mapped[number][place]]
        for number, stage in enumerate(target)
        for place, path in enumerate(stage)
    }
    read = {path for stage in source for path in stage}
    masks = dict(ticket.mask_items)
    found: dict[str, dict[str, Tensor]] = {}
    kept: dict[str, Tensor] = {}
    for what, items, wanted in (
        ("parameters", ticket.state_items, dict(model.named_parameters())),
        ("buffers", ticket.buffer_items, dict(model.named_buffers())),
    ):
        own = dict(items)
        given = {name: part for name, part in own.items() if not _owner(name, read)}
        for path, old in paths.items():
            start = f"{old}."
            given |= {
                f"{path}.{name.removeprefix(start)}": part
                for name, part in own.items()
                if name.startswith(start)
            }
        _check(verb, what, given, wanted)
        found[what] = {name: given[name] for name in wanted}
        origin = {name: _origin(name, paths) for name in wanted}
        kept |= {name: masks[old] for name, old in origin.items() if old in masks}
    made = ticket.provenance
    return Ticket(
        mask_items=tuple(kept.items()),
        state_items=tuple(found["parameters"].items()),
        buffer_items=tuple(found["buffers"].items()),
        cost=ticket.cost,
        provenance=replace(
            made,
            made_by=f"tickets.{verb}",
            settings=tuple(
                sorted(
                    {
                        **settings,
                        "mapping": write_mapping(mapped),
                        "origin": made.made_by,
                        "origin_seed": made.seed,
                    }.items()
                )
            ),
            sources=tuple(dict.fromkeys((*made.sources, "elastic"))),
        ),
    )


def _owner(name: str, paths: Mapping[str, str] | set[str]) -> str | None:
    parts = name.split(".")
    prefixes = (".".join(parts[:i]) for i in range(1, len(parts)))
    return next((prefix for prefix in prefixes if prefix in paths), None)


def _origin(name: str, paths: Mapping[str, str]) -> str:
    owner = _owner(name, paths)
    return name if owner is None else paths[owner] + name.removeprefix(owner)


def _check(
    verb: str, what: str, given: Mapping[str, Tensor], wanted: Mapping[str, Tensor]
) -> None:
    lines = differences(given, wanted, "in the model", "in what the ticket gives")
    if lines:
        raise InvalidInputError(
            f"Cannot {verb}: the {what} of a block and of the one it is copied to, or "
            f"of stem or head, differ: {'; '.join(lines)}. Copy blocks onto blocks of "
            "the same kind, the first of a stage onto the first; blocks= and "
            "source_blocks= say what the blocks are, stem and head need equal names."
        )
