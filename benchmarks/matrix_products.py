"""The matrix products of training, and nothing else: how fast a step could be on this machine.

They run as in Tunery's steps: the same micro-batches, with what rows share at their beginnings only
once, through as many different weights as the model has, forward and backward. What is trained is
LoRA, so a frozen weight needs the gradient of its input only, and the first layer's not even that.
Norms, activations, softmax, rotary embedding, the optimizer and everything else is left out, which
makes this a bound.
"""

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer

from benchmarks.trainers.child import main
from benchmarks.trainers.conversations import read_rows
from benchmarks.trainers.task import CHATS_NAME, LORA, Run, Task, Tick
from benchmarks.trainers.tunery import Piece, read_steps

_HEAD_CHUNK = 256
_REPEATS = 5
_SPEED_TOKENS = (128, 512, 2048)


@dataclass(frozen=True, slots=True)
class Shape:
    """As much of a decoder-only model as its matrix products depend on."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    head_width: int
    vocabulary: int
    projections: dict[str, tuple[int, int]]
    """In features and out features of each linear module of a layer."""

    @classmethod
    def of(cls, model: str) -> "Shape":
        config: Any = AutoConfig.from_pretrained(model)
        width, inner = config.hidden_size, config.intermediate_size
        head_width = getattr(config, "head_dim", None) or width // config.num_attention_heads
        queries = config.num_attention_heads * head_width
        keys = config.num_key_value_heads * head_width
        return cls(
            layers=config.num_hidden_layers,
            width=width,
            heads=config.num_attention_heads,
            kv_heads=config.num_key_value_heads,
            head_width=head_width,
            vocabulary=config.vocab_size,
            projections={
                "q_proj": (width, queries),
                "k_proj": (width, keys),
                "v_proj": (width, keys),
                "o_proj": (queries, width),
                "gate_proj": (width, inner),
                "up_proj": (width, inner),
                "down_proj": (inner, width),
            },
        )


class Products:
    """Every product of a step, on random numbers, into memory that is there already."""

    def __init__(self, shape: Shape, pieces: Sequence[Piece], dtype: torch.dtype) -> None:
        self._shape = shape
        self._dtype = dtype
        rank = LORA["r"]
        self._weights = [
            {name: self._random(out, in_) for name, (in_, out) in shape.projections.items()}
            for _ in range(shape.layers)
        ]
        self._adapters = [
            {
                name: (self._random(rank, shape.projections[name][0]),
                       self._random(shape.projections[name][1], rank))
                for name in LORA["target_modules"]
            }
            for _ in range(shape.layers)
        ]  # fmt: skip
        self._head = self._random(shape.vocabulary, shape.width)
        tokens = max(each.computed for each in pieces)
        scores = shape.heads * max(q * k for each in pieces for q, k in each.tables)
        widest = max(max(pair) for pair in shape.projections.values())
        adapter = rank * max(pair[1] for pair in shape.projections.values())
        room = max(tokens * widest, scores, _HEAD_CHUNK * shape.vocabulary, adapter)
        self._source, self._source_2 = self._random(room), self._random(room)
        self._target = torch.empty(room, dtype=dtype)

    def run(self, piece: Piece) -> None:
        """Read one micro-batch and take its gradients."""
        tokens, last = piece.computed, self._shape.layers - 1
        for layer in range(self._shape.layers):
            for name, weight in self._weights[layer].items():
                self._multiply(self._input(tokens, weight.shape[1]), weight.T)
                if name in self._adapters[layer]:
                    self._adapt(tokens, *self._adapters[layer][name])
            self._attend(piece)
        self._score(piece.learned)
        for layer in range(last, -1, -1):
            self._attend_backward(piece)
            for name, weight in reversed(self._weights[layer].items()):
                if layer or name not in {"q_proj", "k_proj", "v_proj"}:
                    self._multiply(self._input(tokens, weight.shape[0]), weight)
                if name in self._adapters[layer]:
                    self._adapt_backward(tokens, *self._adapters[layer][name], is_first=not layer)

    def _adapt(self, tokens: int, down: Tensor, up: Tensor) -> None:
        self._multiply(self._input(tokens, down.shape[1]), down.T)
        self._multiply(self._input(tokens, down.shape[0]), up.T)

    def _adapt_backward(self, tokens: int, down: Tensor, up: Tensor, *, is_first: bool) -> None:
        rank, in_, out = down.shape[0], down.shape[1], up.shape[0]
        self._multiply(self._input(tokens, out).T, self._other(tokens, rank))
        self._multiply(self._input(tokens, out), up)
        self._multiply(self._input(tokens, rank).T, self._other(tokens, in_))
        if not is_first:
            self._multiply(self._input(tokens, rank), down)

    def _attend(self, piece: Piece) -> None:
        for queries, keys, scores in self._attention(piece):
            self._multiply(queries, keys.mT)
            self._multiply(scores, keys)

    def _attend_backward(self, piece: Piece) -> None:
        for queries, keys, scores in self._attention(piece):
            self._multiply(queries, keys.mT)
            self._multiply(scores.mT, queries)
            self._multiply(scores, keys)
            self._multiply(scores.mT, queries)

    def _attention(self, piece: Piece) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        shape = self._shape
        for queries, keys in piece.tables:
            rows = queries * shape.heads // shape.kv_heads
            yield (
                self._input(shape.kv_heads, rows, shape.head_width),
                self._other(shape.kv_heads, keys, shape.head_width),
                self._input(shape.kv_heads, rows, keys),
            )

    def _score(self, learned: int) -> None:
        for start in range(0, learned, _HEAD_CHUNK):
            positions = min(_HEAD_CHUNK, learned - start)
            self._multiply(self._input(positions, self._shape.width), self._head.T)
            self._multiply(self._input(positions, self._shape.vocabulary), self._head)

    def _multiply(self, left: Tensor, right: Tensor) -> None:
        torch.matmul(left, right, out=_cut(self._target, *left.shape[:-1], right.shape[-1]))

    def _input(self, *shape: int) -> Tensor:
        return _cut(self._source, *shape)

    def _other(self, *shape: int) -> Tensor:
        return _cut(self._source_2, *shape)

    def _random(self, *shape: int) -> Tensor:
        # Small, so that no product overflows and none becomes denormal, which is slow.
        return torch.empty(*shape, dtype=self._dtype).uniform_(-0.1, 0.1)


def _cut(memory: Tensor, *shape: int) -> Tensor:
    return memory[: torch.Size(shape).numel()].view(shape)


def measure(task: Task) -> Run:
    """The steps of `task` as products only; `more` has the speed of single products."""
    torch.set_num_threads(task.threads)
    dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[task.variant]
    shape = Shape.of(task.model)
    tokenizer = AutoTokenizer.from_pretrained(task.model)
    rows = read_rows(task.data_dir / CHATS_NAME, tokenizer, max_tokens=task.max_tokens)
    steps = read_steps(rows, task)
    products = Products(shape, [each for step in steps for each in step], dtype)
    ticks: list[Tick] = []
    tokens = 0
    for step in steps:
        for piece in step:
            products.run(piece)
            tokens += piece.tokens
        ticks.append(Tick(time.perf_counter(), tokens))
    return Run(ticks=ticks, more={"gflops": measure_speed(shape, dtype)})


def measure_speed(shape: Shape, dtype: torch.dtype) -> dict[str, float]:
    """GFLOP/s of single products of the model's shapes, the best of a few."""
    shapes = {f"{in_} x {out}": (in_, out) for in_, out in shape.projections.values()}
    speeds: dict[str, float] = {}
    for tokens in _SPEED_TOKENS:
        for name, (in_, out) in shapes.items():
            left, weight = torch.rand(tokens, in_).to(dtype), torch.rand(out, in_).to(dtype)
            target = torch.empty(tokens, out, dtype=dtype)
            took_s: list[float] = []
            for _ in range(_REPEATS):
                began = time.perf_counter()
                torch.matmul(left, weight.T, out=target)
                took_s.append(time.perf_counter() - began)
            speeds[f"{tokens} x {name}"] = 2 * tokens * in_ * out / min(took_s) / 1e9
    return speeds


if __name__ == "__main__":
    main(measure, sys.argv[1:])
