"""Weights of linear layers in torch's sparse formats."""

import math
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Literal, final

import torch
from torch import Tensor, nn

from dynprune.core import InvalidInputError, Provenance
from dynprune.tickets._dense import to_dense
from dynprune.tickets._export_results import Export, size
from dynprune.tickets._same_outputs import compared, outputs
from dynprune.tickets._ticket import Ticket
from dynprune.tickets._trace import Example

Layout = Literal["csr", "coo"]
_HALF = (torch.float16, torch.bfloat16)


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
    ``nn.TransformerEncoderLayer``). The result lists what became of each layer.

    CSR with 32-bit indices takes 8 bytes per float32 weight kept, so it is smaller than
    dense below density 1/2; whether it is faster depends on density, width, batch and
    library (``benchmarks/sparse_export.py``). On the CPU, products in half precision
    are computed in float32, from a copy of the weights made at each call.

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
            masked weight belongs to a supported layer, or the outputs on the example
            differ by more than rounding.

    Example:
        >>> net = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> kept = {"0.weight": torch.eye(4, 8).bool()}
        >>> ticket = Ticket.make(kept, dict(net.named_parameters()))
        >>> to_sparse(ticket, net).module[0]
        SparseLinear(8, 4, kept=4, layout='csr')
    """
    if layout not in {"csr", "coo"}:
        raise InvalidInputError(f"layout is {layout!r}. Pass 'csr' or 'coo'.")
    made = to_dense(ticket.mask_items, model)
    dense_outputs: list[Tensor] = []
    if example is not None:
        with _evaluated(made):
            dense_outputs = outputs(made, example)
    masks = {id(dict(made.named_parameters())[name]): name for name in ticket.masks}
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
        if not _is_linear(part) or id(part) in owned:
            forms[name] = (f"dense {type(part).__name__}", before, before)
            continue
        if part not in swapped:
            swapped[part] = SparseLinear.of(part, layout=layout).train(part.training)
        new = swapped[part]
        made = _swap(made, path, new)
        forms[name] = (f"{layout}, {new.kept} kept", before, size(new))
    if not any(form.startswith(layout) for form, *_ in forms.values()):
        raise InvalidInputError(
            f"No weight that the ticket masks ({', '.join(ticket.masks)}) belongs to a "
            "Linear layer, and torch has sparse matrices for those only. Export with "
            "ticket.to_dense, or remove units with dp.tickets.reduce."
        )
    for name, mask in ticket.mask_items:
        other = mask.numel() * dict(ticket.state_items)[name].element_size()
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
        layers=tuple((name, *forms[name]) for name in ticket.masks),
        bytes_before=size(model),
        bytes_after=size(made),
        error=error,
        scale=scale,
        provenance=exported(ticket, "tickets.to_sparse", layout=layout),
    )


@final
class SparseLinear(nn.Module):
    r"""Compute :math:`y = W x + b` with W held as its non-zero entries.

    Args:
        weight: Dense, shape ``(out, in)``; exact zeros are left out.
        bias: Shape ``(out,)``, or None.
        layout: ``"csr"`` or ``"coo"``.
    """

    def __init__(
        self, weight: Tensor, bias: Tensor | None = None, *, layout: Layout = "csr"
    ) -> None:
        nn.Module.__init__(self)
        self.out_features, self.in_features = weight.shape
        self.layout = layout
        rows, columns = torch.nonzero(weight.detach(), as_tuple=True)
        narrow = torch.int32 if max(*weight.shape, len(rows)) < 2**31 else torch.int64
        self.values: Tensor
        self.rows: Tensor
        self.columns: Tensor
        self.bias: Tensor | None
        self.register_buffer("values", weight.detach()[rows, columns].clone())
        if layout == "csr":
            counts = torch.bincount(rows, minlength=len(weight))
            starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
            self.register_buffer("rows", starts.to(narrow))
            self.register_buffer("columns", columns.to(narrow))
        else:
            self.register_buffer("rows", rows)
            self.register_buffer("columns", columns)
        self.register_buffer("bias", None if bias is None else bias.detach().clone())
        with warnings.catch_warnings():
            # torch says once a process that its CSR tensors are in beta
            warnings.filterwarnings("ignore", "Sparse CSR tensor support")
            assert self.matrix.shape == weight.shape

    @staticmethod
    def of(module: nn.Module, *, layout: Layout) -> "SparseLinear":
        """Make one of a Linear layer, or of a Conv1D, whose weight is transposed.

        Args:
            module: The layer.
            layout: ``"csr"`` or ``"coo"``.

        Returns:
            The sparse layer.
        """
        weight = module.weight
        assert isinstance(weight, Tensor)
        bias = module.bias
        assert bias is None or isinstance(bias, Tensor)
        straight = isinstance(module, nn.Linear)
        return SparseLinear(weight if straight else weight.T, bias, layout=layout)

    @property
    def kept(self) -> int:
        """Number of entries that are not zero."""
        return len(self.values)

    @property
    def matrix(self) -> Tensor:
        """W as a sparse tensor, shape ``(out, in)``."""
        return self._matrix(self.values)

    @property
    def weight(self) -> Tensor:
        """The same, for modules that ask a layer for the dtype of its weight."""
        return self.matrix

    def _matrix(self, values: Tensor) -> Tensor:
        shape = (self.out_features, self.in_features)
        if self.layout == "coo":
            places = torch.stack([self.rows, self.columns])
            return torch.sparse_coo_tensor(
                places, values, shape, is_coalesced=True, check_invariants=False
            )
        found: Tensor = torch.sparse_csr_tensor(
            self.rows, self.columns, values, shape, check_invariants=False
        )
        return found

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer.

        Args:
            x: Shape ``(…, in)``.

        Returns:
            Shape ``(…, out)``.
        """
        count = math.prod(x.shape[:-1])
        columns = x.reshape(count, self.in_features).T
        if self.values.dtype in _HALF and self.values.device.type == "cpu":
            # the CPU has no such product of CSR, and that of COO rounds every sum
            single = self._matrix(self.values.float())
            product: Tensor = torch.sparse.mm(single, columns.float())
            y = product.T.to(self.values.dtype)
        else:
            product = torch.sparse.mm(self.matrix, columns)
            y = product.T
        if self.bias is not None:
            y = y + self.bias
        return y.reshape(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        """Return the arguments, for ``repr``."""
        return (
            f"{self.in_features}, {self.out_features}, kept={self.kept}, "
            f"layout={self.layout!r}"
        )


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


def _is_linear(module: nn.Module) -> bool:
    # not subclasses: attention reads the weight of its own without calling it
    known = sys.modules.get("transformers.pytorch_utils")
    other = getattr(known, "Conv1D", nn.Linear)
    return type(module) in {nn.Linear, other}


def _swap(root: nn.Module, path: str, new: nn.Module) -> nn.Module:
    if not path:
        return new
    root.set_submodule(path, new)
    return root
