"""Answers all admitted requests together, one token of each in a step.

A new request joins at the next step. Its prompt is read in pieces between the tokens of others.

Dimension key:
    V  vocabulary
"""

import logging

import torch
from torch import Tensor

from app.core.clock import steady_s
from app.core.sampling.messages import Accepted
from worker.sampling.pulse import STEP_S, Pulse
from worker.sampling.serving.batch import Running, Sequence, share_step
from worker.sampling.serving.desk import Desk
from worker.sampling.serving.pace import MOST, Pace, rest_after
from worker.sampling.serving.requests import UnavailableError, explain_failure
from worker.sampling.serving.shelf import LoadedModel, Shelf

logger = logging.getLogger(__name__)


class DecodeLoop:
    """Reads with the models, in one thread.

    Attributes:
        pulse: that of the thread.

    Args:
        desk: hands requests over.
        shelf: has what they need.
        threads: CPU threads while no job trains.
    """

    def __init__(self, desk: Desk, shelf: Shelf, *, threads: int) -> None:
        self._desk = desk
        self._shelf = shelf
        self._pace = Pace(threads)
        self._running: list[Running] = []
        self.pulse = Pulse()

    def run(self) -> None:
        """Answer requests for as long as the process lives."""
        while True:
            self.run_once()

    @torch.inference_mode()
    def run_once(self) -> None:
        """Let all answers go on by one token. Waits for a request if there is none."""
        for running in self._desk.collect(waits=not self._running):
            self._join(running)
        self._drop_cancelled()
        self._pace.use_threads(trains=self._desk.trains)
        began_s = steady_s()
        for model in {each.model for each in self._running}:
            self.pulse.expect(STEP_S)
            self._step(model)
        self._keep_within_memory()
        self.pulse.rest()
        self._rest(steady_s() - began_s)

    def _join(self, running: Running) -> None:
        prompt, runner = running.prepared.prompt, running.model.runner
        with self._shelf.lock:
            cache = self._shelf.prefixes.find(running.owner, prompt)
        cache = cache or runner.new_cache()
        running.sequences.append(Sequence(running, cache, list(prompt), None))
        self._running.append(running)
        running.request.tell(Accepted(prompt_tokens=len(prompt), cached_tokens=cache.length))

    def _drop_cancelled(self) -> None:
        for running in [each for each in self._running if each.request.is_cancelled]:
            for sequence in running.sequences[:1]:
                self._keep_prefix(sequence)
            self._leave(running)

    def _step(self, model: LoadedModel) -> None:
        """Let each sequence of a model read its next tokens."""
        sequences = [
            sequence
            for running in self._running
            if running.model is model
            for sequence in running.sequences
        ]
        shares = share_step([sequence.pending for sequence in sequences], self._pace.budget)
        began_s = steady_s()
        try:
            logits = self._read(model, sequences, shares)
        except Exception:
            logger.exception("a step has failed; its requests are read one by one")
            self._read_alone(sequences)
            return
        self._pace.note(sum(shares), steady_s() - began_s)
        for sequence, logits_V in zip(sequences, logits, strict=True):
            if not sequence.pending and sequence in sequence.running.sequences:
                self._advance(sequence, logits_V)

    def _read(self, model: LoadedModel, sequences: list[Sequence], shares: list[int]) -> Tensor:
        rows = [sequence.row(share) for sequence, share in zip(sequences, shares, strict=True)]
        return model.runner.read(rows)

    def _read_alone(self, sequences: list[Sequence]) -> None:
        """After a failed step, find whose fault it was: read all of each sequence again."""
        for sequence in sequences:
            if sequence not in sequence.running.sequences:
                continue  # another answer to the same request has failed
            try:
                logits_V = _read_again(sequence)
            except Exception as error:
                self._refuse(sequence.running, error)
            else:
                self._advance(sequence, logits_V)

    def _advance(self, sequence: Sequence, logits_V: Tensor) -> None:
        """Choose the next token of a sequence, or the first one of each answer to a prompt."""
        running = sequence.running
        if sequence.choice is not None:
            self._choose(sequence, logits_V)
            return
        first, *others = running.prepared.choices
        length = sequence.cache.length
        forks = [
            Sequence(running, sequence.cache.fork(length), list(sequence.tokens), choice)
            for choice in others
        ]
        sequence.choice = first
        running.sequences += forks
        for each in (sequence, *forks):
            if each in running.sequences:
                self._choose(each, logits_V)

    def _choose(self, sequence: Sequence, logits_V: Tensor) -> None:
        running, choice = sequence.running, sequence.choice
        assert choice is not None  # noqa: S101 - the prompt is read
        try:
            token, told = choice.take(logits_V)
        except Exception as error:
            self._refuse(running, error)
            return
        if token is not None:
            sequence.tokens.append(token)
            running.request.tell(*told)
            return
        running.sequences.remove(sequence)
        self._keep_prefix(sequence)
        if running.sequences:
            running.request.tell(*told)
        else:
            running.request.end(*told)
            self._leave(running)

    def _keep_prefix(self, sequence: Sequence) -> None:
        """Keep what was read for a later request that begins in the same way."""
        read = sequence.tokens[: sequence.cache.length]
        if read:
            with self._shelf.lock:
                self._shelf.prefixes.keep(sequence.running.owner, read, sequence.cache)

    def _refuse(self, running: Running, error: Exception) -> None:
        refusal = explain_failure(error)
        if refusal.status == 500:  # noqa: PLR2004 - nobody has foreseen it
            logger.error("a request has failed", exc_info=error)
        running.request.end(refusal)
        self._leave(running)

    def _leave(self, running: Running) -> None:
        running.request.end()
        running.sequences.clear()
        self._running.remove(running)
        self._shelf.release(running.model, running.adapter)
        self._desk.leave(running.request)

    def _keep_within_memory(self) -> None:
        """Refuse the newest requests until what all of them have read fits into the limit."""
        while not self._shelf.note_running(self._count_bytes()) and self._running:
            message = (
                "The answers in the making need more memory than the sampler may use "
                "(TUNERY_SAMPLING_MEMORY_BYTES). Send the request again when there are fewer."
            )
            self._refuse(self._running[-1], UnavailableError("sampler_memory", message))

    def _count_bytes(self) -> int:
        return sum(
            sequence.cache.bytes for running in self._running for sequence in running.sequences
        )

    def _rest(self, worked_s: float) -> None:
        """Leave the processor to a job that trains, or the memory if nothing is answered."""
        if not self._running:
            if self._desk.refuses:
                self._shelf.clear()
            return
        until_s = steady_s() + rest_after(worked_s, trains=self._desk.trains)
        while (left_s := until_s - steady_s()) > 0 and self._desk.trains:
            self._desk.rest(left_s)
            self._drop_cancelled()


def _read_again(sequence: Sequence) -> Tensor:
    """Read all tokens of a sequence from the first one on. Returns the logits of what follows."""
    runner = sequence.running.model.runner
    sequence.cache = runner.new_cache()
    while True:
        (logits_V,) = runner.read([sequence.row(MOST)])
        if not sequence.pending:
            return logits_V
