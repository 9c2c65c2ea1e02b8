"""Base models, adapters and read prompts in memory; the least recently used ones leave."""

import gc
import logging
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, TypeVar

from pydantic import ValidationError

from app.core.base_models import RECORD_NAME, InstalledModel
from app.core.clock import steady_s
from app.core.machine.linux import trim_heaps
from app.core.sampling.messages import AdapterRef, Ask
from worker.sampling.decoding.decoder import Decoder
from worker.sampling.decoding.refusals import RefusedError
from worker.sampling.model.adapter_files import AdapterError, AdapterFiles, UnsupportedAdapterError
from worker.sampling.model.loading import load_runner
from worker.sampling.model.prefixes import PrefixStore
from worker.sampling.model.runner import Adapter, Runner
from worker.sampling.serving.options import ServingOptions
from worker.sampling.serving.requests import NoRoomError, NotLoadedError, UnavailableError
from worker.training.compute.hardware import read_or_measure
from worker.training.compute.plan import Placement, choose_placement
from worker.training.data.tokenizer import load_tokenizer
from worker.training.failures import TrainingFailedError
from worker.training.model.base_model import ModelShape

logger = logging.getLogger(__name__)

PATIENCE_S = 30.0
"""Longest time that a request waits for memory that others use, in seconds."""

_ADAPTER_COPIES = 3
"""Memory that an adapter takes while it is loaded, in sizes of its file: a copy of its numbers
beside the file, and then beside the same numbers in float32."""


@dataclass(eq=False, slots=True)
class _Loaded:
    bytes: int
    users: int = field(default=0, init=False)
    """Requests that need it now."""
    used_s: float = field(default=0.0, init=False)


_KeyT = TypeVar("_KeyT")
_LoadedT = TypeVar("_LoadedT", bound=_Loaded)


@dataclass(eq=False, slots=True)
class LoadedModel(_Loaded):
    runner: Runner
    decoder: Decoder
    adapters: dict[AdapterRef, "LoadedAdapter"] = field(
        default_factory=dict["AdapterRef", "LoadedAdapter"], init=False
    )
    preparing: threading.Lock = field(default_factory=threading.Lock, init=False)
    """Held by the thread that prepares a request with `decoder`."""


@dataclass(eq=False, slots=True)
class LoadedAdapter(_Loaded):
    adapter: Adapter


