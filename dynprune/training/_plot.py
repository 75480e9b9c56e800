"""The figure of a run."""

from typing import Any

from torch import Tensor


def plot(ax: Any, *, steps: Tensor, losses: Tensor) -> Any:
    """Draw the loss of each batch against the step.

    Args:
        ax: Matplotlib axes, or None for a new figure.
        steps: Shape ``(T,)``.
        losses: Shape ``(T,)``.

    Returns:
        The axes.
    """
    if ax is None:
        import matplotlib.pyplot as plt

        _, ax = plt.subplots(layout="constrained")
    ax.plot(steps.numpy(), losses.cpu().double().numpy(), linewidth=0.8)
    ax.set_xlabel("optimiser step")
    ax.set_ylabel("loss of the batch")
    return ax
