"""One pre-trained model, fine-tuned for one task after another, each of them kept for ever.

    python docs/examples/fine_tune_many.py          # half a minute on two CPU cores, no download
    python docs/examples/fine_tune_many.py --prune  # first prune the units that the model can spare, with its data

The pre-trained model can be any plain torch module. Here it is a small convolutional network that has learned the
digits 0 to 3. It becomes task 0 of an eidetic network without any training, or pruned with its data. Two downstream
tasks, the digits 4 to 6 and 7 to 9, then train new units in its body, which read its features. At the end all three
tasks give the same bits as when they were learned, and one of them is extracted as a plain torch module.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

import eidetic_kernels as ek
from eidetic_training import evaluate
from eidetic_training.data import ImageSet, split_classes


def pretrained(task, epochs):
    """Stands for the model you have: a plain torch module that was trained earlier."""
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        nn.Linear(256, task.num_classes),
    )  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    for _ in range(epochs):
        for x, y in task.train_loader(64):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
    return model.eval()


@torch.no_grad()
def accuracy(model, task):
    """Test accuracy of a plain module."""
    right = [(model(x).argmax(1) == y).float() for x, y in task.test_loader(500)]
    return torch.cat(right).mean().item()


def run(epochs=5, samples=None, prune=False, out=None, say=print):
    """The whole workflow; returns the network, the extracted module, and each task's accuracy when learned and now."""
    torch.manual_seed(0)
    tasks = split_classes("digits", 3, augment=None)
    if samples is not None:
        tasks = [replace(task, train=_some(task.train, samples)) for task in tasks]
    model = pretrained(tasks[0], epochs)
    say(f"pre-trained on {tasks[0].name}: {accuracy(model, tasks[0]):.1%}")

    example = next(iter(tasks[0].test_loader(1)))[0]
    net = ek.convert(model, example)
    if prune:  # as far as training accuracy allows, with a few epochs of recovery after each step
        net.train_task(tasks[0].train_loader(64), torch.optim.AdamW(net.parameters(), 2e-3), max_epochs=1)
    else:
        net.finish_task()  # task 0 is the model as it is, for ever
    net.widen({group.name: 2 * group.segments.width for group in net.groups})
    learned = [evaluate(net, tasks[0].test_loader(500), 0)]

    for t in (1, 2):
        net.prepare_for_task(t, tasks[t].num_classes, max_units=0.5)
        optimizer = torch.optim.AdamW(net.parameters(), 2e-3)
        net.train_task(tasks[t].train_loader(64), optimizer, max_epochs=epochs, polish_epochs=epochs // 2)
        learned.append(evaluate(net, tasks[t].test_loader(500), t))

    now = [evaluate(net, task.test_loader(500), t) for t, task in enumerate(tasks)]
    for task, before, after in zip(tasks, learned, now):
        same = "the same bits" if before.digest == after.digest else "FORGOTTEN"
        say(f"{task.name}: {before.accuracy:.1%} when learned, {after.accuracy:.1%} now, {same}")
    say(str(net.capacity()))
    net.certify().check()  # raises ForgettingError unless every task is what it was
    say(str(net.certify()))

    plain = net.extract(1)  # plain torch: pickle it, or export it by torch.export or torch.onnx
    weights = sum(each.numel() for each in plain.parameters())
    say(f"task 1 extracted: {weights:,} parameters, {accuracy(plain, tasks[1]):.1%}")
    if out is not None:
        torch.save(plain, out)
        say(f"written to {out}: torch.load(path, weights_only=False), without this package")
    return net, plain, learned, now


def _some(images, count):
    each = slice(None, None, max(1, len(images.labels) // count))  # spread over the set, which is sorted by class
    return ImageSet(images.images[each], images.labels[each], images.classes)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=5, help="the most epochs a task trains before pruning")
    parser.add_argument("--samples", type=int, help="training images of each task, about (default: all)")
    parser.add_argument("--prune", action="store_true", help="prune the units that task 0 can spare, with its data")
    parser.add_argument("--out", type=Path, help="write task 1 to this file as a plain torch module")
    run(**vars(parser.parse_args()))


if __name__ == "__main__":
    main()
