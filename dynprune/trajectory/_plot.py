"""The figure of a trajectory."""

from typing import Any

from torch import Tensor


def plot(ax: Any, *, steps: Tensor, distances: Tensor) -> Any:
    """Draw the distance from the first state against the step.

    Args:
        ax: Matplotlib axes, or None for a new figure.
        steps: Shape ``(T,)``.
        distances: Shape ``(T,)``.

    Returns:
        The axes.
    """
    if ax is None:
        import matplotlib.pyplot as plt

        _, ax = plt.subplots(layout="constrained")
    ax.plot(steps.numpy(), distances.cpu().double().numpy(), marker=".", markersize=3)
    ax.set_xlabel("optimiser step")
    ax.set_ylabel("distance from the first state, ‖θ(t) − θ(0)‖₂")
    return ax
