"""Resolves the hyperparameters of a request, with those that it leaves to the recipe `auto`."""

from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from datetime import date
from typing import Any, Self

from app.core.base_models import CatalogueEntry
from app.core.db.tables import File
from app.core.job import recipes
from app.core.job.lora_shape import LoraShape
from app.core.job.recipes import JobSize
from app.core.job.training_config import DPO_RATE_DIVISOR, Method, Recipe, TrainingConfig
from app.schemas.fine_tuning_jobs import JobCreate
from app.schemas.hyperparameters import (
    DEFAULT_LEARNING_RATES,
    RECIPE_NAMES,
    as_hyperparameters,
)
from app.services.job_settings import resolve_config

_SUSPICIOUS_MULTIPLIER = 1e-2
"""A smaller multiplier is probably a learning rate in the wrong field, so the job warns."""
_RATE_NAMES = frozenset({"learning_rate", "learning_rate_multiplier"})
_SHAPE_NAMES = frozenset({"lora_r", "lora_alpha", "lora_target_modules"})


@dataclass(frozen=True, slots=True, kw_only=True)
class HyperparameterRequest:
    """What a request says about hyperparameters, and what it is about."""

    given: dict[str, Any]
    """Hyperparameters that the caller set, by their names on the wire."""
    auto: AbstractSet[str]
    """Names on the wire of those that the caller set to `"auto"`."""
    recipe: Recipe
    """Recipe of the job. `auto` chooses all that the caller did not set, `reference` only those
    that are `"auto"`."""
    method: Method = "supervised"
    entry: CatalogueEntry
    """Base model."""
    size: JobSize
    seed: int | None
    shape: LoraShape | None = None
    """Shape of the adapter that the job continues and keeps. None for a new adapter."""

    @classmethod
    def of(
        cls,
        request: JobCreate,
        entry: CatalogueEntry,
        training_file: File,
        *,
        shape: LoraShape | None = None,
        parameters: int | None,
        default_recipe: Recipe,
    ) -> Self:
        """Read the request for a job.

        Args:
            shape: shape of the adapter that the job continues.
            parameters: number of parameters of the base model. None if unknown.
            default_recipe: recipe of a request that names none.

        Raises:
            InvalidRequestError: the request sets a hyperparameter to two different values.
        """
        return cls(
            given=request.given_hyperparameters(),
            auto=request.auto_hyperparameters(),
            recipe=request.recipe or default_recipe,
            method=request.method_type,
            entry=entry,
            size=JobSize(
                parameters=parameters,
                rows=training_file.examples or 0,
                bytes=training_file.bytes,
            ),
            seed=request.seed,
            shape=shape,
        )

    def resolve(self, *, today: date) -> TrainingConfig:
        """Give every hyperparameter its value.

        Args:
            today: the date in UTC.

        Raises:
            InvalidRequestError: as `resolve_config`.
        """
        chosen = self._chosen
        config = resolve_config(
            self._choose_adapter(chosen) | self.given,
            self.entry,
            method=self.method,
            shape=self.shape,
            seed=self.seed,
            today=today,
        )
        changes: dict[str, Any] = {"recipe": self.recipe}
        if "n_epochs" in chosen:
            held_out = config.validation_split or 0.0
            size = replace(self.size, rows=round(self.size.rows * (1 - held_out)))
            changes["epochs"] = recipes.choose_epochs(size, batch_size=config.batch_size)
        if chosen & _RATE_NAMES and not self.given.keys() & _RATE_NAMES:
            rate = recipes.choose_learning_rate(
                self.size, config.lora, loraplus_lr_ratio=config.loraplus_lr_ratio
            )
            changes["learning_rate"] = rate if config.dpo is None else rate / DPO_RATE_DIVISOR
        return config.model_copy(update=changes)

    def learning_rate_multiplier(self, config: TrainingConfig) -> float:
        """The multiplier that the caller set, or the one that the learning rate implies."""
        implied = config.learning_rate / DEFAULT_LEARNING_RATES[self.method]
        return self.given.get("learning_rate_multiplier", implied)

    def warn_about_multiplier(self, config: TrainingConfig) -> str | None:
        """What is odd about the multiplier that the caller set. None if nothing is.

        Args:
            config: what the request was resolved to.
        """
        multiplier = self.given.get("learning_rate_multiplier")
        if multiplier is None or multiplier >= _SUSPICIOUS_MULTIPLIER:
            return None
        rate = config.learning_rate
        return (
            f"learning_rate_multiplier={multiplier} is a factor on {rate / multiplier:g}, so the "
            f"learning rate is only {rate:.3g}. To set the learning rate itself, use "
            "'learning_rate'."
        )

    @property
    def _chosen(self) -> AbstractSet[str]:
        """Names of the hyperparameters that the recipe chooses."""
        names = RECIPE_NAMES if self.recipe == "auto" else self.auto
        return names - self.given.keys() - (_SHAPE_NAMES if self.shape else frozenset())

    def _choose_adapter(self, chosen: AbstractSet[str]) -> dict[str, Any]:
        """Those of the chosen hyperparameters that are the adapter's."""
        rank = min(recipes.choose_rank(self.size), self.entry.max_lora_rank)
        adapter = {
            "lora_r": rank,
            "lora_alpha": recipes.ALPHA,
            "lora_target_modules": recipes.TARGETS,
        }
        return {name: adapter[name] for name in adapter.keys() & chosen}

    def compare_with_auto(self, config: TrainingConfig) -> str | None:
        """What the recipe `auto` would choose where it differs. None if it does not.

        Args:
            config: what the request was resolved to.
        """
        given = {name: self.given[name] for name in self.given.keys() - RECIPE_NAMES}
        request = replace(self, given=given, auto=frozenset(), recipe="auto", seed=config.seed)
        best = self._describe(request.resolve(today=config.template_date or date.min))
        used = self._describe(config)
        differences = [
            f"{name} {best[name]} (here {used[name]})" for name in best if best[name] != used[name]
        ]
        if not differences:
            return None
        return f'"recipe": "auto" would choose {", ".join(differences)}.'

    def _describe(self, config: TrainingConfig) -> dict[str, str]:
        """The hyperparameters that a recipe chooses, as a message shows them."""
        values = as_hyperparameters(config, None)
        shown = {name: f"{values[name]:g}" for name in ("lora_r", "lora_alpha", "learning_rate")}
        targets = config.lora.target_modules
        is_all = set(targets) == set(self.entry.target_modules)
        shown["lora_target_modules"] = recipes.TARGETS if is_all else " and ".join(targets)
        if config.max_steps is None:
            shown["n_epochs"] = str(config.epochs)
        return shown
