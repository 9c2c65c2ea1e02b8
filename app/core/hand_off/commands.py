"""The lines that start vLLM and llama.cpp with a tuned model.

The model card and the API give them.
"""

_VLLM_RANKS = (8, 16, 32, 64, 128, 256)
"""The values that vLLM takes for `--max-lora-rank`."""


def vllm_with_adapter(repo: str, revision: str | None, *, rank: int, name: str = "tuned") -> str:
    """The line that serves an adapter in the directory DIR with vLLM.

    Args:
        repo: hub repository of the base model.
        revision: its commit. None if the base model is not from a hub; it is then called BASE.
        rank: rank of the adapter in its files.
        name: name under which requests ask for the tuned model.
    """
    base = f"{repo} --revision {revision}" if revision else "BASE"
    limit = next(limit for limit in _VLLM_RANKS if rank <= limit)
    return f"vllm serve {base} --enable-lora --max-lora-rank {limit} --lora-modules {name}=DIR"


def vllm_with_merged_model(name: str) -> str:
    """The line that serves a merged model in the directory DIR with vLLM."""
    return f"vllm serve DIR --served-model-name {name}"


def llama_server(adapter: str = "FILE.gguf") -> str:
    """The line that serves an adapter in GGUF with llama.cpp, beside its base model BASE.gguf."""
    return f"llama-server -m BASE.gguf --lora {adapter}"
