"""Answers all admitted requests together, one token of each in a step.

A new request joins at the next step. Its prompt is read in pieces between the tokens of others.

Dimension key:
    V  vocabulary
"""

import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from app.core.clock import steady_s
from worker.sampling.pulse import STEP_S, Pulse
from worker.sampling.serving.batch import Batch, Running, Sequence, plan_step
from worker.sampling.serving.desk import Desk
from worker.sampling.serving.pace import Pace, rest_after
from worker.sampling.serving.requests import UnavailableError, explain_failure
from worker.sampling.serving.shelf import PATIENCE_S, Shelf

logger = logging.getLogger(__name__)

KEEP_S = 3600.0
"""Time for which prompts and adapters stay in memory after they were used, in seconds. An erased
project leaves no trace for longer."""


class DecodeLoop:
    """Reads with the models, in one thread.

    Attributes:
        pulse: that of the thread.

    Args:
        desk: hands requests over.
        shelf: has what they need.
        threads: CPU threads while no job trains.
        patience_s: longest time that a request waits for memory, in seconds.
    """

    def __init__(
        self, desk: Desk, shelf: Shelf, *, threads: int, patience_s: float = PATIENCE_S
    ) -> None:
        self._desk = desk
        self._shelf = shelf
        self._pace = Pace(threads)
        self._patience_s = patience_s
        self._arrived: list[Running] = []
        """Those that wait for memory."""
        self._running: list[Running] = []
        self.pulse = Pulse()

    def run(self) -> None:
        """Answer requests for as long as the process lives."""
        while True:
            self.run_once()

    @torch.inference_mode()
    def run_once(self) -> None:
        """Let all answers go on by one token. Waits for a request if there is none."""
        self._arrived += self._desk.collect(waits=not self._running)
        self._drop_stopped()
        self._let_in()
        self._pace.use_threads(trains=self._desk.trains)
        began_s = steady_s()
        for batch in plan_step(self._running, self._pace.budget):
            self.pulse.expect(STEP_S)
            self._read(batch)
        self.pulse.rest()
        self._keep_within_memory()
        self._shelf.drop_unused(since_s=began_s - KEEP_S)
        self._rest(steady_s() - began_s)

    def _drop_stopped(self) -> None:
        for running in [*self._arrived, *self._running]:
            if running.request.is_stopped:
                with self._failing_alone(running):
                    for sequence in running.sequences[:1]:
                        self._keep_prefix(sequence)
                    self._leave(running)

    def _let_in(self) -> None:
        """Let those join for which there is memory; they overtake those for which there is not."""
        for running in list(self._arrived):
            if self._shelf.reserve(self._count_bytes() + running.bytes):
                with self._failing_alone(running):
                    self._join(running)
            elif steady_s() >= running.prepared_s + self._patience_s:
                message = (
                    f"The prompt takes {running.bytes:,} bytes of memory, and the sampler has no "
                    "room for them (TUNERY_SAMPLING_MEMORY_BYTES). Send a shorter one, or send it "
                    "again when fewer others are answered."
                )
                self._refuse(running, UnavailableError("sampler_memory", message))

    def _join(self, running: Running) -> None:
        prompt = running.prepared.prompt
        with self._shelf.lock:
            known = self._shelf.prefixes.find(running.owner, prompt)
        if known is None or not (length := running.shared(known.length)):
            cache = running.model.runner.new_cache()
        else:
            cache = known.cache.fork(length)  # without the lock, because it takes a while
        running.cached_tokens = cache.length
        running.sequences.append(Sequence(running, cache, list(prompt)))
        self._arrived.remove(running)
        self._running.append(running)

    def _read(self, batch: Batch) -> None:
        """Let the sequences of a batch read their next tokens."""
        runner = batch[0][0].running.model.runner
        began_s = steady_s()
        try:
            logits_BV = runner.read([sequence.row(count) for sequence, count in batch])
        except BaseException as error:
            self._find_cause(batch, error)
            return
        self._pace.note(sum(count for _, count in batch), steady_s() - began_s)
        for (sequence, _), logits_V in zip(batch, logits_BV, strict=True):
            if not sequence.pending and sequence in sequence.running.sequences:
                with self._failing_alone(sequence.running):
                    self._advance(sequence, logits_V)

    def _find_cause(self, batch: Batch, error: BaseException) -> None:
        """After a failed step, refuse the request that was read, or read each of them alone."""
        requests = {sequence.running for sequence, _ in batch}
        if len(requests) == 1:
            self._refuse(requests.pop(), error)
            return
        logger.error("a step has failed; each of its requests is read again alone", exc_info=error)
        for running in requests:
            with self._failing_alone(running):
                running.read_again_alone()

    def _advance(self, sequence: Sequence, logits_V: Tensor) -> None:
        """Choose the next token of a sequence, or the first one of each answer to a prompt."""
        if sequence.choice is None:
            sequence.running.sequences = sequence.begin_answers()
            for each in list(sequence.running.sequences):
                self._choose(each, logits_V)
        else:
            self._choose(sequence, logits_V)

    def _choose(self, sequence: Sequence, logits_V: Tensor) -> None:
        running, choice = sequence.running, sequence.choice
        assert choice is not None  # noqa: S101 - the prompt is read
        token, told = choice.take(logits_V)
        running.accept()  # not earlier: what fails before the first token has a status of its own
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
        running, read = sequence.running, sequence.tokens[: sequence.cache.length]
        if running.repeats:  # answers are read token by token, which prompts are not
            read = read[: running.shared(min(len(read), len(running.prepared.prompt)))]
        if read:
            with self._shelf.lock:
                self._shelf.prefixes.keep(running.owner, read, sequence.cache)

    def _keep_within_memory(self) -> None:
        """Refuse requests until what all of them have read fits into the limit.

        The next one is the newest of the project that takes most.
        """
        while not self._shelf.reserve(self._count_bytes()) and self._running:
            taken = Counter[str]()
            for running in self._running:
                taken[running.request.ask.project_id] += running.bytes
            newest = max(
                reversed(self._running), key=lambda each: taken[each.request.ask.project_id]
            )
            message = (
                "The answers in the making need more memory than the sampler may use "
                "(TUNERY_SAMPLING_MEMORY_BYTES). Send the request again when there are fewer."
            )
            self._refuse(newest, UnavailableError("sampler_memory", message))

    def _count_bytes(self) -> int:
        return sum(running.bytes for running in self._running)

    def _rest(self, worked_s: float) -> None:
        """Leave the processor to a job that trains, or the memory if nothing is answered."""
        if not self._running:
            if self._desk.refuses:
                self._shelf.clear()
            return
        until_s = steady_s() + rest_after(worked_s, trains=self._desk.trains)
        while self._desk.rest(until_s):
            self._drop_stopped()

    @contextmanager
    def _failing_alone(self, running: Running) -> Iterator[None]:
        """Refuse this request if what follows fails, so that it hurts no other."""
        try:
            yield
        except BaseException as error:
            self._refuse(running, error)

    def _refuse(self, running: Running, error: BaseException) -> None:
        running.request.end(explain_failure(error))
        self._leave(running)

    def _leave(self, running: Running) -> None:
        running.request.end()
        running.sequences.clear()
        for requests in (self._arrived, self._running):
            if running in requests:
                requests.remove(running)
        self._shelf.release(running.model, running.adapter)
        self._desk.leave(running.request)
