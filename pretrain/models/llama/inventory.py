"""Every weight of a LLaMA, and what one of its layers keeps for the backward pass."""

from __future__ import annotations

from collections.abc import Iterator

from pretrain.models.inventory import Block, Kind, Place, Role, Shape, Weight
from pretrain.models.llama.config import LlamaConfig


def shape(model: LlamaConfig) -> Shape:
    """The sizes that every family has."""
    shared = ("num_attention_heads", "num_key_value_heads", "intermediate_size", "vocab_size")
    return Shape(
        layers=model.num_hidden_layers,
        width=model.hidden_size,
        vocabulary=model.vocab_size,
        longest=model.max_position_embeddings,
        deviation=model.initializer_range,
        mixed=model.num_attention_heads * model.head_dim,
        tied=model.tie_word_embeddings,
        head="lm_head",
        shared={key: getattr(model, key) for key in shared},
        keys={"layers": "num_hidden_layers", "vocabulary": "vocab_size", "longest": "max_position_embeddings"},
    )


def weights(model: LlamaConfig) -> Iterator[Weight]:
    """Every weight, in the order in which the model computes; a tied head has none of its own."""
    hidden, inner, vocabulary = model.hidden_size, model.intermediate_size, model.vocab_size
    queries, keys = model.num_attention_heads * model.head_dim, model.num_key_value_heads * model.head_dim
    layer = (
        ("input_layernorm", (hidden,), Role.SCALE),
        ("self_attn.q_proj", (queries, hidden), Role.COLUMN),
        ("self_attn.k_proj", (keys, hidden), Role.COLUMN),
        ("self_attn.v_proj", (keys, hidden), Role.COLUMN),
        ("self_attn.o_proj", (hidden, queries), Role.ROW),
        ("post_attention_layernorm", (hidden,), Role.SCALE),
        ("mlp.gate_proj", (inner, hidden), Role.COLUMN),
        ("mlp.up_proj", (inner, hidden), Role.COLUMN),
        ("mlp.down_proj", (hidden, inner), Role.ROW),
    )
    scaled = model.initializer == "scaled"
    embedding = (hidden**-0.5 if model.tie_word_embeddings else 1.0) if scaled else None
    yield _weight("model.embed_tokens", (vocabulary, hidden), Role.EMBEDDING, embedding)
    for n in range(model.num_hidden_layers):
        block = f"model.layers.{n}"
        for name, size, role in layer:
            start = _scaled(model, size, role) if scaled else None
            yield Weight(name=f"{block}.{name}.weight", shape=size, role=role, block=block, deviation=start)
    yield _weight("model.norm", (hidden,), Role.SCALE)
    if not model.tie_word_embeddings:
        yield _weight("lm_head", (vocabulary, hidden), Role.HEAD, hidden**-0.5 if scaled else None)


def _weight(block: str, size: tuple[int, ...], role: Role, start: float | None = None) -> Weight:
    return Weight(name=f"{block}.weight", shape=size, role=role, block=block, deviation=start)


def _scaled(model: LlamaConfig, size: tuple[int, ...], role: Role) -> float:
    # As in GPT-2: what every layer adds to the stream shrinks with the number of additions, two per layer.
    return float(size[-1] ** -0.5 / ((2 * model.num_hidden_layers) ** 0.5 if role is Role.ROW else 1))


def saved(model: LlamaConfig, block: Block, place: Place) -> float:
    """Bytes per token: norms keep their input and one number, products and gates their inputs, attention q, k, v, its
    output and a sum."""
    width, tensor = place.width, place.tensor
    norm = width * model.hidden_size / (tensor if place.sequence else 1) + 4
    if block.kind is Kind.NORM:
        return norm + width * model.hidden_size
    queries, keys = model.num_attention_heads * model.head_dim, model.num_key_value_heads * model.head_dim
    if place.documents:
        keys = queries  # the kernel that takes a bias knows no grouped queries
    outputs = 2 if place.permuted else 1  # that of attention, and what the layer behind it reads
    attention = (((1 + outputs) * queries + 2 * keys) * width + 4 * model.num_attention_heads) / tensor
    feed_forward = 3 * model.intermediate_size * width / tensor
    return 2 * norm + 2 * model.hidden_size * width + attention + feed_forward
