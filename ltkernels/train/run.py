"""One training run in one folder: from a configuration to results, resumable at any point."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import ltkernels
from ltkernels.data import Augmentation, ImageOptions, load, vocabulary_of
from ltkernels.methods import METHODS, Context, SubsetExpert, TestSet
from ltkernels.nn import build_model, count_macs, count_parameters, load_pretrained
from ltkernels.predictions import write_logits
from ltkernels.predictions.of_method import has_experts, source_of_method
from ltkernels.train.checkpoint import write_atomic
from ltkernels.train.config import (
    RUNTIME_KEYS,
    Config,
    ConfigError,
    flatten,
    parse_toml,
    resolve,
    to_toml,
)
from ltkernels.train.distributed import World
from ltkernels.train.evaluation import adjust_logits, score
from ltkernels.train.experts_plots import plot_experts
from ltkernels.train.fusion_plots import plot_fusion
from ltkernels.train.lfme_plots import plot_lfme
from ltkernels.train.loop import Trainer, resolve_device, use_threads
from ltkernels.train.memory import memory_kind
from ltkernels.train.plots import HOW_TO_GET_PLOTS, can_plot, plot_run
from ltkernels.train.progress import SilentProgress, make_progress
from ltkernels.train.randomness import seeded
from ltkernels.train.routing_plots import plot_routing
from ltkernels.train.text import (
    VOCABULARY,
    check_inputs,
    network_arguments,
    text_options,
    vocabulary_hash,
    vocabulary_record,
    word_vectors,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor, nn

    from ltkernels.data import Inputs, LongTailedDataset
    from ltkernels.methods import Method
    from ltkernels.predictions import Source
    from ltkernels.train.progress import Progress

__all__ = [
    "EXPERT_LOGITS",
    "LOGITS",
    "hold_out",
    "load_config",
    "load_dataset",
    "load_method",
    "load_result",
    "load_training_set",
    "train",
    "untrained_method",
]

LOGITS = "logits.safetensors"
"""In a run's folder: what it predicts for test and validation images, if ``keep_logits``."""
EXPERT_LOGITS = "expert_logits.safetensors"
"""The same of each expert, where experts of parts of the classes are joined."""

# What a run that has trained leaves; a configuration alone is one that failed before it began.
_RUN_FILES = ("checkpoint.pt", "metrics.jsonl", "model.safetensors", "result.json")


def load_config(run: Path) -> Config:
    """The configuration of a run's folder.

    Raises:
        ConfigError: there is no run, or its ``config.toml`` is damaged.
    """
    return resolve(parse_toml(run / "config.toml"))


def load_result(run: Path) -> dict[str, Any] | None:
    """The content of a run's ``result.json``; None while the run is not finished."""
    path = run / "result.json"
    if not path.exists():
        return None
    result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return result


def load_method(run: Path, dataset: LongTailedDataset, device: torch.device) -> Method:
    """A finished run's trained method, frozen and in evaluation mode.

    Args:
        run: folder of the run.
        dataset: data set of the same classes, and image channels or vocabulary.
        device: where to put it.

    Returns:
        The method; ``predict(images)`` gives logits.

    Raises:
        ConfigError: the folder holds no finished run, or one of another number of classes or
            another vocabulary.
    """
    from safetensors import safe_open

    path = run / "model.safetensors"
    if not path.exists():
        raise ConfigError(f"{run} holds no finished run: {path.name} is missing")
    config = load_config(run)
    with safe_open(path, framework="pt", device="cpu") as file:
        metadata = file.metadata()
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    trained_on, classes = int(metadata["num_classes"]), len(dataset.class_names)
    if trained_on != classes:
        raise ConfigError(
            f"{run} was trained on {trained_on} classes, {dataset.name} has {classes}"
        )
    words, own = metadata.get("vocabulary", ""), vocabulary_hash(dataset)
    if words != own:
        raise ConfigError(
            f"{run} was trained with vocabulary {words or 'none'}, {dataset.name} has "
            f"{own or 'none'}: token ids mean other words"
        )
    method = untrained_method(config, dataset, device)
    method.model.load_state_dict(state)
    layout = torch.channels_last if config.channels_last else torch.contiguous_format
    method.to(device=device, memory_format=layout)  # type: ignore[call-overload]
    return method.requires_grad_(False).eval()


def untrained_method(config: Config, dataset: LongTailedDataset, device: torch.device) -> Method:
    """The method of a configuration as it is before training, without its teachers."""
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, weights=""))
    return METHODS[config.method](_context(config, dataset, device, {}))


