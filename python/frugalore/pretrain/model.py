"""The model of a run: ``LlamaForCausalLM`` over bytes."""

from __future__ import annotations

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from frugalore.pretrain.config import PretrainConfig, refuse_unknown
from frugalore.pretrain.data import VOCABULARY
from frugalore.pretrain.errors import ConfigError


def llama_config(config: PretrainConfig) -> LlamaConfig:
    """The model part of a configuration, with what byte-level text decides filled in.

    Raises:
        ConfigError: a field that LlamaConfig does not have, another vocabulary, or too few positions.
    """
    fields = dict(config.model)
    refuse_unknown(fields, LlamaConfig().to_dict(), "model")
    if fields.setdefault("vocab_size", VOCABULARY) != VOCABULARY:
        raise ConfigError(f"model.vocab_size: {VOCABULARY} (bytes) expected, got {fields['vocab_size']}")
    positions = fields.setdefault("max_position_embeddings", config.sequence_length)
    if positions < config.sequence_length:
        raise ConfigError(
            f"model.max_position_embeddings: at least sequence_length {config.sequence_length} expected, "
            f"got {positions}"
        )
    fields.update(use_cache=False, bos_token_id=None, eos_token_id=None, pad_token_id=None)
    try:
        return LlamaConfig(**fields)
    except Exception as error:  # transformers raises types of its own
        raise ConfigError(f"model: {error}") from error


def build_model(config: PretrainConfig) -> nn.Module:
    """A freshly initialised model on the CPU: the same weights for the same seed on every device."""
    architecture = llama_config(config)
    torch.manual_seed(config.seed)
    try:
        model = LlamaForCausalLM(architecture)
    except (ValueError, RuntimeError) as error:
        raise ConfigError(f"model: {error}") from error
    return model.to(getattr(torch, config.dtype))
