"""Certificates: each finished task is compared with its record, to prove that nothing was forgotten (P6)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from .. import checking
from ..errors import BusyError, EideticError, ForgettingError, InputError
from ..modes import compiled_modules
from ..tasks.base import BaseNetwork, head_of
from ..tasks.record import Environment, TaskRecord, digest
from . import certificate_file
from .certificate_file import CertificateFile
from .environment import differences, reduced
from .recording import (
    check_numbers,
    decoded,
    environment_of,
    frozen_of,
    frozen_tensors,
    probe_logits,
    shared_fingerprints,
)
from .signature import Key

# In another environment logits are compared as numbers: how far they may lie apart, in units of the largest recorded
# one. Float32 logits of six networks differed by 2e-6 at most without mkldnn, by 5e-7 with other threads, attention
# kernels or batches.
TOLERANCE = {"float64": 1e-9, "float32": 1e-4, "float16": 2e-2, "bfloat16": 1e-1}
REDUCED = 1e-2  # where float32 products may run in TF32 or bfloat16


@dataclass(frozen=True)
class Certificate:
    """The outcome of checking every finished task. It prints as a report.

    Args:
        tasks: how many finished tasks were checked.
        problems: what differs from the records, by task and layer; empty when nothing was forgotten.
        notes: what could not be checked, and why; and what was compared with.
        network: the network's class.
        records: what each finished task was compared with: the file's record of it, where a certificate was made
            against one, otherwise the network's own.
        router: what the router was compared with, by the same rule; None without one.
    """

    tasks: int
    problems: tuple[str, ...]
    notes: tuple[str, ...]
    network: str = field(default="", repr=False)
    records: tuple[TaskRecord, ...] = field(default=(), repr=False)
    router: str | None = field(default=None, repr=False)

    @property
    def ok(self) -> bool:
        """Whether every finished task is what it was."""
        return not self.problems

    def check(self) -> None:
        """Raise ForgettingError unless every finished task is what it was."""
        if self.problems:
            raise ForgettingError(str(self))

    def write(self, path: str | Path, key: Key | None = None) -> None:
        """Write the certificate to a JSON file of its own, for ``net.certify(against=path)``.

        Whoever can write a saved network can rewrite the records in it, together with the weights. A certificate that
        lies elsewhere, or is signed, tells. It stays valid however many tasks are learned later.

        What is written is what was compared. A certificate made by ``certify(against=file)`` repeats what that file
        says of its tasks, whatever stands in the network's own records. Of tasks and a router that came after the file
        it says what the network does: whoever signs it vouches for these. What earlier versions did not record in a
        network (fingerprints of probe inputs, of the router and of its settings) is written as it is now.

        Args:
            path: the file. It is replaced as a whole.
            key: sign it with this Ed25519 private key: a PEM file, or an ``Ed25519PrivateKey`` of the package
                ``cryptography`` (the extra ``sign``). ``openssl genpkey -algorithm ed25519 -out private.pem`` makes
                one, and ``openssl pkey -in private.pem -pubout -out public.pem`` the public key to give away.

        Raises:
            ForgettingError: the network is not what it was.
            InputError: no task is finished, ``path`` names no file, or ``key`` is no such key.
            CheckpointError: the file cannot be written.
        """
        self.check()
        if not self.records:
            raise InputError("no task is finished, so there is nothing to certify: net.finish_task() first.")
        certificate_file.write(Path(checking.path("path", path)), self.network, self.records, self.router, key)

    def __str__(self) -> str:
        verdict = f"{self.tasks} finished tasks: " + ("nothing was forgotten." if self.ok else "NOT what they were.")
        return "\n".join([verdict, *self.problems, *self.notes])


def certify(network: BaseNetwork, against: str | Path | None = None, key: Key | None = None) -> Certificate:
    """See :meth:`EideticNetwork.certify`."""
    if key is not None and against is None:
        raise InputError("key belongs to a certificate file: give against=, the file, too.")
    file = None if against is None else certificate_file.read(Path(checking.path("against", against)), key)
    check_numbers(network, "certify")
    finished, records = network.finished_tasks, [_with_probe(network, entry) for entry in network.records]

    problems: list[str] = []
    notes: list[str] = []
    if len(records) != finished:
        problems.append(f"- {len(records)} records for {finished} finished tasks.")
    if file is not None:
        records = _records_of(file, network, records, problems, notes)
    problems += _structure_problems(network, records)
    if not problems and records:  # a structure that is damaged has no fingerprints and no logits
        here, shared = environment_of(network), shared_fingerprints(network)
        for entry in records:
            problems += _fingerprint_problems(network, entry, shared, here, notes)
            problems += _logit_problems(network, entry, here, notes)
    router = _router(file, network, problems, notes)
    _note_compiled(network, notes)
    kind = f"{type(network).__module__}:{type(network).__qualname__}"
    return Certificate(finished, tuple(problems), tuple(dict.fromkeys(notes)), kind, tuple(records), router)


def _records_of(
    file: CertificateFile, network: BaseNetwork, own: list[TaskRecord], problems: list[str], notes: list[str]
) -> list[TaskRecord]:
    """What to compare finished tasks with: what ``file`` says of them, and the network's ``own`` records of later ones.

    Raises InputError where the network has another precision, in which nothing can be compared bit for bit.
    """
    certified, finished = len(file.records), network.finished_tasks
    notes.append(f"- compared with {file.path}, made {file.made}, {file.signed}.")
    if certified > finished:
        problems.append(f"- {file.path} certifies {certified} tasks, and {finished} are finished here.")
        return list(file.records[:finished])
    if finished:
        then, now = file.records[0].environment.get("dtype"), environment_of(network)["dtype"]
        if then != now:
            raise InputError(
                f"{file.path} certifies a network in {then}, and this one is in {now}, with other numbers: certify the "
                "network as it was saved."
            )
    if certified < finished:
        notes.append(
            f"- {finished - certified} tasks were finished after that certificate was made: they and the router were "
            "compared with the network's own records."
        )
    return [*file.records, *own[certified:]]


def _with_probe(network: BaseNetwork, entry: TaskRecord) -> TaskRecord:
    """``entry`` with the fingerprint of its probe inputs, which earlier versions did not record."""
    samples = network.probes.tensors_of(entry.task)
    return entry if entry.probe is not None or not samples else replace(entry, probe=digest(*samples))


def _note_compiled(network: BaseNetwork, notes: list[str]) -> None:
    """Note modules that were compiled by themselves, whose code runs in recall, too."""
    parts = [path for path in compiled_modules(network) if path]
    if parts and network.records:
        notes.append(
            f"- {', '.join(parts)}: compiled by itself, so that recall runs compiled code, and bits are certified of "
            "what runs as Python. Compile the whole network (net.compile()), which recalls as Python."
        )


def _fingerprint_problems(
    network: BaseNetwork, entry: TaskRecord, shared: dict[str, str], here: Environment, notes: list[str]
) -> Iterator[str]:
    """Frozen and shared tensors whose bits are not the recorded ones."""
    if entry.environment.get("dtype") != here["dtype"]:
        notes.append(
            f"- the network was finished in {entry.environment.get('dtype')} and is {here['dtype']} now: fingerprints "
            "cannot be compared, logits were compared as numbers. Load the saved file to compare bits."
        )
        return
    for path, tensors in frozen_tensors(network, entry.task):
        if entry.fingerprints.get(path) != digest(*tensors):
            yield f"- task {entry.task}: {path}: its frozen tensors are not the ones that were recorded."
    if entry.shared is None:
        notes.append("- tensors that belong to no task were not recorded by the version that finished these tasks.")
        return
    for path in dict.fromkeys([*entry.shared, *shared]):
        if entry.shared.get(path) != shared.get(path):
            where = f"{path}: tensors" if path else "the network's own tensors"
            yield f"- task {entry.task}: {where} that belong to no task are not the ones that were recorded."


def _logit_problems(network: BaseNetwork, entry: TaskRecord, here: Environment, notes: list[str]) -> Iterator[str]:
    """Logits of the probe inputs that are not the recorded ones; in another environment, as numbers."""
    if entry.logits is None:
        notes.append(
            f"- task {entry.task}: the network had seen no input when it was finished; no logits were recorded."
        )
        return
    samples = network.probes.tensors_of(entry.task)
    same_dtype = entry.environment.get("dtype") == here["dtype"]
    if samples and same_dtype and entry.probe is not None and entry.probe != digest(*samples):
        yield f"- task {entry.task}: its probe inputs are not the ones that were recorded, so its logits say nothing."
        return
    try:
        logits = probe_logits(network, entry.task)
    except BusyError:  # which says nothing of the task
        raise
    except (EideticError, IndexError, RuntimeError, TypeError, ValueError) as error:
        yield f"- task {entry.task}: it does not answer its probe inputs ({type(error).__name__}: {error})."
        return
    if logits is None:
        yield f"- task {entry.task}: its probe inputs are gone, so its logits cannot be compared."
        return

    elsewhere = differences(entry.environment, here)
    if not elsewhere:
        if entry.logits != digest(logits):
            yield f"- task {entry.task}: its logits of the probe inputs are not the ones that were recorded."
        return
    if entry.values is None:
        notes.append(
            f"- logits were recorded with {elsewhere} and cannot be compared bit for bit; structure and fingerprints "
            "were checked."
        )
        return
    expected, now = decoded(entry.values, logits.shape), logits.double().cpu()
    allowed = max(tolerance(entry.environment), tolerance(here))
    apart = float((now - expected).abs().max() / expected.abs().max().clamp_min(1e-30))
    if not apart <= allowed:
        yield (
            f"- task {entry.task}: its logits differ from the recorded ones by {apart:.1e} of the largest, where "
            f"{elsewhere} explains {allowed:.0e} at most."
        )
        return
    notes.append(
        f"- logits were recorded with {elsewhere}: they were compared as numbers, not bit for bit, and agree within "
        f"{allowed:.0e} of the largest."
    )


def tolerance(environment: Environment) -> float:
    """How far logits computed in ``environment`` may lie from the same computed elsewhere, in units of the largest."""
    return max(TOLERANCE.get(str(environment.get("dtype")), 0.0), REDUCED if reduced(environment) else 0.0)


def _router(file: CertificateFile | None, network: BaseNetwork, problems: list[str], notes: list[str]) -> str | None:
    """What the router was compared with: what ``file`` says, where it knows the same tasks and has a router.

    Otherwise it is the network's own fingerprint, with what earlier versions did not record as it is now.
    """
    recorded, now = network.router_fingerprint, None if network.router is None else network.router.fingerprint()
    if file is not None and len(file.records) == network.finished_tasks:
        if file.router is not None:
            problems += _certified_router_problems(file.router, now, notes)
            return file.router
        if now is not None:
            notes.append(
                "- that certificate has no router: routed answers are not certified by it. The router was compared "
                "with the network's own record."
            )
    problems += _router_problems(recorded, now, notes)
    if recorded is None or now is None:
        return now
    return " ".join([*recorded.split(), *now.split()[len(recorded.split()) :]])


def _router_problems(recorded: str | None, now: str | None, notes: list[str]) -> Iterator[str]:
    """A router that is not the one that was trained, by its fingerprints."""
    if now is None:
        if recorded is not None:
            yield "- the router is gone."
        return
    if recorded is None:
        notes.append("- the router was not recorded by the version that saved it.")
        return
    (then_dtype, then), (dtype, tensors) = recorded.split()[:2], now.split()[:2]
    if then_dtype != dtype:
        notes.append(f"- the router was trained in {then_dtype} and is {dtype} now: its tensors cannot be compared.")
    elif then != tensors:
        yield "- the router's tensors are not the ones that were trained."
    yield from _router_setting_problems(recorded, now, "it was trained with", notes)


def _certified_router_problems(certified: str, now: str | None, notes: list[str]) -> Iterator[str]:
    """A router that is not the one of a certificate file, by its fingerprints."""
    if now is None:
        yield "- the router is gone."
        return
    if certified.split()[:2] != now.split()[:2]:
        yield "- the router is not the one that was certified."
    yield from _router_setting_problems(certified, now, "were certified", notes)


def _router_setting_problems(then: str, now: str, said: str, notes: list[str]) -> Iterator[str]:
    """Settings of a router that are not those of the fingerprint ``then``, which has none in earlier versions."""
    settings, here = then.split()[2:], now.split()[2:]
    if not settings:
        notes.append("- the router's settings were not recorded by the version that trained it.")
    elif settings != here:
        yield f"- the router's settings (what it reads, and whose scores it gives) are not the ones that {said}."


def _structure_problems(network: BaseNetwork, records: list[TaskRecord]) -> list[str]:
    """Differences in the numbers of units, and tensors whose sizes do not fit them."""
    problems: list[str] = []
    for group in network.groups:
        for entry in records:
            size = group.segments.frozen[entry.task] if entry.task < group.segments.tasks else None
            if size != entry.units.get(group.name):
                problems.append(
                    f"- task {entry.task}: {group.name} has {size} units where {entry.units.get(group.name)} were kept."
                )

    producers = [(path, layer) for group in network.groups for path, layer in group.producers.items()]
    producers += [(f"heads.{task}", head_of(network, task)) for task in range(network.finished_tasks)]
    for path, layer in producers:
        kernel = layer.weight.shape[2:].numel()
        needed = sum(stair.rows * stair.columns for stair in layer.staircase().frozen) * kernel
        if layer.frozen_weight.numel() != needed:
            problems.append(f"- {path}: {layer.frozen_weight.numel()} frozen weights, but its staircase has {needed}.")

    for group in network.groups:
        for path, norm in group.norms.items():
            for name, tensor in frozen_of(norm):
                if len(tensor) * norm.shared != norm.segments.frozen_total:
                    what = name.replace("_", " ") + "s"
                    problems.append(f"- {path}: {len(tensor)} {what} for {norm.segments.frozen_total} frozen units.")
    return problems
