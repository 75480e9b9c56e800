"""A network, its loss and its data as the dynamical system θ' = −∇L(θ)."""

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, final

import torch
from torch import Tensor, nn

from dynprune.core import (
    Coordinates,
    InvalidInputError,
    NumericalWarning,
    functional_call,
    isolated,
    refuse_inference_mode,
    tensors_of,
)
from dynprune.system._arguments import (
    check_arguments,
    own_masks,
    place_of,
    select,
    select_prunable,
)
from dynprune.system._batches import BatchWeight, check_data, is_resident, length, read
from dynprune.system._checks import check_loss
from dynprune.system._first_batch import check_way_back, is_compiled
from dynprune.system._in_place import (
    OnCopies,
    batch_loss_on_copies,
    give_copies_,
    loss_on_copies,
)
from dynprune.system._mean_loss import BatchLoss, LossFn, MeanLoss, call
from dynprune.system._probe import MOST_PROBED, probe
from dynprune.system._prunable import prunable_weights
from dynprune.system._ranks import Ranks
from dynprune.system._signature import layout, signature, state_signature

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class TicketLike(Protocol):
    """Masks with the state and buffers that they are to be trained from."""

    @property
    def masks(self) -> dict[str, Tensor]:
        """Name to boolean tensor."""
        ...

    @property
    def state(self) -> dict[str, Tensor]:
        """Name to parameter tensor."""
        ...

    @property
    def buffers(self) -> dict[str, Tensor]:
        """Name to buffer tensor."""
        ...