class Shelf:
    """All that is in memory, within a limit.

    One thread loads, another one reads with what is loaded, and all of them look for it.

    Attributes:
        prefixes: prompts that were read. For the thread that reads, which holds `lock`.
        lock: held by whoever changes what is here.
    """

    def __init__(self, options: ServingOptions) -> None:
        self.prefixes = PrefixStore(options.memory_bytes)
        self.lock = threading.RLock()
        self._options = options
        self._models: dict[tuple[Path, str], LoadedModel] = {}
        self._running_bytes = 0
        self._coming_bytes = 0
        """Memory of what is being loaded."""

    def has(self, ask: Ask) -> bool:
        """Whether nothing must be loaded for a request."""
        with self.lock:
            model = self._models.get(_key(ask))
            return model is not None and (ask.adapter is None or ask.adapter in model.adapters)

    def take_model(self, ask: Ask, *, loads: bool) -> LoadedModel:
        """The base model of a request. Give it back with `release`.

        Args:
            ask: the request.
            loads: whether the caller is the thread that loads what is not here.

        Raises:
            NotLoadedError: it is not here, and the caller does not load.
            NoRoomError: nothing can leave for it now.
            RefusedError: it cannot be loaded.
        """
        found = self._find(self._models, _key(ask), loads=loads)
        return found or self._load_model(ask)

    def take_adapter(
        self, model: LoadedModel, ref: AdapterRef, files: Sequence[BinaryIO], *, loads: bool
    ) -> LoadedAdapter:
        """The adapter of a request, as `take_model` does it."""
        found = self._find(model.adapters, ref, loads=loads)
        return found or self._load_adapter(model, ref, files)

    def release(self, *loaded: LoadedModel | LoadedAdapter | None) -> None:
        with self.lock:
            for each in loaded:
                if each is not None:
                    each.users -= 1
                    each.used_s = steady_s()

    def make_room(self, needed: int) -> bool:
        """Let what nobody needs leave, until there is room.

        Returns:
            Whether there is. Nothing leaves if there would not be enough.
        """
        with self.lock:
            limit = self._options.memory_bytes - self._running_bytes - self._coming_bytes - needed
            if sum(each.bytes for each in self._loaded() if each.users) > limit:
                return False
            while (taken := sum(each.bytes for each in self._loaded())) > limit:
                self._drop_oldest()
            self.prefixes.shrink(limit - taken)
            return True

    def reserve(self, running_bytes: int) -> bool:
        """Make room for what the answers in the making take, all together.

        Returns:
            Whether there is room. If not, what was reserved before stays reserved.
        """
        with self.lock:
            if not self.make_room(running_bytes - self._running_bytes):
                return False
            self._running_bytes = running_bytes
            return True

    def drop_unused(self, since_s: float) -> None:
        """Let prompts and adapters leave that were not used since this time of the steady clock."""
        with self.lock:
            self.prefixes.drop_unused(since_s)
            for model in self._models.values():
                for ref, adapter in list(model.adapters.items()):
                    if not adapter.users and adapter.used_s < since_s:
                        del model.adapters[ref]

    def clear(self) -> None:
        """Let everything leave that nobody needs, and give its memory back to the system."""
        with self.lock:
            has_left = bool(self.prefixes.bytes)
            self.prefixes.shrink(0)
            while self._drop_oldest():
                has_left = True
        if has_left:
            gc.collect()  # a decoder refers to itself
            trim_heaps()

    def _find(self, loaded: dict[_KeyT, _LoadedT], key: _KeyT, *, loads: bool) -> _LoadedT | None:
        with self.lock:
            found = loaded.get(key)
            if found is None and not loads:
                raise NotLoadedError
            return found and _use(found)

    def _load(
        self,
        loaded: dict[_KeyT, _LoadedT],
        key: _KeyT,
        load: Callable[[], _LoadedT],
        *,
        needed: int,
        what: str,
    ) -> _LoadedT:
        """Load something, with memory reserved for it until it is here."""
        with self.lock:
            if not self.make_room(needed):
                raise NoRoomError(what, needed, self._options.memory_bytes)
            self._coming_bytes = needed
        try:
            new = load()
        except BaseException:
            self._coming_bytes = 0
            raise
        with self.lock:
            self._coming_bytes = 0
            loaded[key] = new
            return _use(new)

    def _loaded(self) -> Iterator[_Loaded]:
        for model in self._models.values():
            yield model
            yield from model.adapters.values()

    def _drop_oldest(self) -> bool:
        """Drop the least recently used adapter, or a base model if no adapter can leave."""
        adapters = [
            (each.used_s, model.adapters, ref)
            for model in self._models.values()
            for ref, each in model.adapters.items()
            if not each.users
        ]
        if adapters:
            _, holder, ref = min(adapters, key=lambda each: each[0])
            del holder[ref]
            return True
        models = [(each.used_s, key) for key, each in self._models.items() if not each.users]
        if models:
            del self._models[min(models)[1]]
            return True
        return False

    def _load_model(self, ask: Ask) -> LoadedModel:
        directory = self._check_model(ask)
        try:
            speeds = read_or_measure(self._options.speeds)
            placement = choose_placement(self._options.compute, speeds)
            needed = ModelShape.read(directory).parameters * placement.torch_dtype.itemsize
            return self._load(
                self._models,
                _key(ask),
                lambda: _read_model(directory, placement),
                needed=needed,
                what="The base model",
            )
        except TrainingFailedError as error:
            message = f"The sampler cannot load the base model {directory.name}. {error}"
            raise UnavailableError("base_model_unusable", message) from None

    def _check_model(self, ask: Ask) -> Path:
        """The directory of a base model, if the model in it is the one that was asked for."""
        directory = self._options.models / ask.base_model.name  # wherever the API sees it
        try:
            record = InstalledModel.model_validate_json((directory / RECORD_NAME).read_bytes())
        except (OSError, ValidationError):
            message = f"The base model {directory.name} is not installed where the sampler runs."
            raise UnavailableError("base_model_missing", message) from None
        if record.sha256 != ask.base_model_sha256:
            message = f"The base model {directory.name} was reinstalled. Send the request again."
            raise UnavailableError("base_model_missing", message)
        return directory

    def _load_adapter(
        self, model: LoadedModel, ref: AdapterRef, files: Sequence[BinaryIO]
    ) -> LoadedAdapter:
        weights, config = files
        size = os.fstat(weights.fileno()).st_size
        checked = AdapterFiles(weights, config, ref.weights_sha256, ref.config_sha256, size)
        try:
            return self._load(
                model.adapters,
                ref,
                lambda: _read_adapter(model, checked),
                needed=_ADAPTER_COPIES * size,
                what="The adapter",
            )
        except UnsupportedAdapterError as error:
            message = f"The sampler cannot use the adapter of this model. {error}"
            raise RefusedError("adapter_unsupported", message, param="model") from None
        except (AdapterError, OSError) as error:
            message = f"The adapter of this model is damaged. {error}"
            raise UnavailableError("adapter_damaged", message, status=500) from None


def _key(ask: Ask) -> tuple[Path, str]:
    return ask.base_model, ask.base_model_sha256


def _read_model(directory: Path, placement: Placement) -> LoadedModel:
    logger.info("loading %s in %s", directory.name, placement.dtype)
    tokenizer = load_tokenizer(directory)
    runner = load_runner(directory, placement)
    decoder = Decoder(directory, tokenizer, window=runner.window, vocabulary=runner.vocabulary)
    return LoadedModel(runner.bytes, runner, decoder)


def _read_adapter(model: LoadedModel, files: AdapterFiles) -> LoadedAdapter:
    adapter = model.runner.load_adapter(files)
    return LoadedAdapter(adapter.bytes, adapter)


def _use(loaded: _LoadedT) -> _LoadedT:
    loaded.users += 1
    loaded.used_s = steady_s()
    return loaded
