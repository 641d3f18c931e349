"""Fast variable selection: the stock VariableSelectionNetwork evaluated once per distinct input value.

The stock forward spends most of its time on one gated residual network per variable and step. Each of them reads a
single scalar or category, and few distinct values occur: a mask is 0 or 1, a calendar category has a few dozen values,
the relative time index is the same in every window, and measured values are multiples of 1 / INPUT_GRID. A batch of a
hundred thousand values has about a thousand distinct ones. Hence

* each network is evaluated once per possible value, all variables of a kind in one batched matrix product; the results
  are looked up, weighted and summed in one pass over the batch;
* a scalar input x enters through a linear prescaler, so everything up to the first non-linearity is linear in x: the
  prescaler, the first layer, the interpolation of the residual and the layer norm over it fold into small matrices, and
  the concatenation of all embeddings that selects the variables is never built;
* a flag has two rows per variable, and the weighted sum over all flags is one matrix product.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from functools import lru_cache, reduce
from typing import Any, NamedTuple

import numpy as np
import torch
from pytorch_forecasting.models.temporal_fusion_transformer.sub_modules import (
    GatedResidualNetwork,
    ResampleNorm,
    VariableSelectionNetwork,
)
from scipy.sparse import csr_matrix
from torch import Tensor, nn
from torch.nn import functional

from fleet_forecast.features.windows import INPUT_GRID
from fleet_forecast.network.activations import elu, exporting
from fleet_forecast.network.constants import constant


class Variables(NamedTuple):
    """The input variables of one VariableSelectionNetwork.

    codes: by categorical variable, (B, T). tables: their embedding weights (category, width). scalars: names of the
    real variables. values: (B, T, scalar).
    """

    codes: Mapping[str, Tensor]
    tables: Mapping[str, Tensor]
    scalars: Sequence[str]
    values: Tensor


class _Kind(Enum):
    """Which values a real variable takes."""

    FLAG = "0 or 1"
    CLOCK = "the same in every window of a batch"
    GRID = "multiples of 1 / INPUT_GRID"
    FREE = "any"


_GRID_SUFFIXES = ("_scaled", "_seasonal_lag", "_seasonal_mean", "seasonal_lag_share", "seasonal_mean_share")


def _kind_of(variable: str) -> _Kind:
    if variable.endswith("_mask") or variable == "market_open":
        return _Kind.FLAG
    if variable.endswith(_GRID_SUFFIXES):
        return _Kind.GRID
    return _Kind.CLOCK if variable == "relative_time_idx" else _Kind.FREE


def select_variables(
    network: VariableSelectionNetwork, variables: Variables, context: Tensor | None, largest_input: int | None = None
) -> tuple[Tensor, Tensor]:
    """Selected (B, T, h), and weights (B, T, variable) in the order of network.input_sizes.

    context: (B, h). largest_input: see FleetTFT.forward.
    """
    weights = _selection_weights(network, variables, context)
    weight = dict(zip(network.input_sizes, weights.split(1, dim=-1), strict=True))
    value = dict(zip(variables.scalars, variables.values.split(1, dim=-1), strict=True))  # (B, T, 1) each
    rows = []
    for name, code in variables.codes.items():
        evaluated = network.single_variable_grns[name](variables.tables[name])
        rows.append((evaluated[None], code[..., None], weight[name]))
    summed = []  # (B, T, h)
    for kind in _Kind:
        names = [name for name in variables.scalars if _kind_of(name) is kind]
        if not names:
            continue
        values, share = (torch.cat([column[name] for name in names], dim=-1) for column in (value, weight))
        points, places = _evaluation_points(kind, values, largest_input)
        evaluated = _scalar_networks(network, names, points)
        if kind is _Kind.FLAG:
            summed.append(_weighted_flags(evaluated, values, share))
        else:
            rows.append((evaluated, places, share))
    return reduce(torch.add, [*summed, _weighted_rows(rows)]), weights


def _selection_weights(network: VariableSelectionNetwork, variables: Variables, context: Tensor | None) -> Tensor:
    """Softmax weights of the variables (B, T, variable), without building the flattened embedding (B, T, sizes).

    First layer and residual of the network are linear in the embedding: their matrices are applied to the embedding
    tables and folded with the prescalers.
    """
    grn, values, scalars = network.flattened_grn, variables.values, variables.scalars
    linear = torch.cat([grn.fc1.weight, interpolation(grn.input_size, grn.output_size, values)])  # (o, sizes)
    names = (*variables.codes, *scalars)
    parts = dict(zip(names, linear.split([network.input_sizes[name] for name in names], dim=1), strict=True))
    scale = torch.stack([parts[name] @ network.prescalers[name].weight[:, 0] for name in scalars])  # (scalar, o)
    shift = torch.stack([parts[name] @ network.prescalers[name].bias for name in scalars]).sum(dim=0)
    flat = functional.linear(values, scale.T, shift)  # (B, T, o)
    for name, code in variables.codes.items():
        flat = flat + functional.embedding(code, variables.tables[name] @ parts[name].T)
    hidden, residual = flat.split([grn.hidden_size, grn.output_size], dim=-1)
    hidden = hidden + grn.fc1.bias
    if context is not None:
        hidden = hidden + grn.context(context)[:, None]
    residual = _gated_norm(grn.resample_norm, residual)
    hidden = grn.fc2(elu(hidden))
    return torch.softmax(grn.gate_norm(hidden, residual), dim=-1)


def _evaluation_points(kind: _Kind, values: Tensor, largest: int | None) -> tuple[Tensor, Tensor]:
    """Where to evaluate the networks of scalar variables with `values` (B, T, v), and which point each value is.

    largest: as largest_input in FleetTFT.forward; if given, the values are not read, which would make a GPU wait.
    Returns points (v, n) and places (B, T, v) with points[i, places[..., i]] == values[..., i].
    """
    windows, steps, variables = values.shape
    if kind is _Kind.FLAG:
        return torch.arange(2, device=values.device).to(values).expand(variables, 2), values.long()
    if kind is _Kind.CLOCK:
        return values[0].T, torch.arange(steps, device=values.device)[:, None].expand(values.shape)
    if kind is _Kind.FREE or (largest is None and not exporting() and _few(values)):
        count = torch.arange(windows * steps, device=values.device)
        return values.flatten(0, 1).T, count.view(windows, steps, 1).expand(values.shape)
    places = torch.round(values * INPUT_GRID).long()
    first: Any = places.min() if largest is None else -largest
    last: Any = places.max() if largest is None else largest
    grid = torch.arange(first, last + 1, device=values.device)  # takes tensors as well
    return (grid / INPUT_GRID).to(values).expand(variables, -1), places - first


def _few(values: Tensor) -> bool:
    """True if the values (B, T, v) of a variable are fewer than the points of the grid they span."""
    here = values[..., 0].numel()
    return here == 0 or here <= float(values.max() - values.min()) * INPUT_GRID


def _weighted_flags(tables: Tensor, flags: Tensor, weights: Tensor) -> Tensor:
    """Weighted sum over flags: tables (v, 2, h), flags and weights (B, T, v) -> (B, T, h).

    With two rows per variable the weights of all rows are few, and the sum is one matrix product.
    """
    on = weights * flags
    return torch.cat([weights - on, on], dim=-1) @ torch.cat(tables.unbind(dim=1))


def _weighted_rows(variables: Sequence[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
    """Sum over variables of weight times row: tables (v, n, h), places and weights (B, T, v) each -> (B, T, h).

    One gathering sum for all variables: no array of size (B, T, v, h) is built.
    """
    if exporting():  # ONNX has no gathering sum
        weighted = [
            weight * functional.embedding(place.squeeze(-1), table)
            for tables, *rest in variables
            for table, place, weight in zip(tables, *(part.split(1, dim=-1) for part in rest), strict=True)
        ]
        return reduce(torch.add, weighted)
    rows = torch.cat([tables.flatten(0, 1) for tables, _, _ in variables])
    index, start = [], 0
    for tables, places, _ in variables:
        count, size = tables.shape[:2]
        index.append(places + start + torch.arange(count, device=places.device) * size)
        start += count * size
    flat = torch.cat(index, dim=-1).flatten(0, 1)
    weights = torch.cat([share for _, _, share in variables], dim=-1)
    selected: Tensor = _GatheringSum.apply(rows, flat, weights.flatten(0, 1))
    return selected.unflatten(0, weights.shape[:2])


class _GatheringSum(torch.autograd.Function):
    """torch's embedding_bag with weights, with a backward without a sort: five times as fast on a CPU."""

    @staticmethod
    def forward(context: Any, rows: Tensor, index: Tensor, weights: Tensor) -> Tensor:
        """Rows (R, h), index and weights (N, v) -> (N, h)."""
        context.save_for_backward(rows, index, weights)
        return functional.embedding_bag(index, rows, mode="sum", per_sample_weights=weights)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None, Tensor]:
        """Gradient (N, h) -> those of rows and weights."""
        rows, index, weights = context.saved_tensors
        gradient = gradients[0].contiguous()
        bags, width = index.shape
        starts = torch.arange(0, bags * width, width, device=index.device)
        bag = torch.arange(bags, device=index.device).repeat_interleave(width)
        by_weight = torch.ops.aten._embedding_bag_per_sample_weights_backward(
            gradient, rows, index.flatten(), starts, bag, 0
        )
        by_row = _scattered_sum if rows.is_cuda else _sparse_product
        return by_row(len(rows), index, weights, gradient), None, by_weight.view_as(weights)