def train(
    config: Config,
    out: Path | str,
    *,
    resume: bool = False,
    dataset: LongTailedDataset | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Train one run and write its folder.

    ``OUT`` gets ``config.toml``, ``metrics.jsonl``, ``checkpoint.pt``, ``model.safetensors``,
    ``logits.safetensors``, ``result.json``, ``plots/*.png``, on texts ``vocabulary.txt``, and a
    folder for each run that the method needs first.

    Args:
        config: the resolved configuration.
        out: the run's folder.
        resume: continue what the folder holds; a finished run is returned as it is.
        dataset: data to train on instead of ``config.dataset``.
        progress: told about every step; by default a bar or lines on standard output.

    Returns:
        The content of ``result.json``.

    Raises:
        ConfigError: the folder holds a run and ``resume`` is not set, or a run of another
            configuration; a teacher that does not fit.
        TrainingError: the device is missing, or the loss is not finite.
        Interrupted: stopped by Ctrl-C, saved.
        FileNotFoundError: the data set's files are not there.
    """
    out, world = Path(out), World.from_environment()
    if progress is None or not world.is_main:
        progress = make_progress() if world.is_main else SilentProgress()
    config = METHODS[config.method].complete(config)
    device = resolve_device(config.device, world)
    world.start(device)
    made_now = not out.exists()
    _claim(config, out, resume, world)
    finished = load_result(out)
    if finished is not None and (not can_plot() or (out / "plots").exists()):
        return finished
    try:
        return _Run(config, out, device, world, progress, dataset).execute()
    except Exception:
        if made_now and world.is_main:
            _leave_no_empty_folder(out)
        raise


def _claim(config: Config, out: Path, resume: bool, world: World) -> None:
    """Take the folder for this configuration, or say why not."""
    there = [name for name in _RUN_FILES if (out / name).exists()]
    if there and not resume:
        raise ConfigError(
            f"{out} already holds a run ({', '.join(there)}); "
            "continue it with --resume or choose another --out"
        )
    world.barrier()
    if resume and (out / "config.toml").exists():
        before = flatten(dataclasses.asdict(load_config(out)))
        now = flatten(dataclasses.asdict(config))
        changed = [k for k in now if now[k] != before[k] and k not in RUNTIME_KEYS]
        if changed:
            was = ", ".join(f"{k} = {before[k]!r} (now {now[k]!r})" for k in changed)
            raise ConfigError(f"{out} holds a run with {was}; --resume cannot change it")
    elif world.is_main:
        out.mkdir(parents=True, exist_ok=True)
        write_atomic(out / "config.toml", to_toml(config))
    world.barrier()


def _leave_no_empty_folder(out: Path) -> None:
    """A run that failed before its first checkpoint leaves nothing behind."""
    if [path.name for path in out.iterdir()] == ["config.toml"]:
        (out / "config.toml").unlink()
        out.rmdir()


def _context(
    config: Config,
    dataset: LongTailedDataset,
    device: torch.device,
    teachers: dict[str, Method],
    validation: tuple[Inputs, Tensor] | None = None,
    vectors: tuple[Tensor, Tensor] | None = None,
) -> Context:
    model = config.model
    build: Callable[..., Any] = partial(
        build_model,
        model.name,
        num_classes=len(dataset.class_names),
        head=model.head,
        scale=model.scale,
        **network_arguments(config, dataset, vectors),
    )
    if model.weights:
        build = partial(_build_pretrained, build, Path(model.weights))
    return Context(config, dataset, dataset.class_counts, device, build, teachers, validation)


def _build_pretrained(build: Callable[..., nn.Module], weights: Path, **options: Any) -> nn.Module:
    network = build(**options)
    load_pretrained(network, weights)
    return network


@dataclass(frozen=True)
class _Run:
    """A run whose folder is claimed."""

    config: Config
    out: Path
    device: torch.device
    world: World
    progress: Progress
    given_dataset: LongTailedDataset | None

    def execute(self) -> dict[str, Any]:
        config, world, device = self.config, self.world, self.device
        threads = use_threads(config.threads, world)
        whole = self.given_dataset or load_dataset(config)
        dataset, validation = hold_out(whole, config)
        check_inputs(config, dataset)
        vectors = word_vectors(config, dataset)
        preface = METHODS[config.method].preface(config, dataset)
        if preface:
            self.progress.note(preface)
        teachers: dict[str, Method] = {}
        teacher_records: dict[str, Any] = {}
        for name, needed in METHODS[config.method].prerequisites(config).items():
            run = self._prerequisite(name, needed)
            record = _teacher_record(run)
            if record.get("split_hash", dataset.split_hash) != dataset.split_hash:
                self.progress.note(f"note: {run} was trained on another split of the data")
            teachers[name] = load_method(run, dataset, device)
            teacher_records[name] = record
        with seeded(config.seed, "model"):
            context = _context(config, dataset, device, teachers, validation, vectors)
            method = METHODS[config.method](context)
        method.to(device)
        trainer = Trainer(
            method,
            config,
            dataset,
            validation,
            device=device,
            out=self.out,
            progress=self.progress,
            world=world,
        )
        trainer.fit()
        logits = trainer.logits(dataset.test_inputs)
        sources = self._sources(trainer, validation, logits) if config.keep_logits else {}
        result = {
            **_result(config, dataset, trainer, logits),
            **vocabulary_record(dataset, vectors),
            "teacher": None,
            **teacher_records,
            **method.report(self._test_set(trainer)),
            "device": _device_name(device),
            "threads": threads,
            "processes": world.size,
        }
        result["seconds_total"] = result["seconds"] + sum(
            _total_seconds(record) for record in teacher_records.values()
        )
        document = json.dumps(result, indent=2)
        if world.is_main:
            for name, source in sources.items():
                write_logits(self.out / name, source)
            self._write(document, result, trainer, logits)
        world.barrier()
        # As a later reader of the file sees it: lists, not tuples.
        written: dict[str, Any] = json.loads(document)
        return written

    def _prerequisite(self, name: str, needed: Config) -> Path:
        """Folder of a run this one needs: the given one, or one trained now."""
        given = {"teacher": self.config.teacher, "start": self.config.start}.get(name)
        if given:
            return Path(given)
        folder = self.out / name
        if self.config.expert_runs and issubclass(METHODS[needed.method], SubsetExpert):
            folder = Path(self.config.expert_runs) / name
            if load_result(folder) is not None:
                return folder
        train(
            needed,
            folder,
            resume=(folder / "config.toml").exists(),
            dataset=self.given_dataset,
            progress=self.progress,
        )
        return folder

    def _sources(
        self, trainer: Trainer, validation: tuple[Inputs, Tensor] | None, logits: Tensor
    ) -> dict[str, Source]:
        """What is kept of the run's predictions, by file name."""
        method = trainer.method
        make = partial(
            source_of_method,
            str(self.out),
            method,
            trainer.dataset,
            validation,
            trainer.logits,
            rule=self.config.shot_rule,
        )
        sources = {LOGITS: make(predicted=logits)}
        if has_experts(method):
            sources[EXPERT_LOGITS] = make(experts=True)
        return sources

    def _test_set(self, trainer: Trainer) -> TestSet:
        dataset = trainer.dataset
        return TestSet(
            dataset.test_labels,
            dataset.class_counts,
            self.config.shot_rule,
            dataset.input_shape,
            lambda function: trainer.logits(dataset.test_inputs, function),
        )

    def _write(
        self, document: str, result: dict[str, Any], trainer: Trainer, logits: Tensor
    ) -> None:
        dataset = trainer.dataset
        _save_network(self.out / "model.safetensors", trainer.method.model, self.config, dataset)
        vocabulary = vocabulary_of(dataset)
        if vocabulary is not None:
            write_atomic(self.out / VOCABULARY, vocabulary.to_text())
        if can_plot():
            title = f"{self.config.method} on {dataset.name}, seed {self.config.seed}"
            if any("lfme" in row for row in trainer.history):
                plot_lfme(self.out / "plots", title=title, history=trainer.history)
            if "fusion" in result:
                plot_fusion(self.out / "plots", title=title, fusion=result["fusion"])
            if "routing" in result:
                plot_routing(self.out / "plots", title=title, routing=result["routing"])
            if "feature_distance" in result:
                plot_experts(
                    self.out / "plots",
                    title=title,
                    result=result,
                    class_counts=dataset.class_counts,
                )
            plot_run(
                self.out / "plots",
                title=title,
                logits=logits,
                labels=dataset.test_labels,
                class_counts=dataset.class_counts,
                rule=self.config.shot_rule,
                history=trainer.history,
            )
        else:
            self.progress.note(HOW_TO_GET_PLOTS)
        # Last: a folder with a result is a finished run.
        write_atomic(self.out / "result.json", document + "\n")


def load_dataset(config: Config) -> LongTailedDataset:
    """The data set that a configuration names; nothing of it held out.

    Raises:
        ConfigError: images are to be turned, and there are none.
    """
    data = config.data
    dataset = load(
        config.dataset,
        root=data.root or None,
        imbalance=data.imbalance,
        kind=data.kind,
        seed=data.seed,
        draw=data.draw,
        text=text_options(config),
        images=ImageOptions(
            data.image_size, data.crop, data.interpolation, data.jitter, config.workers
        ),
    )
    if not data.rotation:
        return dataset
    if not isinstance(dataset.transform, Augmentation):
        raise ConfigError(f"`data.rotation`: expected 0, {dataset.name} has no images to turn")
    turning = dataclasses.replace(dataset.transform, rotation=data.rotation)
    return dataclasses.replace(dataset, transform=turning)


def load_training_set(config: Config) -> LongTailedDataset:
    """The data set that a configuration trains on: what it holds out is not there."""
    return hold_out(load_dataset(config), config)[0]


def hold_out(
    dataset: LongTailedDataset, config: Config
) -> tuple[LongTailedDataset, tuple[Inputs, Tensor] | None]:
    """What a run trains on, and its validation inputs and labels; None for none.

    They are held out of training (``data.holdout``), else the data set's own where it has some.
    """
    if not config.data.holdout:
        return dataset, dataset.validation
    data = config.data
    smaller, inputs, labels = dataset.holdout(
        fraction=data.holdout, at_least=data.holdout_min, seed=data.seed
    )
    return smaller, (inputs, labels)


def _teacher_record(run: Path) -> dict[str, Any]:
    record: dict[str, Any] = {"run": str(run)}
    result = load_result(run)
    if result is not None:
        keys = ("method", "seed", "split_hash", "accuracy", "seconds", "seconds_total", "subset")
        record |= {key: result[key] for key in keys if key in result}
    return record


def _total_seconds(record: Mapping[str, Any]) -> float:
    """Seconds of a run with those it needed; of older runs their own."""
    return float(record.get("seconds_total", record.get("seconds", 0.0)))


def _save_network(path: Path, model: nn.Module, config: Config, dataset: LongTailedDataset) -> None:
    from safetensors.torch import save

    state = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    metadata = {
        "format": "pt",
        "method": config.method,
        "model": config.model.name,
        "num_classes": str(len(dataset.class_names)),
        "ltkernels": ltkernels.__version__,
    }
    if vocabulary_of(dataset) is not None:
        metadata["vocabulary"] = vocabulary_hash(dataset)
    write_atomic(path, save(state, metadata))


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def _result(
    config: Config, dataset: LongTailedDataset, trainer: Trainer, logits: Tensor
) -> dict[str, Any]:
    labels, counts = dataset.test_labels, dataset.class_counts
    scored = score(logits, labels, counts, config.shot_rule)
    model, info = trainer.method.model, ltkernels.info()
    result: dict[str, Any] = {
        "method": config.method,
        "dataset": dataset.name,
        "seed": config.seed,
        "classes": len(dataset.class_names),
        "train_images": len(dataset.train_labels),
        "shot_rule": scored.rule,
        "splits": scored.sizes,
        "accuracy": scored.accuracy,
        "ece": scored.ece,
        "macs": count_macs(model, dataset.input_shape),
        "parameters": count_parameters(model),
        "seconds": trainer.seconds,
        "peak_memory_bytes": trainer.peak_memory,
        "peak_memory_kind": memory_kind(trainer.device),
        "torch": torch.__version__,
        "ltkernels": ltkernels.__version__,
        "backend": info.backend.get(trainer.device.type, "reference"),
        "recipe": config.recipe,
        "epochs": config.epochs,
        "test_images": len(labels),
        "split_hash": dataset.split_hash,
        "selection": config.selection,
        "selected_epoch": trainer.best["epoch"] if trainer.best else config.epochs,
        "test_set_leak": config.selection == "best_test",
        "info": info.to_dict(),
    }
    if trainer.method.logits_keep_prior(config):
        tau = config.loss.tau
        adjusted = score(adjust_logits(logits, counts, tau), labels, counts, config.shot_rule)
        result["logit_adjusted"] = {
            "tau": tau,
            "accuracy": adjusted.accuracy,
            "ece": adjusted.ece,
        }
    return result
