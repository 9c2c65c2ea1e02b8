"""Names of the files that a training process makes. A file with any other name is refused."""

MANIFEST_NAME = "manifest.json"
ADAPTER_WEIGHTS_NAME = "adapter_model.safetensors"
ADAPTER_CONFIG_NAME = "adapter_config.json"
TOKENIZER_NAMES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
)
GENERATION_CONFIG_NAME = "generation_config.json"
"""Settings for generation, with every token that has to stop the model."""
TRAINING_CONFIG_NAME = "training_config.json"
METRICS_CSV_NAME = "metrics.csv"
METRICS_JSON_NAME = "metrics.jsonl"
LOSS_CHART_NAME = "loss.svg"
MODEL_CARD_NAME = "README.md"
STATE_NUMBERS_NAME = "state.json"
STATE_TENSORS_NAME = "state.safetensors"
"""`adapter.NAME`, `best.NAME` and those of AdamW as `exp_avg.NAME`, where NAME is a parameter's."""

NUMERICS_VERSION = 4
"""Version of the computation that turns a job into an adapter.

Raise it with every change after which the same job may end in other bits: to the layers, the loss,
the dropout masks, the random numbers or the order of the data, the cut into micro-batches, the
optimizer, the learning rate, or the tokens and what of them is learned. A change of speed, memory,
names or files that leaves every bit as it was does not count. A saved state of another version is
refused, so that no adapter mixes two computations.
"""

ARTIFACT_NAMES = frozenset(
    {
        MANIFEST_NAME,
        ADAPTER_WEIGHTS_NAME,
        ADAPTER_CONFIG_NAME,
        *TOKENIZER_NAMES,
        GENERATION_CONFIG_NAME,
        TRAINING_CONFIG_NAME,
        METRICS_CSV_NAME,
        METRICS_JSON_NAME,
        LOSS_CHART_NAME,
        MODEL_CARD_NAME,
        STATE_NUMBERS_NAME,
        STATE_TENSORS_NAME,
    }
)
"""All files of a checkpoint and of a saved state. Users download them under these names."""

GGUF_ADAPTER_NAME = "adapter.gguf"
ADAPTER_CARD_NAME = "adapter-card.md"
"""Model card of the adapter that was merged."""
_MAX_SHARDS = 128
EXPORT_NAMES = frozenset(
    {
        MANIFEST_NAME,
        GGUF_ADAPTER_NAME,
        "config.json",
        GENERATION_CONFIG_NAME,
        *TOKENIZER_NAMES,
        "model.safetensors",
        "model.safetensors.index.json",
        MODEL_CARD_NAME,
        ADAPTER_CARD_NAME,
        *(
            f"model-{shard:05}-of-{shards:05}.safetensors"
            for shards in range(2, _MAX_SHARDS + 1)
            for shard in range(1, shards + 1)
        ),
    }
)
"""All files of an export: an adapter for llama.cpp, or a merged model in up to 128 parts."""

TOKENS_INDEX_NAME = "tokens.json"
"""What the tokens of a job were made from, and what they are."""
TOKEN_FILE_NAMES = frozenset(
    {
        MANIFEST_NAME,
        TOKENS_INDEX_NAME,
        *(
            f"{param}.{kind}"
            for param in ("training_file", "validation_file")
            for kind in ("tokens", "rows")
        ),
    }
)
"""All files of a checked job's tokens. Only the training of that job reads them."""
