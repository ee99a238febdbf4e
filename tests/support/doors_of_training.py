"""Every public call of ``eidetic_training``, with good arguments and the kind of each; see :mod:`odd_arguments`."""

import functools

import torch
from doors_of_kernels import network
from life import batch, digest
from odd_arguments import (
    Door,
    anything,
    count_or_share,
    device,
    either,
    flag,
    iterable,
    kind,
    named,
    optional,
    path,
    real,
    sequence_of,
    share,
    tensor,
    text,
    whole,
)
from small_methods import batches, conditions
from torch.optim import Optimizer

import eidetic_kernels as ek
from eidetic_kernels.tasks.importance import IMPORTANCES
from eidetic_training import RouterSettings, TaskSettings, evaluate, models, train_epoch, train_router, train_task
from eidetic_training.data import (
    Augmentation,
    ImageSet,
    MetaLoader,
    Normalisation,
    Preparation,
    Source,
    Task,
    TensorLoader,
    hold_out,
    load,
    load_source,
    meta_task,
    permuted,
    several,
    split_classes,
)
from eidetic_training.methods import METHODS, Conditions
from eidetic_training.training.optimizers import OPTIMIZERS, make_optimizer

SEED = whole(-(2**63), 2**63 - 1)
FOLDER = optional(path)
DEVICE = optional(device)


@functools.cache
def images(samples=24, classes=4, side=6):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (samples, 1, side, side), generator=generator, dtype=torch.uint8)
    return ImageSet(pixels, torch.arange(samples) % classes, classes)


def source():
    return Source("made", images(), images(12), Augmentation(flip=True))


def task():
    return split_classes(source(), 2)[0]


def made(call, kinds, /, left_out=(), names=None, **good):
    return Door(lambda: (call, dict(good), None), kinds, names, left_out)


def method_of(make, name, good, kinds):
    return Door(lambda: (getattr(make(), name), dict(good), None), kinds)


_OPTIMIZER = optional(lambda v: isinstance(v, Optimizer))
_EPOCHS = whole(1)
_ONE = either(named(*IMPORTANCES), lambda v: type(v) is int and v in (1, 2))
_IMPORTANCE = either(_ONE, sequence_of(_ONE))
_FRACTION = real(0, below=1)


