"""Weights of linear layers in torch's sparse formats."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from torch import Tensor, nn

from dynprune.core import InvalidInputError, Provenance
from dynprune.tickets._apply import listed
from dynprune.tickets._dense import to_dense
from dynprune.tickets._export_results import Export, size
from dynprune.tickets._given import check_tickets
from dynprune.tickets._network import placed
from dynprune.tickets._same_outputs import compared, outputs
from dynprune.tickets._sparse_linear import Layout, SparseLinear, is_linear
from dynprune.tickets._ticket import Ticket
from dynprune.tickets._trace import Example, has_hooks
from dynprune.tickets._wrapped import named_inside


def to_sparse(
    ticket: Ticket,
    model: nn.Module,
    *,
    layout: Layout = "csr",
    example: Example | None = None,
) -> Export:
    r"""Store the masked weights of linear layers as sparse matrices.

    A copy of the model computes :math:`y = (m \odot W) x + b` with W held as its
    non-zero entries and their places, for inference: its weights are buffers, and
    ``state_dict`` holds plain tensors (``values`` and indices), so that it can be saved
    as safetensors and moved between devices and dtypes.

    Supported: ``nn.Linear`` and ``transformers.pytorch_utils.Conv1D``. Left dense, with
    zeros: convolutions (torch has no sparse ones), embeddings, and linear layers whose
    weight is read without calling them (those inside ``nn.MultiheadAttention`` and
    ``nn.TransformerEncoderLayer``) or that have forward hooks. The result lists what
    became of each layer.

    CSR with 32-bit indices takes 8 bytes per float32 weight kept, so it is smaller than
    dense below density 1/2 and larger above, which the result says; whether it is
    faster depends on density, width, batch and library
    (``benchmarks/sparse_export.py``). On the CPU, products in half precision are
    computed in float32, from a copy of the weights made at each call.

    Args:
        ticket: Its masks; not its state.
        model: The model whose own (trained) weights are exported; not changed.
        layout: ``"csr"`` (compressed rows, 32-bit indices) or ``"coo"``.
        example: What the model is called with; a tuple is several arguments. If given,
            the outputs before and after are compared on it.

    Returns:
        The sparse model and the bytes of each layer before and after.

    Raises:
        InvalidInputError: If a mask does not fit the model, the layout is unknown, no
            masked weight is of a layer that becomes sparse, or the outputs on the
            example differ by more than rounding.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> kept = {"0.weight": torch.eye(4, 8).bool()}
        >>> ticket = Ticket.make(kept, dict(net.named_parameters()))
        >>> to_sparse(ticket, net).module[0]
        SparseLinear(8, 4, kept=4, layout='csr')
    """
    check_tickets(ticket=ticket)
    if layout not in {"csr", "coo"}:
        raise InvalidInputError(f"layout is {layout!r}. Pass 'csr' or 'coo'.")
    made = to_dense(ticket.mask_items, model)
    dense_outputs: list[Tensor] = []
    if example is not None:
        with _evaluated(made):
            dense_outputs = outputs(made, example)
    named = dict(named_inside(ticket.mask_items, made))
    masks = {id(dict(made.named_parameters())[name]): name for name in named}
    owned = {
        id(child)
        for part in made.modules()
        if isinstance(part, nn.TransformerEncoderLayer | nn.TransformerDecoderLayer)
        for child in part.children()
    }
    forms: dict[str, tuple[str, int, int]] = {}
    swapped: dict[nn.Module, SparseLinear] = {}
    # a module of several names is swapped under each
    for path, part in list(made.named_modules(remove_duplicate=False)):
        weight = part._parameters.get("weight")
        if weight is None or id(weight) not in masks:
            continue
        name, before = masks[id(weight)], size(part)
        if not is_linear(part) or id(part) in owned:
            forms[name] = (f"dense {type(part).__name__}", before, before)
            continue
        if has_hooks(part):
            forms[name] = (f"dense {type(part).__name__}, has hooks", before, before)
            continue
        if part not in swapped:
            swapped[part] = SparseLinear.of(part, layout=layout).train(part.training)
        new = swapped[part]
        made = placed(made, path, new)
        grown = ", larger than dense" if size(new) > before else ""
        forms[name] = (f"{layout}, {new.kept} kept{grown}", before, size(new))
    if not any(form.startswith(layout) for form, *_ in forms.values()):
        raise InvalidInputError(
            f"No weight that the ticket masks ({_told(ticket, forms)}) belongs to a "
            "Linear layer without hooks, and only those become sparse. Export with "
            "ticket.to_dense, or remove units with dp.tickets.reduce."
        )
    for (name, mask), (own, _) in zip(named.items(), ticket.mask_items, strict=True):
        other = mask.numel() * dict(ticket.state_items)[own].element_size()
        forms.setdefault(name, ("dense", other, other))
    error = scale = None
    if example is not None:
        with _evaluated(made):
            error, scale = compared(
                dense_outputs,
                made,
                example,
                did="Storing weights as sparse matrices",
                instead="ticket.to_dense",
            )
    return Export(
        module=made,
        layers=tuple((name, *forms[name]) for name in named),
        bytes_before=size(model),
        bytes_after=size(made),
        error=error,
        scale=scale,
        provenance=exported(ticket, "tickets.to_sparse", layout=layout),
    )


def _told(ticket: Ticket, forms: dict[str, tuple[str, int, int]]) -> str:
    return listed([
        f"{name} ({forms.get(name, ('dense',))[0]})" for name in ticket.masks
    ])


def exported(ticket: Ticket, made_by: str, **settings: object) -> Provenance:
    """Return the provenance of an export.

    Args:
        ticket: The ticket.
        made_by: The public function.
        **settings: Its knobs.

    Returns:
        The record.
    """
    made = ticket.provenance
    return replace(
        made,
        made_by=made_by,
        settings=(
            *sorted(settings.items()),
            ("origin", made.made_by),
            ("origin_seed", made.seed),
        ),
    )


@contextmanager
def _evaluated(model: nn.Module) -> Iterator[None]:
    modes = {part: part.training for part in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode
