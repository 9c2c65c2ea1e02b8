"""Shows rows of a file as the base model will see them, token by token."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, BinaryIO, cast

from tokenizers.decoders import DecodeStream
from transformers import PreTrainedTokenizerBase

from app.core.dataset.formats import LineError, ParsedExample, PreferenceExample
from app.core.dataset.reading import read_examples
from app.core.dataset.tokenizing.messages import (
    MAX_TOKENS_SHOWN,
    Preview,
    PreviewedExample,
    PreviewedRow,
    PreviewRequest,
    Refused,
    Token,
)
from app.core.job.child.training_events import DataProblem
from app.core.job.training_config import TrainingConfig
from worker.training.data.chat_template import ChatTemplateError, NoChatTemplateError
from worker.training.data.cutting import CutExample, cut_example, group_rows
from worker.training.data.encoding import Encoded, Encoder
from worker.training.data.stop_tokens import StopTokens
from worker.training.data.tokenizer import load_tokenizer
from worker.training.failures import TrainingFailedError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_STOP_TOKENS = 16
"""Learned tokens at the end of an example among which the stop text is looked for."""


def preview(request: PreviewRequest, source: BinaryIO) -> Preview | Refused:
    """Render the rows of a request. A row that the base model cannot read has an error instead."""
    try:
        tokenizer = load_tokenizer(request.base_model)
        stops = StopTokens.read(request.base_model, tokenizer)
        encoder = Encoder.for_job(request.config, tokenizer, stops)
        previewer = _Previewer(request.config, tokenizer, encoder)
        rows = tuple(
            previewer.show(line, example)
            for line, example in read_examples(source, only=set(request.rows))
        )
    except TrainingFailedError as error:
        return Refused(code=error.code, message=str(error), param=error.param)
    except NoChatTemplateError as error:
        message = f"The base model cannot read conversations: {error}."
        return Refused(code=error.code, message=message, param="model")
    except LineError as error:
        return Refused(code=error.code, message=str(error))
    warnings = stops.teaching(encoder.ends, tokenizer).warnings()
    return Preview(
        rows=rows,
        stop=next(iter(encoder.ends), ""),
        warnings=tuple(warning.message for warning in warnings),
    )


class _Previewer:
    def __init__(
        self, config: TrainingConfig, tokenizer: PreTrainedTokenizerBase, encoder: Encoder
    ) -> None:
        self._config = config
        self._tokenizer = tokenizer
        self._encoder = encoder
        self._special = set(tokenizer.added_tokens_decoder)

    def show(self, line: int, example: ParsedExample) -> PreviewedRow:
        try:
            encoded = self._encoder.encode(example)
        except NoChatTemplateError:  # no other row can be read either
            raise
        except ChatTemplateError as error:
            problem = DataProblem(line=line, path="messages", code=error.code, message=str(error))
            return PreviewedRow(line=line, error=problem)
        cut_rows = [
            row
            for together in group_rows(example, encoded)
            for row in cut_example(
                together,
                max_tokens=self._config.max_sequence_tokens,
                overlong=self._config.overlong_row_behavior,
            )
        ]
        pairs = list(zip(encoded, cut_rows, strict=True))
        if isinstance(example, PreferenceExample):
            return self._show_preference(line, pairs)
        room = MAX_TOKENS_SHOWN
        examples: list[PreviewedExample] = []
        is_cut = False
        for whole, row in pairs:
            is_cut = len(row.input_ids) > room
            if room:
                examples.append(self._show_example(whole, row, room))
            room = max(0, room - len(row.input_ids))
        return PreviewedRow(line=line, examples=tuple(examples), is_cut=is_cut)

    def _show_preference(
        self, line: int, pairs: Sequence[tuple[Encoded, CutExample]]
    ) -> PreviewedRow:
        """Show both answers, each with half of the tokens that are shown."""
        room = MAX_TOKENS_SHOWN // len(pairs)
        examples = tuple(
            self._show_example(whole, row, room).model_copy(update={"answer": answer})
            for answer, (whole, row) in zip(("preferred", "non_preferred"), pairs, strict=True)
        )
        is_cut = any(len(row.input_ids) > room for _, row in pairs)
        return PreviewedRow(line=line, examples=examples, is_cut=is_cut)

    def _show_example(self, whole: Encoded, row: CutExample, room: int) -> PreviewedExample:
        is_trained = row.outcome in ("kept", "truncated")
        return PreviewedExample(
            outcome=row.outcome,
            total_tokens=len(whole.input_ids),
            learned_tokens=sum(row.is_learned) if is_trained else 0,
            learns_stop=is_trained and self._ends_with_stop(row),
            is_whole=whole.is_whole,
            tokens=tuple(
                Token(id=id_, text=text, is_learned=is_learned, is_special=id_ in self._special)
                for id_, text, is_learned in zip(
                    row.input_ids[:room],
                    self._read(row.input_ids[:room]),
                    row.is_learned,
                    strict=False,
                )
            ),
        )

    def _read(self, input_ids: Sequence[int]) -> Iterator[str]:
        """The text of each token. Of several that write one character, the last has all of it."""
        stream = DecodeStream(skip_special_tokens=False)
        backend = cast("Tokenizer", self._tokenizer.backend_tokenizer)
        for id_ in input_ids:
            yield stream.step(backend, id_) or ""

    def _ends_with_stop(self, row: CutExample) -> bool:
        pairs = zip(row.input_ids, row.is_learned, strict=True)
        learned = [id_ for id_, is_learned in pairs if is_learned]
        text = cast("str", self._tokenizer.decode(learned[-_STOP_TOKENS:]))
        return text.rstrip().endswith(tuple(self._encoder.ends))
