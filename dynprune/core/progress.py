"""One progress bar for every loop that may take long."""

from collections.abc import Iterable
from typing import TypeVar

T = TypeVar("T")


def track(
    items: Iterable[T], *, label: str, show: bool = False, total: int | None = None
) -> Iterable[T]:
    """Iterate over ``items``, with a bar on standard error if asked for.

    Args:
        items: What to iterate over.
        label: What the bar calls the loop.
        show: Draw the bar.
        total: Number of items, where ``items`` cannot say.

    Returns:
        An iterable over the same items.
    """
    if not show:
        return items
    from tqdm import tqdm

    bar: Iterable[T] = tqdm(items, desc=label, total=total, leave=False)
    return bar