def _training_doors(folder):
    calls = sequence_of(callable)
    settings = {
        **dict.fromkeys(("max_epochs", "patience", "max_recovery_epochs"), _EPOCHS),
        "polish_epochs": whole(),
        **dict.fromkeys(("halve_learning_rate", "autocast"), flag),
        "search": named("backoff", "linear", "none"),
        "importance": _IMPORTANCE,
        "of": named("live", "width"),
        "step": either(real(above=0, most=1), sequence_of(real(above=0, most=1))),
        "first_step": real(0, 1),
        **dict.fromkeys(("tolerance", "label_smoothing"), _FRACTION),
        "keep_at_least": count_or_share,
        "max_pruned": share,
        **dict.fromkeys(("frozen_features", "cuda_graphs"), named("auto", True, False)),
        "frozen_features_gib": real(0),
        "seed": SEED,
    }
    names = {"search": ("backoff", "linear"), "importance": IMPORTANCES, "of": ("live", "width")}
    router = {
        **dict.fromkeys(("max_epochs", "patience", "batch_size"), _EPOCHS),
        **dict.fromkeys(("polish_epochs", "hidden", "max_cached_bytes"), whole()),
        **dict.fromkeys(("lr", "weight_decay"), real(0)),
        **dict.fromkeys(("dropout", "label_smoothing"), _FRACTION),
        **dict.fromkeys(("layers", "inputs", "augment", "alone", "mirrored", "classes"), flag),
        "convolutions": optional(either(sequence_of(whole(1)), kind(bytes))),  # bytes are numbers
        "examples": optional(_EPOCHS),
        "seed": SEED,
    }

    def trained():
        net = network("live")
        optimizer = torch.optim.SGD(net.parameters(), 0.1)
        good = {"network": net, "loader": [batch(net, 12)], "optimizer": optimizer, "max_epochs": 1, "search": "none"}
        return train_task, good, lambda: digest(net, optimizer)

    def routed():
        net = network("finished")
        return train_router, {"network": net, "loaders": [[batch(net)]] * 2, "max_epochs": 1}, lambda: digest(net)

    def routed_by_settings():
        call, good, state = routed()
        return functools.partial(call, good["network"], good["loaders"]), {"max_epochs": 1}, state

    def an_epoch():
        net = network("live")
        optimizer = torch.optim.SGD(net.parameters(), 0.1)
        loss = torch.nn.functional.cross_entropy
        return train_epoch, {"network": net, "loader": [batch(net)], "optimizer": optimizer, "loss": loss}, None

    def evaluated():
        net = network("finished")
        return evaluate, {"network": net, "loader": [batch(net)], "task": 0}, lambda: digest(net)

    common = {"network": kind(ek.EideticNetwork), "callbacks": calls, "progress": FOLDER}
    loss = optional(callable)
    task_kinds = {**common, "loader": iterable, "optimizer": _OPTIMIZER, "loss": loss, "finish": flag}
    return {
        "TaskSettings": made(TaskSettings, settings, names=names),
        "RouterSettings": made(RouterSettings, router),
        "train_task": Door(
            trained, {**task_kinds, "settings": optional(kind(TaskSettings))}, user=(TypeError, AttributeError)
        ),
        "train_router": Door(
            routed, {**common, "loaders": iterable, "settings": optional(kind(RouterSettings))}, user=(TypeError,)
        ),
        "train_router(settings)": Door(
            routed_by_settings, router, left_out=("network", "loaders", *common, "settings")
        ),
        "train_epoch": Door(
            an_epoch,
            {
                "network": common["network"],
                "loader": iterable,
                "optimizer": kind(Optimizer),
                "loss": callable,
                "features": optional(kind(ek.FrozenFeatures)),
                "autocast": flag,
            },
            left_out=["captured", "labels"],
            user=(TypeError,),
        ),
        "evaluate": Door(
            evaluated,
            {"network": common["network"], "loader": iterable, "task": whole(0, 1), "each": callable},
            user=(TypeError, ValueError, RuntimeError),
        ),
        "make_optimizer": Door(
            lambda: (make_optimizer, {"name": "sgd", "parameters": network("live").parameters(), "lr": 0.1}, None),
            {"name": named(*OPTIMIZERS), "parameters": iterable, "lr": real(0)},
            {"name": tuple(OPTIMIZERS)},
        ),
    }