def _sparse_product(rows: int, index: Tensor, weights: Tensor, gradient: Tensor) -> Tensor:
    """Gradient of the rows: the transposed sparse matrix of weights times the gradient, (R, h)."""
    bags, width = index.shape
    ends = np.arange(0, bags * width + 1, width, dtype=np.int32)
    picked = index.flatten().to(torch.int32).numpy()
    matrix = csr_matrix((weights.flatten().numpy(), picked, ends), shape=(bags, rows))
    return torch.from_numpy(matrix.T @ gradient.numpy())


def _scattered_sum(rows: int, index: Tensor, weights: Tensor, gradient: Tensor) -> Tensor:
    """_sparse_product on a GPU, where scattered additions are fast."""
    total = gradient.new_zeros(rows, gradient.shape[1])
    for picked, weight in zip(index.unbind(dim=1), weights.unbind(dim=1), strict=True):
        total.index_add_(0, picked, gradient * weight[:, None])
    return total


def _scalar_networks(network: VariableSelectionNetwork, names: Sequence[str], values: Tensor) -> Tensor:
    """Prescaler and gated residual network of several real variables at once: values (v, N) -> (v, N, h)."""
    grns: list[GatedResidualNetwork] = [network.single_variable_grns[name] for name in names]
    prescale = torch.stack([network.prescalers[name].weight[:, 0] for name in names])  # (v, i)
    prebias = torch.stack([network.prescalers[name].bias for name in names])
    first = torch.stack([grn.fc1.weight for grn in grns])  # (v, i, i)
    scale = torch.einsum("voi,vi->vo", first, prescale)[:, None]
    shift = (torch.einsum("voi,vi->vo", first, prebias) + _stack_biases([grn.fc1 for grn in grns]))[:, None]
    x = values[..., None]  # (v, N, 1)
    hidden = elu(x * scale + shift)
    hidden = _batched_linear(hidden, [grn.fc2 for grn in grns])
    gates = [grn.gate_norm.glu for grn in grns]
    if gates[0].dropout is not None:
        hidden = gates[0].dropout(hidden)
    gated = functional.glu(_batched_linear(hidden, [gate.fc for gate in gates]), dim=-1)  # (v, N, h)
    if hasattr(grns[0], "resample_norm"):
        gated = gated + _resampled_residual(x, [grn.resample_norm for grn in grns], prescale, prebias)
    else:
        gated = gated + x * prescale[:, None] + prebias[:, None]
    norms = [grn.gate_norm.add_norm.norm for grn in grns]
    normed = functional.layer_norm(gated, norms[0].normalized_shape, eps=norms[0].eps)
    return normed * torch.stack([norm.weight for norm in norms])[:, None] + _stack_biases(norms)[:, None]


