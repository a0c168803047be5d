"""The shapes of encoders that an experiment or a command can name in place of a student's folder."""

from typing import Any

BASE: dict[str, Any] = {
    "num_hidden_layers": 12,
    "hidden_size": 768,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
}
SHAPES: dict[str, dict[str, Any]] = {
    "bert-base": BASE,
    "bert-large": {"num_hidden_layers": 24, "hidden_size": 1024, "num_attention_heads": 16, "intermediate_size": 4096},
    "minilm": {"num_hidden_layers": 6, "hidden_size": 384, "num_attention_heads": 12, "intermediate_size": 1536},
    "roberta-base": BASE | {"vocab_size": 50265, "type_vocab_size": 1},
    "xlm-roberta-base": BASE | {"vocab_size": 250002, "type_vocab_size": 1},
    "distilbert-base": BASE | {"num_hidden_layers": 6, "type_vocab_size": 1, "head_activation": "relu"},
    "mpnet-base": BASE | {"vocab_size": 30527, "type_vocab_size": 1, "score_buckets": 32},
}