def _data_doors(folder):
    sources = either(text, kind(Source), kind(tuple))
    split = named("train", "test")
    usual = either(optional(kind(Augmentation)), named("usual"))
    opened = {"folder": FOLDER, "resolution": optional(whole(1))}
    shape = optional(sequence_of(whole(1)))
    x, y = images().images, images().labels
    loading = {"name": named("parquet"), "image_column": optional(text), "label_column": optional(text), **opened}
    normalisation = Normalisation.of(x)
    loader = {"x": tensor, "y": tensor, "batch_size": _EPOCHS, "shuffle": flag, "seed": SEED, "drop_last": flag}
    loader |= {"preparation": optional(kind(Preparation)), "num_classes": optional(_EPOCHS)}
    set_kinds = {"images": tensor, "labels": tensor, "classes": whole(1, 2**63)}
    sets = {"train": kind(ImageSet), "test": kind(ImageSet)}

    def loaders():
        return [TensorLoader(x, y, 5), TensorLoader(x, y, 5)]

    return {
        "Augmentation": made(
            Augmentation,
            {"flip": flag, "crop_padding": whole(), "resized_crop": optional(sequence_of(real(above=0, most=1)))},
        ),
        "Augmentation()": made(
            Augmentation(flip=True, crop_padding=1),
            {"images": tensor, "generator": optional(kind(torch.Generator))},
            images=x,
        ),
        "ImageSet": made(ImageSet, set_kinds, images=x, labels=y, classes=4),
        "ImageSet.to": method_of(images, "to", {"device": "cpu"}, {"device": device}),
        "Normalisation": made(
            Normalisation,
            {"mean": sequence_of(real()), "std": sequence_of(real(above=0))},
            mean=(0.5,),
            std=(0.5,),
        ),
        "Normalisation.of": made(Normalisation.of, {"images": tensor}, images=x),
        "Normalisation()": made(normalisation, {"images": tensor}, images=x),
        "Preparation": made(
            Preparation, {"augment": optional(kind(Augmentation)), "normalisation": optional(kind(Normalisation))}
        ),
        "Preparation()": made(
            Preparation(Augmentation(flip=True), normalisation),
            {"raw": tensor, "noise": optional(kind(torch.Generator))},
            raw=x,
        ),
        "Source": made(
            Source,
            {"name": text, **sets, "augment": optional(kind(Augmentation))},
            name="made",
            train=images(),
            test=images(),
        ),
        "Task": made(
            Task,
            {
                "name": text,
                **sets,
                "num_classes": _EPOCHS,
                "normalisation": kind(Normalisation),
                "augment": optional(kind(Augmentation)),
                "labels": sequence_of(whole()),
                "permutation": optional(tensor),
            },
            name="made",
            train=images(),
            test=images(),
            num_classes=4,
            normalisation=normalisation,
        ),
        "Task.train_loader": method_of(
            task, "train_loader", {"batch_size": 4}, {"batch_size": _EPOCHS, "seed": SEED, "device": DEVICE}
        ),
        "Task.test_loader": method_of(
            task, "test_loader", {"batch_size": 4}, {"batch_size": _EPOCHS, "device": DEVICE}
        ),
        "TensorLoader": made(TensorLoader, loader, x=x, y=y, batch_size=5),
        "TensorLoader.set_epoch": method_of(lambda: loaders()[0], "set_epoch", {"epoch": 1}, {"epoch": whole()}),
        "TensorLoader.to": method_of(lambda: loaders()[0], "to", {"device": "cpu"}, {"device": device}),
        "TensorLoader.batches": method_of(lambda: _Drawn(loaders()[0]), "batches", {"epoch": 1}, {"epoch": whole()}),
        "MetaLoader": Door(
            lambda: (MetaLoader, {"loaders": loaders(), "batch_size": 5}, None),
            {
                "loaders": iterable,
                "batch_size": optional(_EPOCHS),
                "shuffle": flag,
                "seed": SEED,
                "classes": optional(sequence_of(whole(1))),
            },
        ),
        "meta_task": Door(
            lambda: (meta_task, {"items": [task(), task()], "batch_size": 5}, None),
            {
                "items": iterable,
                "batch_size": optional(_EPOCHS),
                "split": split,
                "shuffle": optional(flag),
                "seed": SEED,
                "device": DEVICE,
            },
            {"split": ("train", "test")},
        ),
        "hold_out": Door(
            lambda: (hold_out, {"task": task(), "share": 0.5}, None),
            {"task": kind(Task), "share": real(above=0, below=1), "seed": SEED},
        ),
        "load": made(
            load,
            {**loading, "split": split},
            name="parquet",
            split="train",
            folder=folder / "data",
            names={"name": ("parquet", "digits"), "split": ("train", "test")},
        ),
        "load_source": made(load_source, loading, name="parquet", folder=folder / "data"),
        "permuted": Door(
            lambda: (permuted, {"source": source(), "tasks": 2}, None),
            {"source": sources, "tasks": _EPOCHS, "seed": SEED, "identity_first": flag, **opened},
        ),
        "split_classes": Door(
            lambda: (split_classes, {"source": source(), "tasks": 2}, None),
            {"source": sources, "tasks": _EPOCHS, "order": optional(sequence_of(whole())), "augment": usual, **opened},
            {"augment": ("usual",)},
        ),
        "several": Door(
            lambda: (several, {"sources": [source(), source()]}, None),
            {"sources": sequence_of(sources), "shape": shape, "augment": usual, "folder": FOLDER},
        ),
    }


