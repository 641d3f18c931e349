"""FleetTFT: the stock Temporal Fusion Transformer with a faster forward. Same weights, same numbers.

The stock forward spends most of its time on one gated residual network per variable and time step. Each of these reads
a single scalar or category, and few different values occur: a mask is 0 or 1, a calendar category has a few dozen
values, the relative time index is the same in every window, and measured values are multiples of 1 / INPUT_GRID
(windows.py rounds them), so that a batch of a hundred thousand values has about a thousand different ones. Hence

* each network is evaluated once per value that can occur, all variables of a kind in one batched matrix product, and
  the results are looked up, weighted and summed in one pass over the batch;
* a scalar input x enters through a linear prescaler, so what follows up to the first non-linearity is linear in x: the
  prescaler, the first layer of each network, the linear interpolation of the residual and the layer norm over it fold
  into small matrices, and the concatenation of all embeddings that selects the variables is never built;
* what is 0 or 1 has two rows a variable, and the weighted sum of those of all such variables is one matrix product;
* attention needs no materialised scores (torch's scaled_dot_product_attention); the interpretable weights are computed
  only on request (`interpretable = True`);
* one encoder length per batch lets the LSTM run on plain tensors rather than packed sequences.

All of it is exact without dropout. Dropout acts on the same activations as in the stock class; within the networks of
single variables one draw serves all places with the same value, and a mask costs a byte of randomness an activation.

One thing differs on purpose: the stock class pads category 0 of a NaN-tolerant categorical, so the embedding of an
unknown profile stays at its initial zero for ever; here it is trained like any other.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from functools import lru_cache, reduce
from typing import Any

import numpy as np
import torch
from pytorch_forecasting import TemporalFusionTransformer
from pytorch_forecasting.models.temporal_fusion_transformer.sub_modules import (
    GatedResidualNetwork,
    ResampleNorm,
    VariableSelectionNetwork,
)
from scipy.sparse import csr_matrix
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention.bias import causal_lower_right

from fleet_forecast.features.windows import INPUT_GRID
from fleet_forecast.network.constants import constant


class _Kind(Enum):
    """What is known of a real variable's values."""

    FLAG = "0 or 1"
    CLOCK = "the same in every window of a batch"
    GRID = "multiples of 1 / INPUT_GRID"
    FREE = "anything"


def _kind_of(variable: str) -> _Kind:
    if variable.endswith("_mask") or variable == "market_open":
        return _Kind.FLAG
    if variable.endswith(("_scaled", "_yesterday", "_daily_mean", "daily_mean_share", "yesterday_share")):
        return _Kind.GRID
    return _Kind.CLOCK if variable == "relative_time_idx" else _Kind.FREE


