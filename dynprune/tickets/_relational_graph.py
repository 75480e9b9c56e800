"""The graph of a whole network whose nodes are groups of units."""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

GROUPS = 64


def relational_graph(masks: Iterable[Tensor], *, groups: int = GROUPS) -> Any:
    r"""Return which groups of units exchange messages over all layers.

    Unit i of the n units at either side of a layer belongs to group
    :math:`\lfloor i g / n \rfloor`, and the same group index is the same node in every
    layer. With :math:`W_{hk}` the kept weights between groups h and k of all layers, in
    either direction, two groups are joined where W is positive and not below its median
    over all pairs of groups.

    Only that layers with the same index of group are one node, and C and L of the
    graph, are the source's; the groups of a trained mask and the median are a
    reconstruction. Masks of one dimension are left out.

    Args:
        masks: Boolean, shape ``(out, in, …)``, one per layer.
        groups: g.

    Returns:
        A symmetric boolean array, shape ``(groups, groups)``, False on its diagonal.

    Source:
        You et al., *Graph Structure of Neural Networks*, ICML 2020.
    """
    total = torch.zeros(groups, groups, dtype=torch.float64)
    for mask in masks:
        if mask.ndim < 2 or not mask.numel():
            continue
        # exact in float32: counts below 2^24
        units = mask.flatten(2).sum(2) if mask.ndim > 2 else mask
        part = units.float()
        rows = part.new_zeros(groups, part.shape[1])
        rows.index_add_(0, _group(part.shape[0], groups), part)
        block = part.new_zeros(groups, groups)
        block.index_add_(1, _group(part.shape[1], groups), rows)
        total += block.double()
    weights = (total + total.T).numpy()
    pairs = weights[np.triu_indices(groups, 1)]
    middle = float(np.median(pairs)) if len(pairs) else 0.0
    joined = (weights > 0) & (weights >= middle)
    np.fill_diagonal(joined, val=False)
    return joined


def clustering(adjacency: Any) -> float:
    r"""Return the mean clustering coefficient C of a graph.

    .. math:: C = \frac{1}{g} \sum_i \frac{(A^3)_{ii}}{k_i (k_i - 1)}

    with k the degrees; nodes of degree below 2 count 0.

    Args:
        adjacency: Symmetric boolean array without loops.

    Returns:
        C in [0, 1]; NaN for a graph without edges.
    """
    graph = np.asarray(adjacency, dtype=np.float64)
    degrees = graph.sum(1)
    if not degrees.any():
        return math.nan
    triangles = ((graph @ graph) * graph).sum(1)
    pairs = degrees * (degrees - 1.0)
    shares = np.divide(triangles, pairs, out=np.zeros_like(pairs), where=pairs > 0)
    return float(shares.mean())


def average_path_length(adjacency: Any) -> float:
    """Return the mean number of steps L between two nodes that are connected.

    Args:
        adjacency: Symmetric boolean array without loops.

    Returns:
        L ≥ 1 over the connected pairs; NaN for a graph without edges.
    """
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import shortest_path

    graph = csr_array(np.asarray(adjacency, dtype=np.float64))
    steps = shortest_path(graph, directed=False, unweighted=True)
    between = steps[np.isfinite(steps) & (steps > 0)]
    return float(between.mean()) if between.size else math.nan


def _group(units: int, groups: int) -> Tensor:
    return torch.arange(units) * groups // units