@final
class GradientSystem:
    r"""See the training of a network as a gradient dynamical system.

    .. math:: \theta' = -\nabla L(\theta), \qquad
              L(\theta) = \frac{1}{W} \sum_b w_b L_b(\theta)
              + \tfrac{1}{2} \ell_2 |\theta|^2

    with :math:`L_b` the mean loss of batch b, :math:`w_b` its weight (its number of
    examples by default) and :math:`W = \sum_b w_b`, so that L is the mean over
    examples whatever the batch sizes are. The coordinates are the selected trainable
    parameters, or the survivors of a mask.

    The user's model is never changed: a private copy in eval mode is evaluated with
    the parameters passed in. ``state`` and ``buffers`` read the user's model as it is
    now; frozen parameters are those of the moment the system was made.
    The data are not changed either: a network or loss that writes into its batch
    (``x.sub_(1)``, a first layer with ``inplace=True``) gets copies of it.

    Train mode, for training and scoring, is that of the user: modules of a model in
    train mode that were in eval mode when the system was made (a frozen batch norm) are
    ``kept_in_eval``. Embeddings with ``sparse=True`` are ``sparse`` in training only:
    gradients by the coordinates are dense. A model in eval mode says nothing of its
    modules: all of it is put in train mode.

    With a process group each rank passes its own shard of the data, of any length: W
    and L count the examples of all ranks, the l2 term counts once, and ``loss``,
    ``gradient``, ``field`` and ``flow`` return the same bits on every rank. Making a
    system, :meth:`with_data`, these four and :meth:`check_deterministic` are
    collective: all ranks call them, in the same order. Ranks that differ in the
    model, the state or the layout of a batch are refused, and an error on one rank is
    raised on all. The ranks should be machines of one kind, so that what they compute
    from equal numbers is equal. Let them meet in ``torch.distributed.barrier()`` before
    ``destroy_process_group()``: gloo may abort a rank that leaves before the others.

    Args:
        model: Any module.
        loss_fn: Mean loss of (outputs, targets); may be None with ``batch_loss``.
        data: ``(x, y)`` tensors, a DataLoader, or any re-iterable of batches.
        mask: Parameter name to boolean tensor, True = kept; P counts survivors.
        parameters: Glob pattern(s) that select trainable parameters by name; each
            matches at least one.
        prunable: Glob pattern(s) of the selected parameters that pruners and tickets
            count, score and mask, whatever their layer (``"lstm.weight_*"``), in place
            of the weights of Linear, Conv and attention layers. What belongs to a
            parametrisation is masked itself, not the weight that is computed of it.
            Channels (``early_bird``) go with all that belongs to them. The names are
            ``requested``.
        l2: Coefficient of ½|θ|², per parameter squared; adds ``l2`` to every
            Hessian eigenvalue.
        batch_loss: ``(model, batch) -> mean loss`` for batches that are no (x, y).
        batch_weight: ``batch -> weight``, e.g. its number of tokens. A constant makes
            L the mean over batches; a ``batch_loss`` may then couple their examples.
        microbatch: Largest part of resident data that is evaluated at once.
        process_group: The torch.distributed ranks (gloo or NCCL) that share the data,
            e.g. ``torch.distributed.group.WORLD``; None for one process.

    Raises:
        InvalidInputError: For data that can be read only once, a loss that cannot be
            computed of the first batch, does not depend on the coordinates, or is not
            a finite mean over examples, a mask that is not boolean, a pattern that
            matches nothing, no trainable parameter, parameters on several devices or
            of several dtypes, lazy or meta ones, weights that hooks compute
            (``torch.nn.utils.prune``), inside ``torch.inference_mode()``, or ranks
            that differ. For a pruned model, pass the masks of
            ``Ticket.from_torch_prune(model)`` with a model without hooks. One that
            ``Ticket.to_torch_prune`` pruned can be copied and is taken, but the
            weights that it masked are not ``prunable``; the same remedy holds.

    Warns:
        NumericalWarning: If a ``batch_loss`` without ``batch_weight`` cannot be
            computed of parts of a batch, to see that it is a mean over examples.

    Cost:
        Up to six forward passes over at most 32 examples, one of them with its graph,
        and nine over one or two, for the checks. With a process group also one reading
        of the data, to count them, and two small collectives.

    Example:
        >>> x, y = torch.eye(2), torch.tensor([[1.0], [0.0]])
        >>> net = nn.Linear(2, 1, bias=False)
        >>> system = GradientSystem(net, nn.functional.mse_loss, (x, y))
        >>> system.size, system.examples
        (2, 2.0)
        >>> system.gradient(torch.zeros(2))
        tensor([-1.,  0.])
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFn | None,
        data: Any,
        *,
        mask: Mapping[str, Tensor] | None = None,
        parameters: str | Sequence[str] | None = None,
        prunable: str | Sequence[str] | None = None,
        l2: float = 0.0,
        batch_loss: BatchLoss | None = None,
        batch_weight: BatchWeight | None = None,
        microbatch: int | None = None,
        process_group: "ProcessGroup | None" = None,
    ) -> None:
        self._ranks = Ranks.of(process_group, model)
        with self._ranks.together(lambda: self._signature(self.state)):
            refuse_inference_mode("A system")
            check_arguments(model, loss_fn, batch_loss, batch_weight, l2, microbatch)
            self.model = model
            self.loss_fn = loss_fn
            self.batch_loss = batch_loss
            self.batch_weight = batch_weight
            self.microbatch = microbatch
            self.l2 = float(l2)
            self.kept_in_eval = _kept_in_eval(model)
            net = copy.deepcopy(model).eval()
            self.sparse = _make_dense_(net)
            self._loss = MeanLoss(net, loss_fn, batch_loss)
            self._masks = own_masks(mask)
            self._selected = select(model, parameters)
            self.requested, self._computed = select_prunable(
                model, self._selected, prunable
            )
            chosen = dict(model.named_parameters())
            self.coordinates = Coordinates(
                names=self._selected,
                shapes=tuple(tuple(chosen[name].shape) for name in self._selected),
            )
            if self._masks:
                self.coordinates = self.coordinates.restrict(dict(self._masks))
            self.dtype, self.device = place_of(chosen, self._selected)
            self._ranks.check_device(self.device)
            self._told: list[bool] = []  # of computed weights; shared by all twins
            self._state: Tensor | None = None
            self._buffers: dict[str, Tensor] | None = None
            self._take(data, own=not self._masks, traced=not is_compiled(self.module))
        self._count()

    def _take(self, data: Any, *, own: bool = False, traced: bool = False) -> None:
        # own: the private copy of the model is at the system's state now
        # traced: it is yet to be seen that the loss leads back to the coordinates
        check_data(data)
        self.data = data
        self._examples: float | None = None
        self._deterministic: list[bool] = []
        first = next(self.batches(), None)
        if first is None:
            raise InvalidInputError(
                "The data hold no batch. Pass at least one (a DataLoader with "
                "drop_last may drop all of a small data set)."
            )
        if self.batch_weight is None and tensors_of(first):
            length(first)
        named = self.unflatten(self.state)

        def mean(batch: Any) -> Tensor:
            if torch.is_grad_enabled():
                return self._traced(batch)
            if own:
                value: Tensor = self._loss(batch)
                return value
            return self.batch_mean(named, self.buffers, batch)

        looked = OnCopies(mean)
        with isolated(0):
            check_loss(
                looked,
                first,
                steady=lambda: not any(part.training for part in self.module.modules()),
                weight=self.weight,
                dtype=self.dtype,
                traced=traced,
                by_batch=self.batch_loss is not None,
                weighed=self.batch_weight is not None,
            )
            if looked.writes:
                self._protect(mean, first)
        self.module.eval()
        self._layout = layout(first, shapes=self.batch_loss is None)
        if self._ranks.group is not None:
            self._examples = self._own_weight()

    def _traced(self, batch: Any) -> Tensor:
        # only the coordinates need gradients, so that a way back is one to them
        fixed = {name: part.detach() for name, part in self.module.named_parameters()}
        theta = self.state.requires_grad_()
        value = self.batch_mean(fixed | self.unflatten(theta), self.buffers, batch)
        if self.size:
            check_way_back(value, theta)
        return value

    def _protect(self, mean: Callable[[Any], Tensor], batch: Any) -> None:
        # the network writes into its input, or else the loss into the batch
        give_copies_(self.module)
        looked = OnCopies(mean)
        with torch.no_grad():
            looked(batch)
        if not looked.writes:
            return
        if self.batch_loss is not None:
            self.batch_loss = batch_loss_on_copies(self.batch_loss)
        elif self.loss_fn is not None:
            self.loss_fn = loss_on_copies(self.loss_fn)
        self._loss = MeanLoss(self.module, self.loss_fn, self.batch_loss)

    def _count(self) -> None:
        # now, when every rank is here: reading ``examples`` later is no collective
        if self._ranks.group is not None:
            own = torch.tensor(self._examples, dtype=torch.float64, device=self.device)
            self._examples = float(self._ranks.sum(own))

    def _signature(self, state: Tensor) -> dict[str, str]:
        return signature(self, state, self._layout)

    @property
    def size(self) -> int:
        """Number P of coordinates; of survivors where the system is masked."""
        return self.coordinates.size

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the selected parameters, tied tensors once."""
        return self.coordinates.names

    @property
    def masks(self) -> dict[str, Tensor]:
        """The masks, a fresh dictionary of copies; empty where there are none."""
        return {name: mask.clone() for name, mask in self._masks}

    @property
    def module(self) -> nn.Module:
        """The private copy of the model, in eval mode; not to be changed."""
        return self._loss.net

    def set_mode_(self, net: nn.Module, *, training: bool) -> nn.Module:
        """Put a copy of the module in train or in eval mode, in place.

        Args:
            net: A copy of :attr:`module`.
            training: Whether in train mode, but for what is ``kept_in_eval``.

        Returns:
            The copy itself.
        """
        net.train(training)
        for name in self.kept_in_eval:
            net.get_submodule(name).training = False
        return net

    @property
    def prunable(self) -> tuple[str, ...]:
        """Names of the selected weights of Linear, Conv, attention layers, each once.

        ``parameters=`` selects among them. An embedding tied to a Linear layer is that
        layer's weight; biases, norms, other embeddings, weights of recurrent layers and
        a module's own are prunable on request only: where ``prunable=`` was passed,
        exactly what it matches is. A weight that a parametrisation computes is not
        prunable, which is said once.

        Warns:
            NumericalWarning: If there is such a weight.
        """
        left = self._computed
        if left and not self._told:
            self._told.append(True)
            warnings.warn(
                f"Left out of the prunable weights: {', '.join(left)}, computed of "
                f"other parameters. {_remedy(left, self.module)}",
                NumericalWarning,
                stacklevel=2,
            )
        return self.requested or prunable_weights(self.module, self.names)

    @property
    def state(self) -> Tensor:
        """The coordinates θ now, shape (P,), a copy."""
        if self._state is not None:
            return self._state.clone()
        named = {
            name: tensor.detach() for name, tensor in self.model.named_parameters()
        }
        return self.flatten(named).clone()

    @property
    def raw_buffers(self) -> dict[str, Tensor]:
        """The buffers that evaluations read, not copied."""
        if self._buffers is not None:
            return self._buffers
        return {name: tensor.detach() for name, tensor in self.model.named_buffers()}

    @property
    def buffers(self) -> dict[str, Tensor]:
        """The buffers now (running statistics, …), copies."""
        return {name: tensor.clone() for name, tensor in self.raw_buffers.items()}

    @property
    def examples(self) -> float:
        """Total weight W of the data of all ranks: the number N by default."""
        if self._examples is None:
            self._examples = self._own_weight()
        return self._examples

    def _own_weight(self) -> float:
        if is_resident(self.data) and self.batch_weight is None:
            return float(length(self.data))
        return sum(self.weight(batch) for batch in self.batches())

    @property
    def ranks(self) -> Ranks:
        """The processes that share the data; this one alone by default."""
        return self._ranks

    @property
    def own_l2(self) -> float:
        """The coefficient l2 on the first rank, 0 on the others: it counts once."""
        return self.l2 if self._ranks.rank == 0 else 0.0

    @property
    def probed(self) -> bool:
        """Whether the determinism probe has been made, so that it costs no more."""
        return bool(self._deterministic)

    @property
    def probe_gradients(self) -> float:
        """What the determinism probe costs, in gradients over this rank's data."""
        if not is_resident(self.data):
            return 2.0
        return 2.0 * min(1.0, MOST_PROBED / length(self.data))

    def flatten(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return the coordinates of named tensors, shape ``(P,)``.

        Args:
            tensors: One tensor for each selected parameter.

        Returns:
            A vector of this system's coordinates.
        """
        return self.coordinates.flatten(tensors)

    def unflatten(self, vector: Tensor) -> dict[str, Tensor]:
        """Return named tensors of coordinates; pruned entries are zero.

        Args:
            vector: Shape ``(P,)``.

        Returns:
            Parameter name to tensor of its shape.
        """
        return self.coordinates.unflatten(vector)

    def batches(self, *, seed: int = 0) -> Iterator[Any]:
        """Read this rank's data once, on the parameters' device and in their dtype.

        Args:
            seed: What a loader's shuffling and augmentation start from.

        Returns:
            An iterator over batches.
        """
        return read(
            self.data,
            dtype=self.dtype,
            device=self.device,
            microbatch=self.microbatch,
            seed=seed,
        )

    def weight(self, batch: Any) -> float:
        """Return the weight of a batch: its number of examples by default.

        Args:
            batch: One of :meth:`batches`.

        Returns:
            A positive number.
        """
        if self.batch_weight is None:
            return float(length(batch))
        return float(self.batch_weight(batch))

    def forward(
        self, parameters: Mapping[str, Tensor], buffers: Mapping[str, Tensor], x: Any
    ) -> Any:
        """Evaluate the network in eval mode with given parameters and buffers.

        Args:
            parameters: Name to tensor.
            buffers: Name to tensor.
            x: The input.

        Returns:
            The network's output, differentiable in ``parameters``.
        """
        values = {**parameters, **buffers}
        return functional_call(self.module, values, (x,))

    def batch_mean(
        self,
        parameters: Mapping[str, Tensor],
        buffers: Mapping[str, Tensor],
        batch: Any,
    ) -> Tensor:
        """Return the mean loss of one batch, in eval mode, without the l2 term.

        Args:
            parameters: Name to tensor.
            buffers: Name to tensor.
            batch: One of :meth:`batches`.

        Returns:
            A 0-d tensor, differentiable in ``parameters``.
        """
        return call(self._loss, parameters, buffers, batch)

    def loss(self, state: Tensor | None = None) -> Tensor:
        """Return L at a state: the mean over all examples plus the l2 term.

        Args:
            state: Coordinates, shape ``(P,)``; the system's own by default.

        Returns:
            A 0-d tensor.

        Cost:
            One forward pass over the data; over several ranks two small collectives.
        """
        theta = self._shared(state)
        named, buffers = self.unflatten(theta), self.buffers

        def part() -> Tensor:
            total = torch.zeros((), dtype=self.dtype, device=self.device)
            with torch.no_grad(), isolated(0):
                for batch in self.batches():
                    share = self.weight(batch) / self.examples
                    total += share * self.batch_mean(named, buffers, batch)
            return total

        data_loss = self._ranks.sum_of(part, like=theta.new_zeros(()))
        return data_loss + 0.5 * self.l2 * theta.dot(theta)

    def gradient(self, state: Tensor | None = None, *, seed: int = 0) -> Tensor:
        """Return ∇L at a state, inside ``torch.no_grad()`` as outside it.

        Args:
            state: Coordinates, shape ``(P,)``; the system's own by default.
            seed: What a random loader or forward pass starts from; without effect
                on a deterministic system.

        Returns:
            Loss per parameter, shape ``(P,)``, without graph.

        Raises:
            InvalidInputError: Inside ``torch.inference_mode()``.

        Cost:
            One gradient; over several ranks one all-reduce of P numbers, and a small
            exchange to see that they are at the same state.
        """  # noqa: DOC502 - raised by gradient_with
        return self.gradient_with(self.buffers, self._shared(state), seed=seed)

    def gradient_with(
        self, buffers: Mapping[str, Tensor], theta: Tensor, *, seed: int = 0
    ) -> Tensor:
        """Return ∇L with given buffers, which a forward pass may change.

        Args:
            buffers: All buffers by name.
            theta: Coordinates, shape ``(P,)``, the same on every rank.
            seed: As for :meth:`gradient`.

        Returns:
            Loss per parameter, shape ``(P,)``.

        Raises:
            InvalidInputError: Inside ``torch.inference_mode()``.
        """  # noqa: DOC502 - raised by the part

        def part() -> Tensor:
            refuse_inference_mode("A gradient")
            total = self.own_l2 * theta
            with isolated(seed), torch.enable_grad():
                for batch in self.batches(seed=seed):
                    leaf = theta.clone().requires_grad_()
                    value = self.batch_mean(self.unflatten(leaf), buffers, batch)
                    if value.requires_grad:
                        (slope,) = torch.autograd.grad(value, leaf)
                        share = self.weight(batch) / self.examples
                        total = total.add(slope, alpha=share)
            return total

        return self._ranks.sum_of(part, like=theta)

    def field(self, state: Tensor | None = None) -> Tensor:
        """Return the vector field −∇L at a state.

        Args:
            state: Coordinates, shape ``(P,)``; the system's own by default.

        Returns:
            Minus the gradient, shape ``(P,)``.

        Raises:
            InvalidInputError: Inside ``torch.inference_mode()``.

        Cost:
            One gradient.
        """  # noqa: DOC502 - raised by gradient_with
        return -self.gradient(state)

    def flow(
        self,
        times: Sequence[float] | Tensor,
        state: Tensor | None = None,
        *,
        rtol: float = 1e-8,
        atol: float = 1e-10,
    ) -> Tensor:
        """Integrate θ' = −∇L(θ) from a state (DOP853, local error control).

        Args:
            times: Increasing times T ≥ 1; the state is given at the first one.
            state: Coordinates at ``times[0]``; the system's own by default.
            rtol: Relative tolerance of the local error.
            atol: Absolute tolerance of the local error, per parameter.

        Returns:
            States, shape ``(P, T)``.

        Raises:
            InvalidInputError: If the times do not increase, the field is not finite at
                the state, or the flow diverges.

        Cost:
            Twelve gradients per accepted or rejected step, and one probe.
        """
        from scipy.integrate import solve_ivp

        grid = torch.as_tensor(times, dtype=torch.float64)
        if grid.ndim != 1 or len(grid) < 1 or bool((grid.diff() <= 0).any()):
            raise InvalidInputError(
                f"Times {grid.tolist()} do not increase. Pass a sorted list."
            )
        self.check_deterministic(state)
        start = self._at(state)

        def slope(time: float, theta: Any) -> Any:
            point = torch.as_tensor(theta).to(start)
            field = -self.gradient_with(self.buffers, point)
            if time == grid[0] and not bool(torch.isfinite(field).all()):
                raise InvalidInputError(
                    "A flow was asked from a state where the gradient is not finite. "
                    "Look for NaN and overflow in the data and the state."
                )
            return field.double().cpu().numpy()

        solved = solve_ivp(
            slope,
            (float(grid[0]), float(grid[-1])),
            start.double().cpu().numpy(),
            method="DOP853",
            t_eval=grid.numpy(),
            rtol=rtol,
            atol=atol,
        )
        if not solved.success:
            raise InvalidInputError(
                f"The flow stopped at t = {solved.t[-1] if len(solved.t) else grid[0]}"
                f": {solved.message} Ask for a shorter time or looser tolerances."
            )
        return torch.as_tensor(solved.y).to(start)

    def double(self) -> "GradientSystem":
        """Return the same system in float64, at the same state."""
        twin = copy.copy(self)
        twin.model = copy.deepcopy(self._loss.net).double()
        twin._loss = MeanLoss(twin.model, self.loss_fn, self.batch_loss)
        twin.dtype = torch.float64
        twin._deterministic = []
        twin._buffers = None  # those of its own model, which say the dtypes
        return twin.with_state(self.state, buffers=self.raw_buffers)

    def with_state(
        self,
        state: Tensor | Mapping[str, Tensor],
        *,
        buffers: Mapping[str, Tensor] | None = None,
    ) -> "GradientSystem":
        """Return the same system at a state of its own.

        Args:
            state: Coordinates ``(P,)`` or named tensors.
            buffers: Name to tensor; the present ones by default. Of floating-point
                ones the dtype is that of the present one.

        Returns:
            A system that no longer follows the user's model.
        """
        vector = state if isinstance(state, Tensor) else self.flatten(state)
        twin = copy.copy(self)
        twin._state = self._at(vector.detach()).clone()
        present = self.buffers
        twin._buffers = present | {
            name: _like(tensor, present.get(name), self.device)
            for name, tensor in (buffers or {}).items()
        }
        return twin

    def with_mask(self, mask: Mapping[str, Tensor]) -> "GradientSystem":
        """Return the system restricted to the survivors of masks.

        Args:
            mask: Parameter name to boolean tensor; empty for the dense system.

        Returns:
            A system at m⊙θ; its coordinates are the survivors.

        Raises:
            InvalidInputError: If a mask is not boolean, or is of no parameter here.
        """  # noqa: DOC502 - raised by the parts
        dense = Coordinates(names=self.names, shapes=self.coordinates.shapes)
        named = self.unflatten(self.state)
        twin = copy.copy(self)
        twin._masks = own_masks(mask)
        twin.coordinates = dense.restrict(mask) if mask else dense
        twin._state = twin.coordinates.flatten(named).clone()
        twin._buffers = self.buffers
        return twin

    def with_ticket(self, ticket: TicketLike) -> "GradientSystem":
        """Return the masked system at a ticket's state and buffers.

        Args:
            ticket: Masks with their state and buffers. Its values of parameters that
                are not selected take the place of the model's.

        Returns:
            A system whose coordinates are the ticket's survivors.

        Raises:
            InvalidInputError: If it is no ticket, or its names or shapes are not the
                model's.
        """
        state = getattr(ticket, "state", None)
        if not isinstance(state, Mapping):
            raise InvalidInputError(
                f"ticket is a {type(ticket).__name__}. Pass a dynprune.Ticket; masks "
                "alone go to with_mask."
            )
        twin = self.with_mask(ticket.masks).with_state(state, buffers=ticket.buffers)
        twin._freeze({n: v for n, v in state.items() if n not in self.names})
        return twin

    def _freeze(self, values: Mapping[str, Tensor]) -> None:
        # in a copy of the module, which other systems share
        own = {n: p for n, p in self.module.named_parameters() if n in values}
        for name, part in own.items():
            if values[name].shape != part.shape:
                raise InvalidInputError(
                    f"The ticket's {name} has shape {tuple(values[name].shape)}, the "
                    f"model's {tuple(part.shape)}. Pass a ticket of this model."
                )
        if all(torch.equal(part, values[name].to(part)) for name, part in own.items()):
            return
        self.model = copy.deepcopy(self.module)
        own = dict(self.model.named_parameters())
        with torch.no_grad():
            for name in values.keys() & own.keys():
                own[name].copy_(values[name])
        self._loss = MeanLoss(self.model, self.loss_fn, self.batch_loss)
        self._deterministic = []

    def with_data(self, data: Any) -> "GradientSystem":
        """Return the same system on other data.

        Args:
            data: As for the constructor.

        Returns:
            A system with the same state.
        """
        twin = copy.copy(self)
        with self._ranks.together(lambda: twin._signature(twin.state)):
            twin._take(data)
        twin._count()
        return twin

    def check_deterministic(self, state: Tensor | None = None) -> None:
        """Probe once that two passes give the same gradient, and that ranks agree.

        Every rank probes its own data. Whenever it is called, the ranks are compared:
        model, loss, layout of the data, buffers, and the state that is about to be
        used.

        Args:
            state: Coordinates, shape ``(P,)``; the system's own by default.

        Raises:
            NotDeterministicError: If two passes differ; the message names the culprit.
            InvalidInputError: If the gradient is not finite, or the ranks differ, or
                inside ``torch.inference_mode()``.

        Cost:
            At the first call two gradients, of at most 8 examples where the data are
            resident, over all of a loader; nothing after it. Over several ranks one
            small exchange each time.
        """  # noqa: DOC502 - raised by the parts
        with self._ranks.together(lambda: self._signature(self._at(state))):
            refuse_inference_mode("A Hessian or flow")
            self._at(state)
            if not self._deterministic:
                probe(self._sample())
        if not self._deterministic:
            self._deterministic.append(True)

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """Return the sum of a tensor over the ranks, the same bits on each.

        Args:
            tensor: This rank's part, of a floating-point dtype, changed in place.

        Returns:
            The sum; ``tensor`` itself in one process.

        Cost:
            One flat all-reduce; where the sum is NaN, a small exchange on who failed.
        """
        return self._ranks.sum(tensor)

    def sum_over_ranks(self, part: Callable[[], Tensor], *, like: Tensor) -> Tensor:
        """Return the sum of what each rank computes; an error reaches all of them.

        Args:
            part: Computes this rank's part; all it may raise is raised on every rank.
            like: Any tensor of its shape and dtype.

        Returns:
            The sum, the same bits on every rank; ``part()`` in one process.

        Cost:
            As :meth:`all_reduce`.
        """
        return self._ranks.sum_of(part, like=like)

    def check_one_process(self, what: str) -> None:
        """Refuse a process group where only one process is supported.

        Args:
            what: What was asked.

        Raises:
            InvalidInputError: If there is a process group.
        """
        if self._ranks.group is not None:
            raise InvalidInputError(
                f"{what} was asked of a system whose data are shared by "
                f"{self._ranks.count} ranks. Make one without process_group, of all "
                "the data; only losses, gradients and operators run on many."
            )

    def _sample(self) -> "GradientSystem":
        # what this process alone can probe: resident bytes do not move, so a few do
        twin = self.with_state(self.state)
        twin._ranks = Ranks()
        if is_resident(self.data):
            twin.data = tuple(part[:MOST_PROBED] for part in self.data)
        return twin

    def _shared(self, state: Tensor | None) -> Tensor:
        """Return the coordinates, after a look that all ranks have the same."""
        with self._ranks.together(lambda: state_signature(self, theta)):
            theta = self._at(state)
        return theta

    def _at(self, state: Tensor | None) -> Tensor:
        if state is None:
            return self.state
        if state.shape != (self.size,):
            raise InvalidInputError(
                f"A state of shape {tuple(state.shape)} was given, the system has "
                f"({self.size},). Use flatten() of the same system."
            )
        return state.detach().to(device=self.device, dtype=self.dtype)

    def __repr__(self) -> str:
        """Return one line."""
        masked = f", {len(self._masks)} masks" if self._masks else ""
        kind = type(self.module).__name__
        ranks = "" if self._ranks.group is None else f", {self._ranks.count} ranks"
        return f"GradientSystem({kind}, P={self.size}, {self.dtype}{masked}{ranks})"


def _make_dense_(net: nn.Module) -> tuple[str, ...]:
    # a gradient by the coordinates is dense; training makes tables sparse again
    found = []
    for name, module in net.named_modules():
        if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.sparse:
            module.sparse = False
            found.append(name)
    return tuple(found)


def _kept_in_eval(model: nn.Module) -> tuple[str, ...]:
    if not model.training:
        return ()
    return tuple(name for name, part in model.named_modules() if not part.training)


def _like(given: Tensor, present: Tensor | None, device: torch.device) -> Tensor:
    # a copy; whole numbers and truth values are never cast
    if present is None or not (
        given.is_floating_point() and present.is_floating_point()
    ):
        return given.detach().to(device).clone()
    return given.detach().to(device=device, dtype=present.dtype, copy=True)


def _remedy(computed: Sequence[str], net: nn.Module) -> str:
    own = {name for name, _ in net.named_parameters(remove_duplicate=False)}
    masked = [name for name in computed if f"{name}_orig" in own]
    said = []
    if masked:
        said.append(
            "To prune further what torch.nn.utils.prune masked, keep "
            "Ticket.from_torch_prune(model).masks for mask=, and call "
            "torch.nn.utils.prune.remove on its modules."
        )
    if len(masked) < len(computed):
        said.append(
            "To prune layers with weight_norm, spectral_norm, orthogonal or another "
            "parametrisation, make the system of a model without: "
            "torch.nn.utils.parametrize.remove_parametrizations(layer, 'weight')."
        )
    return " ".join(said)
