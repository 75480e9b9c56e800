"""A private copy of a network that sends sums over its paths to the output."""

import contextlib
import copy
import math
from collections.abc import Mapping
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from dynprune.core import InvalidInputError, generator, isolated
from dynprune.tickets._apply import check_masks, listed
from dynprune.tickets._path_inputs import PassedRelu
from dynprune.tickets._path_modules import PathModules

_ROUNDING = 1e-9  # of the largest slope of a tensor: some libraries sum by FFT
_SMALL = 1e-3  # weights at which a function that saturates may still have slopes
_SATURATED = (
    "Paths to the output were asked for, but no kept weight has a slope other than 0, "
    "though some have at smaller weights, or none has without masks: a function of the "
    "network saturates (a softmax, relu6 or clamp of large values) or is constant. Use "
    "it as a module (nn.Softmax, nn.ReLU6), which is followed, or leave it out."
)
_SIGNED_DRAWS = 4  # a rectified unit is open in about half of them
_NO_SUM = (
    "A path norm was asked of a network whose output {found}: it is no sum over paths "
    "of products of absolute weights. {why}; leave the path norm out."
)

_NEGATIVE = _NO_SUM.format(
    found="falls as a weight or an input rises",
    why="Take minus signs out of the forward pass (a weight can have the sign)",
)