class FleetTFT(TemporalFusionTransformer):
    """TemporalFusionTransformer with `forward` overridden; all windows of a batch must have one encoder length."""

    interpretable = False
    largest_input: int | None = None  # of a measured value, in steps of the input grid; None: looked up in each batch

    def __init__(self, *arguments: Any, **options: Any) -> None:
        """As the stock class; layers that hold no weights are replaced by cheaper ones."""
        super().__init__(*arguments, **options)
        for module in list(self.modules()):
            for name, child in module.named_children():
                if type(child) is nn.Dropout:
                    setattr(module, name, _Dropout(child.p))
                elif type(child) is nn.ELU:
                    setattr(module, name, _Elu())

    def forward(self, x: dict[str, Tensor]) -> dict[str, Tensor]:
        """The stock class's inputs and outputs; attention weights only if `interpretable`."""
        encoder_steps = x["encoder_cont"].shape[1]
        static, static_weights = self._select_static(x)  # (B, h)
        selection_context = self.static_context_variable_selection(static)
        encoder, encoder_weights = self._select(
            self.encoder_variable_selection, x["encoder_cat"], x["encoder_cont"], selection_context
        )  # (B, E, h)
        decoder, decoder_weights = self._select(
            self.decoder_variable_selection, x["decoder_cat"], x["decoder_cont"], selection_context
        )  # (B, H, h)
        local = torch.cat(self._run_lstm(static, encoder, decoder), dim=1)  # (B, E + H, h)
        enriched = self.static_enrichment(local, self.static_context_enrichment(static)[:, None])
        attended, attention = self._attend(enriched, encoder_steps)
        output = self.post_attn_gate_norm(attended, enriched[:, encoder_steps:])
        output = self.pos_wise_ff(output)
        output = self.pre_output_gate_norm(output, local[:, encoder_steps:])
        prediction = [layer(output) for layer in self.output_layer] if self.n_targets > 1 else self.output_layer(output)
        return self.to_network_output(
            prediction=prediction,
            encoder_attention=None if attention is None else attention[..., :encoder_steps],
            decoder_attention=None if attention is None else attention[..., encoder_steps:],
            static_variables=static_weights,
            encoder_variables=encoder_weights,
            decoder_variables=decoder_weights,
            decoder_lengths=x["decoder_lengths"],
            encoder_lengths=x["encoder_lengths"],
        )

    def _select_static(self, x: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Static variables are those of any step; (B, h) and weights (B, 1, variable)."""
        categories, reals = x["decoder_cat"][:, :1], x["decoder_cont"][:, :1]
        selected, weights = self._select(self.static_variable_selection, categories, reals, None)
        return selected[:, 0], weights[:, 0]

    def _select(
        self, network: VariableSelectionNetwork, categories: Tensor, reals: Tensor, context: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Categories (B, T, c), reals (B, T, r), context (B, h) -> selected (B, T, h), weights (B, T, 1, variable)."""
        names = list(network.input_sizes)
        tables = [name for name in names if name not in network.prescalers]
        scalars = [name for name in names if name in network.prescalers]
        codes = [categories[..., self.hparams.x_categoricals.index(name)] for name in tables]
        values = _columns(reals, [self.hparams.x_reals.index(name) for name in scalars])  # (B, T, scalar)
        weights = self._selection_weights(network, tables, codes, scalars, values, context)  # (B, T, variable)
        value = dict(zip(scalars, values.split(1, dim=-1), strict=True))  # (B, T, 1) each
        weight = dict(zip(names, weights.split(1, dim=-1), strict=True))
        rows = []
        for name, code in zip(tables, codes, strict=True):
            evaluated = network.single_variable_grns[name](self.input_embeddings[name].weight)
            rows.append((evaluated[None], code[..., None], weight[name]))
        summed = []  # (B, T, h)
        for kind in _Kind:
            of_kind = [name for name in scalars if _kind_of(name) is kind]
            if not of_kind:
                continue
            here, share = (torch.cat([column[name] for name in of_kind], dim=-1) for column in (value, weight))
            points, places = _evaluation_points(kind, here, self.largest_input)
            evaluated = _scalar_networks(network, of_kind, points)
            if kind is _Kind.FLAG:
                summed.append(_weighted_flags(evaluated, here, share))
            else:
                rows.append((evaluated, places, share))
        selected = reduce(torch.add, [*summed, _weighted_rows(rows)])
        return selected, weights[..., None, :]

    def _selection_weights(
        self,
        network: VariableSelectionNetwork,
        tables: Sequence[str],
        codes: Sequence[Tensor],
        scalars: Sequence[str],
        values: Tensor,
        context: Tensor | None,
    ) -> Tensor:
        """Softmax weights of the variables (B, T, variable), without building the flattened embedding (B, T, sizes).

        First layer and residual of the network are linear in the embedding: their matrices are applied to the embedding
        tables and folded with the prescalers.
        """
        grn = network.flattened_grn
        linear = torch.cat([grn.fc1.weight, _interpolation(grn.input_size, grn.output_size, values)])  # (o, sizes)
        sizes = [network.input_sizes[name] for name in (*tables, *scalars)]
        parts = dict(zip((*tables, *scalars), linear.split(sizes, dim=1), strict=True))
        scale = torch.stack([parts[name] @ network.prescalers[name].weight[:, 0] for name in scalars])  # (scalar, o)
        shift = torch.stack([parts[name] @ network.prescalers[name].bias for name in scalars]).sum(dim=0)
        flat = functional.linear(values, scale.T, shift)  # (B, T, o)
        for name, code in zip(tables, codes, strict=True):
            flat = flat + functional.embedding(code, self.input_embeddings[name].weight @ parts[name].T)
        hidden, residual = flat.split([grn.hidden_size, grn.output_size], dim=-1)
        hidden = hidden + grn.fc1.bias
        if context is not None:
            hidden = hidden + grn.context(context)[:, None]
        residual = _gated_norm(grn.resample_norm, residual)
        hidden = grn.fc2(_elu(hidden))
        return torch.softmax(grn.gate_norm(hidden, residual), dim=-1)

    def _run_lstm(self, static: Tensor, encoder: Tensor, decoder: Tensor) -> tuple[Tensor, Tensor]:
        """Local processing with gated skip connections: (B, E, h), (B, H, h)."""
        layers = self.hparams.lstm_layers
        state = (
            self.static_context_initial_hidden_lstm(static).expand(layers, -1, -1).contiguous(),
            self.static_context_initial_cell_lstm(static).expand(layers, -1, -1).contiguous(),
        )
        if (
            encoder.shape[1] == 0
        ):  # the stock LSTM starts from zeros, not from the static state, when nothing is encoded
            state = (torch.zeros_like(state[0]), torch.zeros_like(state[1]))
            encoded = encoder
        else:
            encoded, state = self.lstm_encoder(encoder, state)
        decoded, _ = self.lstm_decoder(decoder, state)
        gate, norm = self.post_lstm_gate_encoder, self.post_lstm_add_norm_encoder
        return norm(gate(encoded), encoder), norm(gate(decoded), decoder)

    def _attend(self, enriched: Tensor, encoder_steps: int) -> tuple[Tensor, Tensor | None]:
        """Multi-head attention of the horizon over everything before: (B, H, h) and weights (B, H, head, T)."""
        attention = self.multihead_attn
        queries = enriched[:, encoder_steps:]
        q, k = (
            functional.linear(
                rows, torch.cat([layer.weight for layer in layers]), torch.cat([layer.bias for layer in layers])
            ).unflatten(-1, (attention.n_head, attention.d_k))
            for rows, layers in ((queries, attention.q_layers), (enriched, attention.k_layers))
        )  # (B, H | T, head, d)
        v = attention.v_layer(enriched)[:, None]  # (B, 1, T, d), shared by the heads
        q, k = q.transpose(1, 2), k.transpose(1, 2)  # (B, head, H | T, d)
        mask = _causal_mask(queries.shape[1], encoder_steps, attention.mask_bias, enriched)
        heads = _heads(q, k, v, mask, self.training)
        output = attention.dropout(heads).mean(dim=1)  # (B, H, d)
        output = attention.dropout(attention.w_h(output))
        if not self.interpretable:
            return output, None
        scores = q @ k.transpose(-1, -2) / attention.d_k**0.5 + mask
        return output, torch.softmax(scores, dim=-1).transpose(1, 2)


def _heads(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, training: bool) -> Tensor:
    """Attention of each head: q (B, head, H, d), k (B, head, T, d), v (B, 1, T, d), mask (H, T) -> (B, head, H, d)."""
    if _exporting():  # which spells the scores out: those of all heads at once would leave the cache
        pairs = zip(q.unbind(dim=1), k.unbind(dim=1), strict=True)
        return torch.stack([functional.scaled_dot_product_attention(*pair, v[:, 0], mask) for pair in pairs], dim=1)
    v = v.expand(-1, q.shape[1], -1, -1)
    if training and q.is_cuda:  # in bfloat16, a tenth of the time; no step sees itself, so none sees the last
        q, k, v = (part.bfloat16() for part in (q, k[:, :, :-1], v[:, :, :-1]))
        return functional.scaled_dot_product_attention(q, k, v, causal_lower_right(q.shape[2], k.shape[2])).float()
    return functional.scaled_dot_product_attention(q, k, v, mask)


def _columns(rows: Tensor, places: Sequence[int]) -> Tensor:
    """rows[..., places], as a view where they lie side by side."""
    first, count = places[0], len(places)
    return rows[..., first : first + count] if list(places) == [*range(first, first + count)] else rows[..., places]


def _evaluation_points(kind: _Kind, values: Tensor, largest: int | None) -> tuple[Tensor, Tensor]:
    """Where to evaluate the networks of scalar variables with `values` (B, T, v), and which point each value is.

    largest: see FleetTFT.largest_input. Where it is known, nothing is asked of the values, which a GPU would wait for.
    Returns points (v, n) and places (B, T, v) with points[i, places[..., i]] == values[..., i].
    """
    windows, steps, variables = values.shape
    if kind is _Kind.FLAG:
        return torch.arange(2, device=values.device).to(values).expand(variables, 2), values.long()
    if kind is _Kind.CLOCK:
        return values[0].T, torch.arange(steps, device=values.device)[:, None].expand(values.shape)
    if kind is _Kind.FREE or (largest is None and not _exporting() and _few(values)):
        count = torch.arange(windows * steps, device=values.device)
        return values.flatten(0, 1).T, count.view(windows, steps, 1).expand(values.shape)
    places = torch.round(values * INPUT_GRID).long()
    first: Any = places.min() if largest is None else -largest
    last: Any = places.max() if largest is None else largest
    grid = torch.arange(first, last + 1, device=values.device)  # takes tensors as well
    return (grid / INPUT_GRID).to(values).expand(variables, -1), places - first


def _few(values: Tensor) -> bool:
    """True if a variable has fewer values (B, T, v) than the grid they span has points."""
    here = values[..., 0].numel()
    return here == 0 or here <= float(values.max() - values.min()) * INPUT_GRID


def _weighted_flags(tables: Tensor, flags: Tensor, weights: Tensor) -> Tensor:
    """Sum over variables that are 0 or 1: tables (v, 2, h), flags and weights (B, T, v) -> (B, T, h).

    As there are two rows a variable, the weights of all rows are few, and the sum is one matrix product.
    """
    on = weights * flags
    return torch.cat([weights - on, on], dim=-1) @ torch.cat(tables.unbind(dim=1))


def _weighted_rows(variables: Sequence[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
    """Sum over variables of weight times row: tables (v, n, h), places and weights (B, T, v) each -> (B, T, h).

    One gathering sum for all variables: nothing of size (B, T, v, h) is ever built.
    """
    if _exporting():  # ONNX has no such sum
        weighed = [
            weight * functional.embedding(place.squeeze(-1), table)
            for tables, *rest in variables
            for table, place, weight in zip(tables, *(part.split(1, dim=-1) for part in rest), strict=True)
        ]
        return reduce(torch.add, weighed)
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
    """torch's embedding_bag with weights, with a backward that sorts nothing: five times as fast on a CPU."""

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
        bag = torch.arange(bags, device=index.device)[:, None].expand(bags, width).flatten()
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
    """The same on a GPU, which adds to scattered places at once."""
    total = gradient.new_zeros(rows, gradient.shape[1])
    for picked, weight in zip(index.unbind(dim=1), weights.unbind(dim=1), strict=True):
        total.index_add_(0, picked, gradient * weight[:, None])
    return total


class _Dropout(nn.Dropout):
    """Dropout whose mask costs a random byte per activation instead of a random double.

    The probability is rounded to 1/256 and the kept activations are scaled by what it then is.
    """

    def forward(self, activations: Tensor) -> Tensor:
        """Any shape; the stock module on a GPU, where drawing is cheap."""
        dropped = round(self.p * 256)
        if not self.training or dropped == 0 or activations.is_cuda:
            return super().forward(activations)
        count = activations.numel()
        words = torch.empty((count + 7) // 8, dtype=torch.int64).random_(-(2**63), None)
        kept = words.view(torch.uint8)[:count].view(activations.shape) >= dropped
        return activations * kept.to(activations.dtype).mul_(256 / (256 - dropped))


class _Elu(nn.ELU):
    """The stock module, or what is exported in its place."""

    def forward(self, values: Tensor) -> Tensor:
        """Any shape."""
        return _elu(values)


def _elu(values: Tensor) -> Tensor:
    """The larger of x and exp(x) - 1: in these operators ONNX Runtime takes half as long as in its own for it."""
    if _exporting():
        return torch.maximum(values, torch.exp(values.clamp(max=0.0)) - 1.0)
    return functional.elu(values)


def _exporting() -> bool:
    return torch.onnx.is_in_onnx_export()


def _scalar_networks(network: VariableSelectionNetwork, names: Sequence[str], values: Tensor) -> Tensor:
    """Prescaler and gated residual network of several real variables at once: values (v, N) -> (v, N, h)."""
    grns: list[GatedResidualNetwork] = [network.single_variable_grns[name] for name in names]
    prescale = torch.stack([network.prescalers[name].weight[:, 0] for name in names])  # (v, i)
    prebias = torch.stack([network.prescalers[name].bias for name in names])
    first = torch.stack([grn.fc1.weight for grn in grns])  # (v, i, i)
    scale = torch.einsum("voi,vi->vo", first, prescale)[:, None]
    shift = (torch.einsum("voi,vi->vo", first, prebias) + _stack_biases([grn.fc1 for grn in grns]))[:, None]
    x = values[..., None]  # (v, N, 1)
    hidden = _elu(x * scale + shift)
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
    """Residual of scalars x (v, N, 1): prescaled, interpolated to h, gated and normed, all affine in x up to the norm.

    With y = x a + c over the h outputs (both centred) and c split along a, c = shift a + rest, the variance of y is
    (x + shift)^2 mean(a^2) + mean(rest^2): a sum of squares, so nothing cancels.
    """
    resample = _interpolation(prescale.shape[1], norms[0].output_size, prescale)  # (h, i)
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
    """What ResampleNorm does after its interpolation."""
    return norm.norm(resampled * torch.sigmoid(norm.mask) * 2.0)


def _batched_linear(rows: Tensor, layers: Sequence[nn.Linear]) -> Tensor:
    """Layer v applied to rows[v]: (v, N, i) -> (v, N, o)."""
    weight = torch.stack([layer.weight for layer in layers]).transpose(1, 2)
    return torch.baddbmm(_stack_biases(layers)[:, None], rows, weight)


def _stack_biases(layers: Sequence[nn.Linear | nn.LayerNorm]) -> Tensor:
    return torch.stack([layer.bias for layer in layers])


def _causal_mask(horizon_steps: int, encoder_steps: int, bias: float, like: Tensor) -> Tensor:
    """Additive mask (H, E + H): all of the encoder, and of the horizon only the steps before."""
    future = torch.ones(horizon_steps, horizon_steps, dtype=torch.bool, device=like.device).triu()
    seen = torch.zeros(horizon_steps, encoder_steps, dtype=torch.bool, device=like.device)
    return torch.cat([seen, future], dim=1).to(like.dtype) * bias


def _interpolation(inputs: int, outputs: int, like: Tensor) -> Tensor:
    """Linear interpolation from `inputs` to `outputs` points (ends aligned) as a matrix (outputs, inputs)."""
    return constant(_interpolation_weights(inputs, outputs), like.dtype, like.device).view(outputs, inputs)


@lru_cache
def _interpolation_weights(inputs: int, outputs: int) -> tuple[float, ...]:
    """Row by row."""
    position = np.linspace(0.0, inputs - 1.0, outputs)
    return tuple(np.stack([np.interp(position, np.arange(inputs), unit) for unit in np.eye(inputs)], axis=1).flat)