def _resampled_residual(x: Tensor, norms: list[ResampleNorm], prescale: Tensor, prebias: Tensor) -> Tensor:
    """Residual of scalars x (v, N, 1): prescaled, interpolated to h, gated, all affine in x, then normalised.

    With y = x a + c over the h outputs (both centred) and c split along a, c = shift a + rest, the variance of y is
    (x + shift)^2 mean(a^2) + mean(rest^2): a sum of squares, so nothing cancels.
    """
    resample = interpolation(prescale.shape[1], norms[0].output_size, prescale)  # (h, i)
    gate = torch.stack([torch.sigmoid(norm.mask) * 2.0 for norm in norms])
    a, c = (prescale @ resample.T) * gate, (prebias @ resample.T) * gate  # (v, h)
    a, c = a - a.mean(dim=1, keepdim=True), c - c.mean(dim=1, keepdim=True)
    power = (a * a).mean(dim=1, keepdim=True)
    shift = (a * c).mean(dim=1, keepdim=True) / power.clamp(min=1e-12)  # (v, 1)
    rest = c - shift * a
    x = x + shift[:, None]
    variance = x * x * power[:, None] + (rest * rest).mean(dim=1, keepdim=True)[:, None]
    inverse = torch.rsqrt(variance + norms[0].norm.eps)  # (v, N, 1)
    weight = torch.stack([norm.norm.weight for norm in norms])
    directions = torch.stack([a * weight, rest * weight], dim=1)  # (v, 2, h)
    return torch.baddbmm(
        _stack_biases([norm.norm for norm in norms])[:, None], torch.cat([x * inverse, inverse], dim=-1), directions
    )


def _gated_norm(norm: ResampleNorm, resampled: Tensor) -> Tensor:
    """ResampleNorm after its interpolation."""
    return norm.norm(resampled * torch.sigmoid(norm.mask) * 2.0)


def _batched_linear(rows: Tensor, layers: Sequence[nn.Linear]) -> Tensor:
    """Layer v applied to rows[v]: (v, N, i) -> (v, N, o)."""
    weight = torch.stack([layer.weight for layer in layers]).transpose(1, 2)
    return torch.baddbmm(_stack_biases(layers)[:, None], rows, weight)


def _stack_biases(layers: Sequence[nn.Linear | nn.LayerNorm]) -> Tensor:
    return torch.stack([layer.bias for layer in layers])


def interpolation(inputs: int, outputs: int, like: Tensor) -> Tensor:
    """Linear interpolation from `inputs` to `outputs` points (ends aligned) as a matrix (outputs, inputs)."""
    return constant(_interpolation_weights(inputs, outputs), like.dtype, like.device).view(outputs, inputs)


@lru_cache
def _interpolation_weights(inputs: int, outputs: int) -> tuple[float, ...]:
    """Row by row."""
    position = np.linspace(0.0, inputs - 1.0, outputs)
    return tuple(np.stack([np.interp(position, np.arange(inputs), unit) for unit in np.eye(inputs)], axis=1).flat)