@final
class PathNetwork:
    r"""Make every path from input to output count, and nothing else.

    With non-negative weights, no biases and linear units the output is a sum over
    paths of products of weights. In a private float64 copy in eval mode: activation
    modules and dropout pass their input; norm modules multiply it by their scale;
    max-pooling modules sum their window; parameters called ``…bias`` or ``bias_…`` are
    zero. Where only connections count, norm modules also divide by the mean size of
    their input, lest values double at every addition of a residual stream, and softmax
    modules add the mean over their dimension. ``torch.relu`` and ``F.relu`` pass, too;
    what a model computes by other functions instead of modules stays as it is.

    Args:
        model: The user's model; not changed.
        example: One example, shape ``(1, …)``; a tuple is spread into positional
            arguments, a mapping into keywords. Only shapes and dtypes of floating-point
            tensors count, others are passed on.

    Cost:
        A float64 copy of the model, and as many random numbers.
    """

    def __init__(self, model: nn.Module, example: Any) -> None:
        self._net = copy.deepcopy(model).double().eval()
        self._own = dict(self._net.named_parameters())
        self._buffers = {
            name: part.detach().clone() for name, part in self._net.named_buffers()
        }
        device = next((p.device for p in self._own.values()), torch.device("cpu"))
        self._example = pytree.tree_map(
            lambda leaf: leaf.detach().to(device) if isinstance(leaf, Tensor) else leaf,
            example,
        )
        self._draw = self._drawn()
        # of each set of masked names, why its weights cannot be judged
        self._judged: dict[tuple[str, ...], str] = {}
        self._modules = PathModules(self._net)

    def effective(self, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
        r"""Say which kept weights lie on a path from the input to the output.

        Kept weights are set to random positive numbers of a size at which nothing
        over- or underflows, so that a weight of value 0 is a connection like any other.
        With R the sum of the outputs, times random positive numbers (the plain sum of a
        softmax is 1), on a random positive input, a kept weight is effective iff
        :math:`\partial R / \partial w \ne 0`; of a linear layer only that part of the
        slope counts which is by what changes with the input of the network. Biases,
        shifts of norms and slopes of activation modules lie on no path, and are as
        effective as they are kept. Where no
        slope is other than 0, it is tried again with smaller weights and without masks,
        to tell a network that the masks cut from one whose functions saturate.

        Args:
            masks: Parameter name to boolean tensor, True = kept.

        Returns:
            Name to boolean tensor, on the CPU.

        Raises:
            InvalidInputError: If the masks do not fit the model, or the output does
                not depend on the masked weights, saturates or is not finite, or if
                :meth:`hidden` finds weights.

        Cost:
            Two forward passes and a backward pass of one example; three times that
            where all slopes are 0.
        """
        check_masks(masks.items(), self._net)
        alive = self._alive(masks)
        if all(bool((alive[name] == mask.cpu()).all()) for name, mask in masks.items()):
            return alive
        if not _any(alive):
            whole = {name: torch.ones_like(mask) for name, mask in masks.items()}
            if _any(self._alive(masks, scale=_SMALL)) or not _any(self._alive(whole)):
                raise InvalidInputError(_SATURATED)
        if why := self.hidden(masks):
            raise InvalidInputError(why)
        return alive

    def hidden(self, masks: Mapping[str, Tensor]) -> str:
        """Say which weights have no slope, masked or not, though they matter.

        Without masks and with positive weights, an output that does not change with a
        weight has no path through it, unless a function such as a maximum, or a clamp
        of a difference, hides it. With weights of random signs it then has a slope.

        Args:
            masks: Parameter name to boolean tensor; only names and shapes count.

        Returns:
            Why paths through their layers cannot be judged; empty if there are none.

        Cost:
            Two forward passes and a backward pass of one example; five times that where
            weights have no slope. Once for each set of names.
        """
        key = tuple(masks)
        if key not in self._judged:
            self._judged[key] = self._find_hidden(masks)
        return self._judged[key]

    def _find_hidden(self, masks: Mapping[str, Tensor]) -> str:
        whole = {name: torch.ones_like(mask) for name, mask in masks.items()}
        seen = self._alive(whole)
        if all(bool(part.all()) for part in seen.values()):
            return ""
        hidden: dict[str, Tensor] = {n: torch.zeros_like(p) for n, p in seen.items()}
        for seed in range(_SIGNED_DRAWS):
            # what is not finite here, such as a logarithm, says nothing
            with contextlib.suppress(InvalidInputError):
                for name, part in self._alive(whole, signs=generator(seed)).items():
                    hidden[name] |= part & ~seen[name]
        found = [
            f"{name} ({int(part.sum())} of {part.numel()} weights)"
            for name, part in hidden.items()
            if bool(part.any())
        ]
        if not found:
            return ""
        return (
            f"Paths through {listed(found)} were asked for, but cannot be judged: on "
            "positive weights the output does not change with them, masked or not, "
            "because of a function such as a clamp, a maximum or a choice of the "
            "largest. Use modules (nn.ReLU, nn.ReLU6, nn.MaxPool2d), which are "
            "followed, or measure the chain of layers (no model; in compare, "
            "model='chain')."
        )

    def _alive(
        self,
        masks: Mapping[str, Tensor],
        *,
        scale: float = 1.0,
        signs: torch.Generator | None = None,
    ) -> dict[str, Tensor]:
        with torch.no_grad():
            for name, part in self._own.items():
                mask = masks.get(name)
                part.requires_grad_(name in masks)
                if _is_bias(name):
                    part.zero_()
                    continue
                kept = part.numel() if mask is None else int(mask.sum())
                gain = max(1.0, kept / part.shape[0]) if part.ndim > 1 else 1.0
                gain = gain if signs is None else math.sqrt(gain)
                part.copy_(_signed(self._draw[name], signs) * (scale / gain))
                if mask is not None:
                    part.masked_fill_(~mask.to(part.device), 0.0)
        self._modules.scale_norms_(power=0.0)
        self._modules.counts = False
        weights = [self._own[name] for name in masks]
        draw = generator(0)
        nothing: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
        passed = PassedRelu() if signs is None else nothing
        scaled = self._is_scaled()
        between = self._modules.changes.between() if scaled else nothing

        def make(shape: Any) -> Tensor:
            return _signed(_positive(shape, draw), signs)

        with passed, between, torch.enable_grad():
            if scaled:
                with self._modules.changes.first():
                    self._output(make, mix=True)
            total = self._output(make, mix=True)
            if not total.requires_grad:
                raise InvalidInputError(
                    "The output does not depend on any weight that the ticket masks "
                    f"({listed(list(masks))}). Pass the model whose forward pass "
                    "reads them."
                )
            slopes = torch.autograd.grad(
                total, weights, allow_unused=True, materialize_grads=True
            )
        return {
            name: mask.cpu() & ((slope != 0).cpu() | self._lies_on_none(name))
            for (name, mask), slope in zip(masks.items(), slopes, strict=True)
        }

    def path_norm(
        self,
        state: Mapping[str, Tensor],
        buffers: Mapping[str, Tensor],
        *,
        power: int = 1,
    ) -> float:
        r"""Return :math:`(\sum_{\text{paths}} \prod_{e} |w_e|^p)^{1/p}`.

        Args:
            state: Parameter name to tensor, masked.
            buffers: Buffer name to tensor.
            power: p, 1 or 2.

        Returns:
            The norm; the running variance of a batch norm counts with its scale.

        Raises:
            InvalidInputError: If the network is no sum over paths: a norm without
                running statistics, a function that is not homogeneous, a minus sign.

        Cost:
            Four forward and two backward passes of one example.
        """
        with torch.no_grad():
            for name, part in self._own.items():
                part.requires_grad = False
                part.copy_(state[name].double().abs() ** power)
                if _is_bias(name):
                    part.zero_()
            for name, held in self._net.named_buffers():
                held.copy_(buffers.get(name, self._buffers[name]))
            self._modules.scale_norms_(power=float(power))
            self._modules.counts = True
            with PassedRelu():
                once = float(self._output(torch.ones))
                twice = float(self._output(lambda shape: 2.0 * torch.ones(shape)))
        if abs(twice - 2.0 * once) > 1e-8 * abs(once):
            raise InvalidInputError(
                _NO_SUM.format(
                    found=f"is {once:.6g} on ones and {twice:.6g} on twos",
                    why="Attention, tanh as a function and embeddings have none",
                )
            )
        for scale in (1.0, _SMALL):  # at the latter, short paths outweigh long ones
            self._check_signs(scale)
        if once < 0.0:
            raise InvalidInputError(_NEGATIVE)
        if once == 0.0:
            self._check_cut(state)
        return math.pow(once, 1.0 / power)

    def _check_signs(self, scale: float) -> None:
        # with non-negative weights and inputs, no sum over paths falls in any of them
        inputs: list[Tensor] = []

        def make(shape: Any) -> Tensor:
            leaf = torch.ones(shape, dtype=torch.float64, requires_grad=True)
            inputs.append(leaf)
            return leaf.clone()

        parts = list(self._own.values())
        with torch.no_grad():
            for part in parts:
                part.mul_(scale)
        for part in parts:
            part.requires_grad_(True)
        with PassedRelu(), torch.enable_grad():
            total = self._output(make, mix=True)
        if not total.requires_grad:
            return
        slopes = torch.autograd.grad(
            total, [*parts, *inputs], allow_unused=True, materialize_grads=True
        )
        biases = [name for name in self._own if _is_bias(name)]
        named = dict(zip(self._own, slopes, strict=False))
        for name in biases:
            named.pop(name)
        counted = [*named.values(), *slopes[len(parts) :]]
        if any(bool((part < -_ROUNDING * part.abs().max()).any()) for part in counted):
            raise InvalidInputError(_NEGATIVE)

    def _check_cut(self, state: Mapping[str, Tensor]) -> None:
        # a function may be 0 where there are paths, such as a relu of x - 1
        there = {n: part.cpu() != 0 for n, part in state.items() if not _is_bias(n)}
        try:
            leads = _any(self.effective(there))
        except InvalidInputError:  # at any weights, then
            leads = True
        if leads:
            raise InvalidInputError(
                _NO_SUM.format(
                    found="is 0 on ones, though paths lead there",
                    why="A shift or a difference inside a rectifier has none",
                )
            )

    def _lies_on_none(self, name: str) -> bool:
        return _is_bias(name) or name in self._modules.passed

    def _drawn(self) -> dict[str, Tensor]:
        draw = generator(0)
        return {
            name: _positive(part.shape, draw).to(part.device)
            for name, part in self._own.items()
        }

    def _is_scaled(self) -> bool:
        # of whole numbers, such as those of an embedding, nothing changes
        leaves = [x for x in pytree.tree_leaves(self._example) if isinstance(x, Tensor)]
        floating = [x for x in leaves if x.is_floating_point()]
        others = {x.dtype for x in leaves if not x.is_floating_point()} - {torch.bool}
        return bool(floating) and not others

    def _output(self, make: Any, *, mix: bool = False) -> Tensor:
        def value(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor) or not leaf.is_floating_point():
                return leaf
            return make(leaf.shape).to(device=leaf.device, dtype=torch.float64)

        filled = pytree.tree_map(value, self._example)
        try:
            with isolated(0):
                if isinstance(filled, Mapping):
                    found = self._net(**filled)
                elif isinstance(filled, tuple):
                    found = self._net(*filled)
                else:
                    found = self._net(filled)
        except (RuntimeError, TypeError, ValueError, LookupError) as error:
            why = (str(error) or type(error).__name__).strip().splitlines()[0]
            raise InvalidInputError(
                f"The model cannot be called with the example ({_shown(filled)}): "
                f"{why} Pass example=torch.ones(1, ...) of the shape of one example."
            ) from error
        leaves = [
            leaf
            for leaf in pytree.tree_leaves(found)
            if isinstance(leaf, Tensor) and leaf.is_floating_point()
        ]
        if not leaves:
            raise InvalidInputError(
                f"The network returns a {type(found).__name__} without floating-point "
                "tensors, so it has no output to follow paths to. Wrap it."
            )
        if mix:
            draw = generator(1)
            leaves = [
                leaf * _positive(leaf.shape, draw).to(leaf.device) for leaf in leaves
            ]
        total = torch.stack([leaf.sum() for leaf in leaves]).sum()
        if not math.isfinite(float(total.detach())):
            raise InvalidInputError(
                f"The sum over paths is {float(total.detach())}. Look for a "
                "function that overflows, or pass a smaller example."
            )
        return total


def check_example(example: Any) -> Any:
    """Refuse a missing example.

    Args:
        example: What the user passed.

    Returns:
        The same.

    Raises:
        InvalidInputError: If it is None.
    """
    if example is None:
        raise InvalidInputError(
            "The paths of a model were asked for without an example of its input. Pass "
            "example=torch.ones(1, ...) of the shape of one example."
        )
    return example


def _shown(example: Any) -> str:
    return ", ".join(
        f"tensor {tuple(leaf.shape)}"
        if isinstance(leaf, Tensor)
        else type(leaf).__name__
        for leaf in pytree.tree_leaves(example)
    )


def _positive(shape: Any, draw: torch.Generator) -> Tensor:
    return 0.5 + torch.rand(shape, generator=draw, dtype=torch.float64)


def _signed(values: Tensor, signs: torch.Generator | None) -> Tensor:
    if signs is None:
        return values
    draw = torch.rand(values.shape, generator=signs, dtype=torch.float64)
    return torch.where(draw.to(values.device) < 0.5, -values, values)


def _any(masks: Mapping[str, Tensor]) -> bool:
    return any(bool(mask.any()) for mask in masks.values())


def _is_bias(name: str) -> bool:
    own = name.rpartition(".")[2]
    # also bias_ih_l0 of recurrent layers, bias_k of attention
    return own.endswith("bias") or own.startswith("bias_")
