"""The training loop of a job: its steps, what is saved between them, and its result."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from app.core.job.child.job_spec import BASE_MODEL_NAME, OUTPUT_NAME, JobSpec
from app.core.job.child.training_events import Checkpointed, Noted, Saved, Stepped, TrainingEvent
from app.core.job.loss_log import StepMetrics
from app.core.manifest import atomic_directory
from worker.training.artifacts.checkpoint import check_adapter, write_checkpoint
from worker.training.artifacts.loss_log import LossLog
from worker.training.artifacts.saved_state import StateSaver
from worker.training.data.dataset import TokenizedData
from worker.training.data.stop_tokens import StopTokens
from worker.training.step.step import BestAdapter
from worker.training.step.trainer import StepSchedule, Trainer

_STEEP_SHARE = 0.04
"""Fraction of the fall of the validation loss above which its fall at the end is steep. Measured:
see `docs/recipes.md`."""

Report = Callable[[TrainingEvent], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingLoop:
    """Everything that takes part in the training of a job, loaded."""

    directory: Path
    spec: JobSpec
    report: Report
    training: TokenizedData
    validation: TokenizedData | None
    stop_tokens: StopTokens
    schedule: StepSchedule
    trainer: Trainer
    log: LossLog
    best: BestAdapter | None
    """None if neither the end of the job nor its result depends on the best adapter."""
    saver: StateSaver

    @property
    def is_over(self) -> bool:
        """Whether no step is left to take: all are taken, or the job stops early."""
        is_early = self.best is not None and self.best.is_final
        return is_early or self.trainer.progress.step == self.schedule.total_steps

    def take_steps(self, is_stop_requested: Callable[[], bool]) -> None:
        """Train until the job is over or a stop is requested. Saves the state before it returns.

        The model is evaluated first as it is before training, but not in a job that is resumed.
        """
        is_fresh = self.trainer.progress.step == 0 and not is_stop_requested()
        if is_fresh and self.validation is not None:
            self._evaluate_start(self.validation)
        while not self.is_over and not is_stop_requested():
            step = self._take_step()
            if self.is_over or self.schedule.is_checkpoint(step):
                state = self.saver.save()
                self._save_checkpoint(step, state=self._name(state))
            elif self.saver.is_due:
                self._save_state()
        if not self.saver.is_up_to_date:
            self._save_state()
        self._tell_computed()

    def settle(self) -> int:
        """Put the adapter that is the result into the model. Returns its step.

        That step has a checkpoint then.

        An earlier attempt, or the job that this one resumes, may have made that checkpoint. It is
        made again here, and is the same.
        """
        last_step = self.trainer.progress.step
        chosen = self.best if self.spec.config.chooses_best else None
        step = last_step if chosen is None else chosen.step
        if chosen is not None and step != last_step:
            chosen.restore(self.trainer.model)
        if not self._checkpoint(step).exists():
            self._save_checkpoint(step, state=None)
        if self.validation is not None:
            self._warn_if_unfinished()
            self.report(self._explain_result(step))
        return step

    def _tell_computed(self) -> None:
        """Tell how much of the work shared beginnings have saved."""
        computed, read = self.trainer.computed
        if computed < read:
            message = (
                f"Computed {computed:,} of {read:,} tokens: what examples of a step have in common "
                "at their beginnings is computed once."
            )
            self.report(Noted(message=message))

    def _explain_result(self, step: int) -> Noted:
        """Which adapter is the result, why, and whether it is better than the base model."""
        losses = dict(self.log.losses.valid)
        loss, base_loss = losses[step], losses.get(0)
        why = "with the lowest validation loss" if self.spec.config.chooses_best else "the last one"
        told = f"The adapter of step {step:,}, {why}, is the result. "
        told += f"Its validation loss is {loss:.4f}."
        if base_loss is not None:
            told += f" Before training it was {base_loss:.4f}."
        if self.best is not None and self.best.is_final:
            taken, total = self.trainer.progress.step, self.schedule.total_steps
            why = "the validation loss no longer improved"
            told = f"Stopped after step {taken:,} of {total:,}: {why}. {told}"
        is_worse = base_loss is not None and loss > base_loss
        return Noted(message=told, level="warn" if is_worse else "info")

    def _warn_if_unfinished(self) -> None:
        """Warn if the validation loss was still falling steeply at the end of a whole job.

        What is steep was measured with supervised jobs, so others get no warning.
        """
        if self.spec.config.dpo is not None:
            return
        share = self.log.losses.late_share()
        if share > _STEEP_SHARE and not (self.best is not None and self.best.is_final):
            message = (
                f"The validation loss was still falling: {share:.0%} of its fall came at the end. "
                "For a better model, train with a higher learning_rate or more n_epochs."
            )
            self.report(Noted(message=message, level="warn"))

    def check(self, step: int) -> None:
        """Check the adapter of `step` as a user would load it. The model is unusable afterwards."""
        adapter = self._checkpoint(step)
        check_adapter(
            self.trainer.model,
            adapter,
            torch.from_numpy(self.training.read(0).input_ids).long(),
            step=step,
            learning_rate=self.spec.config.learning_rate,
        )

    def _evaluate_start(self, validation: TokenizedData) -> None:
        evaluation = self.trainer.evaluate(validation)
        self._log(
            StepMetrics(
                step=0,
                epoch=0.0,
                valid_loss=evaluation.loss,
                valid_mean_token_accuracy=evaluation.accuracy,
                tokens_seen=0,
                elapsed_s=0.0,
                valid_rewards=evaluation.rewards,
            )
        )

    def _take_step(self) -> int:
        metrics = self.trainer.take_step()
        if self.validation is not None and self.schedule.is_evaluation(metrics.step):
            metrics = self._evaluate(metrics, self.validation)
        self._log(metrics)
        return metrics.step

    def _log(self, metrics: StepMetrics) -> None:
        self.log.append(metrics)
        self.report(Stepped(metrics=metrics))

    def _evaluate(self, metrics: StepMetrics, validation: TokenizedData) -> StepMetrics:
        evaluation = self.trainer.evaluate(validation)
        if self.best is not None:
            self.best.observe(metrics.step, evaluation.loss, self.trainer.model)
        return metrics.model_copy(
            update={
                "valid_loss": evaluation.loss,
                "valid_mean_token_accuracy": evaluation.accuracy,
                "valid_rewards": evaluation.rewards,
            }
        )

    def _save_state(self) -> None:
        state = self.saver.save()
        self.report(Saved(step=self.trainer.progress.step, directory=self._name(state)))

    def _save_checkpoint(self, step: int, *, state: str | None) -> None:
        target = self._checkpoint(step)
        with atomic_directory(target, step, self.spec) as staging:
            write_checkpoint(
                staging,
                spec=self.spec,
                step=step,
                model=self.trainer.model,
                base_model=self.directory / BASE_MODEL_NAME,
                log=self.log,
                stop_tokens=self.stop_tokens,
            )
        self.report(Checkpointed(step=step, directory=self._name(target), state=state))

    def _checkpoint(self, step: int) -> Path:
        return self.directory / OUTPUT_NAME / f"step-{step}"

    def _name(self, directory: Path) -> str:
        return directory.relative_to(self.directory).as_posix()
