"""FleetTFT: the stock Temporal Fusion Transformer with a faster forward. Same weights, same numbers.

* Variable selection evaluates each network once per distinct input value (variable_selection.py).
* Attention needs no materialised scores (torch's scaled_dot_product_attention); the interpretable weights are computed
  only on request.
* One encoder length per batch lets the LSTM run on plain tensors instead of packed sequences.

The forward is exact without dropout. Dropout acts on the same activations as in the stock class; within the networks of
single variables one draw serves all places with the same value, and a mask costs one random byte per activation.

One intended difference: the stock class pads category 0 of a NaN-tolerant categorical, so its embedding of an unknown
profile stays at the initial zero; here it is trained like any other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from pytorch_forecasting import TemporalFusionTransformer
from pytorch_forecasting.models.temporal_fusion_transformer.sub_modules import VariableSelectionNetwork
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention.bias import causal_lower_right

from fleet_forecast.network.activations import ByteDropout, ExportableElu, exporting
from fleet_forecast.network.variable_selection import Variables, select_variables


class FleetTFT(TemporalFusionTransformer):
    """TemporalFusionTransformer with `forward` overridden; all windows of a batch must have one encoder length."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        """As the stock class; layers without weights are replaced by cheaper ones."""
        super().__init__(*arguments, **options)
        for module in list(self.modules()):
            for name, child in module.named_children():
                if type(child) is nn.Dropout:
                    setattr(module, name, ByteDropout(child.p))
                elif type(child) is nn.ELU:
                    setattr(module, name, ExportableElu())

    def forward(
        self, x: dict[str, Tensor], attention_weights: bool = False, largest_input: int | None = None
    ) -> dict[str, Tensor]:
        """The stock class's inputs and outputs; attention weights only if requested, else None.

        largest_input: bound on the absolute value of quantised inputs, in steps of the input grid; None: looked up in
        each batch, which makes a GPU wait.
        """
        encoder_steps = x["encoder_cont"].shape[1]
        static, static_weights = self._select_static(x, largest_input)  # (B, h)
        selection_context = self.static_context_variable_selection(static)
        encoder, encoder_weights = select_variables(
            self.encoder_variable_selection,
            self._variables(self.encoder_variable_selection, x["encoder_cat"], x["encoder_cont"]),
            selection_context,
            largest_input,
        )  # (B, E, h), (B, E, variable)
        decoder, decoder_weights = select_variables(
            self.decoder_variable_selection,
            self._variables(self.decoder_variable_selection, x["decoder_cat"], x["decoder_cont"]),
            selection_context,
            largest_input,
        )  # (B, H, h), (B, H, variable)
        local = torch.cat(self._run_lstm(static, encoder, decoder), dim=1)  # (B, E + H, h)
        enriched = self.static_enrichment(local, self.static_context_enrichment(static)[:, None])
        attended, attention = self._attend(enriched, encoder_steps, attention_weights)
        output = self.post_attn_gate_norm(attended, enriched[:, encoder_steps:])
        output = self.pos_wise_ff(output)
        output = self.pre_output_gate_norm(output, local[:, encoder_steps:])
        prediction = [layer(output) for layer in self.output_layer] if self.n_targets > 1 else self.output_layer(output)
        return self.to_network_output(
            prediction=prediction,
            encoder_attention=None if attention is None else attention[..., :encoder_steps],
            decoder_attention=None if attention is None else attention[..., encoder_steps:],
            static_variables=static_weights[..., None, :],
            encoder_variables=encoder_weights[..., None, :],
            decoder_variables=decoder_weights[..., None, :],
            decoder_lengths=x["decoder_lengths"],
            encoder_lengths=x["encoder_lengths"],
        )

    def _select_static(self, x: dict[str, Tensor], largest_input: int | None) -> tuple[Tensor, Tensor]:
        """Static variables are those of any step; (B, h) and weights (B, variable)."""
        network = self.static_variable_selection
        variables = self._variables(network, x["decoder_cat"][:, :1], x["decoder_cont"][:, :1])
        selected, weights = select_variables(network, variables, None, largest_input)
        return selected[:, 0], weights[:, 0]

    def _variables(self, network: VariableSelectionNetwork, categories: Tensor, reals: Tensor) -> Variables:
        """The columns of categories (B, T, c) and reals (B, T, r) that the network selects from."""
        tables = [name for name in network.input_sizes if name not in network.prescalers]
        scalars = [name for name in network.input_sizes if name in network.prescalers]
        return Variables(
            codes={name: categories[..., self.hparams.x_categoricals.index(name)] for name in tables},
            tables={name: self.input_embeddings[name].weight for name in tables},
            scalars=scalars,
            values=_columns(reals, [self.hparams.x_reals.index(name) for name in scalars]),
        )

    def _run_lstm(self, static: Tensor, encoder: Tensor, decoder: Tensor) -> tuple[Tensor, Tensor]:
        """Local processing with gated skip connections: (B, E, h), (B, H, h)."""
        layers = self.hparams.lstm_layers
        state = (
            self.static_context_initial_hidden_lstm(static).expand(layers, -1, -1).contiguous(),
            self.static_context_initial_cell_lstm(static).expand(layers, -1, -1).contiguous(),
        )
        if encoder.shape[1] == 0:  # the stock LSTM then starts from zeros, not from the static state
            state = (torch.zeros_like(state[0]), torch.zeros_like(state[1]))
            encoded = encoder
        else:
            encoded, state = self.lstm_encoder(encoder, state)
        decoded, _ = self.lstm_decoder(decoder, state)
        gate, norm = self.post_lstm_gate_encoder, self.post_lstm_add_norm_encoder
        return norm(gate(encoded), encoder), norm(gate(decoded), decoder)

    def _attend(self, enriched: Tensor, encoder_steps: int, with_weights: bool) -> tuple[Tensor, Tensor | None]:
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
        if not with_weights:
            return output, None
        scores = q @ k.transpose(-1, -2) / attention.d_k**0.5 + mask
        return output, torch.softmax(scores, dim=-1).transpose(1, 2)


def _heads(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, training: bool) -> Tensor:
    """Attention of each head: q (B, head, H, d), k (B, head, T, d), v (B, 1, T, d), mask (H, T) -> (B, head, H, d)."""
    if exporting():  # scores are materialised: those of all heads at once would not fit the cache
        pairs = zip(q.unbind(dim=1), k.unbind(dim=1), strict=True)
        return torch.stack([functional.scaled_dot_product_attention(*pair, v[:, 0], mask) for pair in pairs], dim=1)
    v = v.expand(-1, q.shape[1], -1, -1)
    if training and q.is_cuda:  # bfloat16 takes a tenth of the time; no step attends to itself, so none to the last
        q, k, v = (part.bfloat16() for part in (q, k[:, :, :-1], v[:, :, :-1]))
        return functional.scaled_dot_product_attention(q, k, v, causal_lower_right(q.shape[2], k.shape[2])).float()
    return functional.scaled_dot_product_attention(q, k, v, mask)


def _columns(rows: Tensor, places: Sequence[int]) -> Tensor:
    """rows[..., places], as a view if the places are consecutive."""
    first, count = places[0], len(places)
    return rows[..., first : first + count] if list(places) == [*range(first, first + count)] else rows[..., places]


def _causal_mask(horizon_steps: int, encoder_steps: int, bias: float, like: Tensor) -> Tensor:
    """Additive mask (H, E + H): the whole encoder, and the earlier steps of the horizon, are visible."""
    future = torch.ones(horizon_steps, horizon_steps, dtype=torch.bool, device=like.device).triu()
    seen = torch.zeros(horizon_steps, encoder_steps, dtype=torch.bool, device=like.device)
    return torch.cat([seen, future], dim=1).to(like.dtype) * bias