class _Drawn:
    """A loader whose batches are drawn at once."""

    def __init__(self, loader):
        self.loader = loader

    def batches(self, epoch):
        return list(self.loader.batches(epoch))


def _model_doors():
    mlp = {"in_features": _EPOCHS, "width": _EPOCHS, "depth": _EPOCHS, "dropout": share}
    convnet = {"in_channels": _EPOCHS, "width": _EPOCHS, "num_layers": _EPOCHS, "dropout": share}
    resnet = {"in_channels": _EPOCHS, "width": _EPOCHS, "small": flag, "skip_convolution": flag}

    return {
        "MLP": made(models.MLP, mlp, in_features=6, width=4),
        "ConvNet": made(models.ConvNet, convnet, in_channels=1, width=1),
        "ResNet": made(
            models.ResNet,
            {"blocks": sequence_of(whole(1)), "bottleneck": flag, **resnet},
            blocks=[1, 1],
            bottleneck=False,
            width=2,
        ),
        **{f"resnet{n}": made(getattr(models, f"resnet{n}"), resnet, width=1) for n in (18, 34, 50, 101)},
        "models.build": made(
            models.build,
            {"name": named("mlp"), "example_shape": sequence_of(whole(1)), "width": _EPOCHS, "widht": named()},
            name="mlp",
            example_shape=(1, 2, 2),
            width=4,
            names={"name": tuple(models.MODELS)},
        ),
    }


def _method_doors():
    tasks, positive = {"tasks": optional(whole(1))}, real(0)
    options = {
        "eidetic": {**tasks, "max_epochs": anything, "importance": _IMPORTANCE, "tolerance": _FRACTION},
        "ewc": {"strength": positive, "samples": whole(1)},
        "si": {"strength": positive, "damping": real(above=0)},
        "clnp": {**tasks, "sparsity": positive, "tolerance": _FRACTION},
        "packnet": {**tasks, "prune": _FRACTION},
        "piggyback": {"threshold": real(), "start": real(), "mask_lr": positive},
        "hat": {"sparsity": positive, "steepest": real(1), "gate_lr": positive},
    }

    doors = {
        "Conditions": made(
            Conditions,
            {
                "network": callable,
                "epochs": _EPOCHS,
                "optimizer": named(*OPTIMIZERS),
                "lr": positive,
                "seed": SEED,
                "polish": whole(),
            },
            network=conditions().network,
            names={"optimizer": tuple(OPTIMIZERS)},
        )
    }

    for name, method in METHODS.items():
        kinds = {"conditions": kind(Conditions), **options.get(name, {})}
        doors[f"methods.{name}"] = made(method, kinds, conditions=conditions(epochs=1))
        doors[f"methods.{name}.logits"] = Door(
            functools.partial(_answering, method), {"x": tensor, "task": whole(0, 0)}
        )

        learns = "learn_all" if name == "joint" else "learn"
        several_kinds = {"loaders": iterable, "classes": sequence_of(whole(1))}
        kinds = several_kinds if name == "joint" else {"loader": iterable, "num_classes": whole(1)}
        doors[f"methods.{name}.{learns}"] = Door(functools.partial(_learning, method, learns), kinds)
    return doors


@functools.cache
def _learned(method):
    made = method(conditions(epochs=1))
    if method is METHODS["joint"]:
        made.learn_all([batches(0)], [3])
    else:
        made.learn(batches(0), 3)
    return made


def _answering(method):
    return _learned(method).logits, {"x": batches(0)[0][0], "task": 0}, None


def _learning(method, name):
    good = {"loader": batches(0), "num_classes": 3}
    if name == "learn_all":
        good = {"loaders": [batches(0)], "classes": [3]}
    return getattr(method(conditions(epochs=1)), name), good, None


def doors(folder):
    """By name. ``folder`` holds Parquet files in ``data``; other files are made there, too."""
    return {**_training_doors(folder), **_data_doors(folder), **_model_doors(), **_method_doors()}
