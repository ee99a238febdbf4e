"""Who runs an op: the choice, the words when it cannot be had, and the self-check that `python -m` prints."""

import importlib
import os
import re
import subprocess
import sys
from types import SimpleNamespace

import interpreter  # noqa: F401  half precision in Triton's interpreter
import pytest
import torch
from life import learn
from small_networks import MLP

import eidetic_kernels as ek
from eidetic_kernels import __main__ as command
from eidetic_kernels import backends
from eidetic_kernels.backends import dispatch
from eidetic_kernels.errors import BackendError
from eidetic_kernels.ops import batch_norm_torch, self_check


@pytest.fixture(autouse=True)
def unforced():
    with backends.using(None):
        yield
    dispatch._candidates.cache_clear()


@pytest.fixture
def stand_in(monkeypatch):
    """A backend "cpu" that is torch's own implementation, notes its calls, and takes all that ``refuse`` allows."""
    calls, refuse = [], []

    def forward(x, residual, norm, out):
        calls.append("forward")
        return batch_norm_torch.forward(x, residual, norm, out)

    def backward(dy, x, residual, norm, wanted):
        calls.append("backward")
        return batch_norm_torch.backward(dy, None, x, residual, norm, wanted)

    module = SimpleNamespace(
        segmented_batch_norm_supports=lambda *inputs: refuse[0] if refuse else None,
        segmented_batch_norm_forward=forward,
        segmented_batch_norm_backward=backward,
        calls=calls,
        refuse=refuse,
    )
    monkeypatch.setattr(dispatch, "import_module", lambda name: module)
    monkeypatch.setattr(dispatch, "why_missing", lambda name: None if name in ("torch", "cpu") else "it is not built.")
    dispatch._candidates.cache_clear()
    return module


def run_norm(frozen=2):
    layer = ek.EideticBatchNorm1d(4)
    layer.prune(range(frozen))
    layer.freeze()
    layer.recycle()
    layer(torch.randn(5, 4)).sum().backward()


def test_cpu_tensors_run_on_the_compiled_backend_where_it_is(stand_in):
    run_norm()
    assert stand_in.calls == ["forward", "backward"]
    assert backends.choices("segmented_batch_norm", "cpu") == ("cpu",)
    assert backends.choices("staircase_linear", "cpu") == ()
    assert backends.choice("cpu") == "cpu torch"


def test_with_nothing_frozen_a_cpu_computes_what_torch_computes(stand_in):
    run_norm(frozen=0)
    assert stand_in.calls == []
    with backends.using("cpu"):
        run_norm(frozen=0)
    assert stand_in.calls == ["forward", "backward"]


def test_a_layer_with_its_own_norm_uses_it_both_ways(stand_in):
    layer = ek.EideticLinear(3, 4, norm=ek.EideticBatchNorm1d(4))
    for calls in ([], ["forward", "backward"]):
        layer(torch.randn(5, 3)).sum().backward()
        assert stand_in.calls == calls
        layer.prune([0])
        layer.freeze()
        layer.recycle()


def test_what_a_backend_does_not_take_runs_on_torch_unless_it_is_forced(stand_in):
    stand_in.refuse.append("five channels are too many for it")
    run_norm()
    assert stand_in.calls == []
    with backends.using("cpu"), pytest.raises(BackendError, match="five channels are too many for it. Give it others"):
        run_norm()


def test_torch_is_forced_like_any_other(stand_in):
    with backends.using("torch"):
        run_norm()
    assert stand_in.calls == [] and backends.choices("segmented_batch_norm", "cpu") == ("cpu",)
    with backends.using("torch"):
        assert backends.choices("segmented_batch_norm", "cpu") == ()


def test_ops_that_a_forced_backend_does_not_implement_run_on_torch(stand_in):
    with backends.using("cpu"):
        assert ek.EideticLinear(3, 4)(torch.randn(2, 3)).shape == (2, 4)
    assert stand_in.calls == []


def test_a_tensor_on_another_device_is_refused_in_words(stand_in):
    with backends.using("cpu"), pytest.raises(BackendError, match="takes tensors on cpu; segmented_batch.* on meta"):
        backends.implementation("segmented_batch_norm", torch.empty(2, 3, device="meta"))


def test_a_backend_that_is_unknown_or_not_here_is_refused(stand_in):
    with pytest.raises(BackendError, match="'cudnn' is unknown .* torch, cpu, triton, cuda"), backends.using("cudnn"):
        pass
    with pytest.raises(BackendError, match="'cuda' was asked for and is not here: it is not built"):
        with backends.using("cuda"):
            pass
    run_norm()


def test_using_gives_back_what_was_there():
    with backends.using("torch"):
        with backends.using(None):
            assert backends.forced() is None
        assert backends.forced() == "torch"
        with pytest.raises(RuntimeError), backends.using(None):
            raise RuntimeError
        assert backends.forced() == "torch"


def test_the_environment_is_read_at_first_use_and_only_then(monkeypatch):
    monkeypatch.setattr(dispatch._choice, "read", False)
    monkeypatch.setenv("EIDETIC_BACKEND", "fastest")
    for _ in range(2):
        with pytest.raises(BackendError, match="'fastest' is unknown"):
            run_norm()
    monkeypatch.setenv("EIDETIC_BACKEND", "torch")
    run_norm()
    monkeypatch.setenv("EIDETIC_BACKEND", "fastest")
    run_norm()
    assert backends.forced() == "torch"


def test_half_precision_and_double_run_somewhere_unforced_and_say_why_not_when_forced():
    for dtype in (torch.float64, torch.bfloat16):
        layer, x = ek.EideticBatchNorm1d(4, dtype=dtype), torch.randn(5, 4, dtype=dtype)
        assert layer(x).dtype == dtype
    if backends.why_missing("triton") is None and not torch.cuda.is_available():
        layer = ek.EideticLinear(3, 4, dtype=torch.float64)
        with backends.using("triton"), pytest.raises(BackendError, match="float64 is not one of float32"):
            layer(torch.randn(2, 3, dtype=torch.float64))


def test_a_certificate_does_not_compare_bits_that_another_backend_made(monkeypatch):
    net = MLP()
    learn(net, 0)
    assert not net.certify().notes
    monkeypatch.setattr(backends, "choice", lambda device: "abacus torch")
    certificate = net.certify()
    assert certificate.ok and "(here abacus torch)" in certificate.notes[0]


# ---- Triton is tried before it is chosen


@pytest.fixture
def tried(monkeypatch):
    """A machine whose GPUs have these capabilities and where a trial of Triton ends so; the GPUs it was tried on."""
    pytest.importorskip("triton")
    launch = importlib.import_module("eidetic_kernels.backends.triton.launch")
    trial = importlib.import_module("eidetic_kernels.backends.triton.trial")

    def machine(outcome, *capabilities):
        gpus = []
        monkeypatch.delenv("TRITON_INTERPRET", raising=False)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda gpu: capabilities[gpu.index])
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda gpu: f"GPU {gpu.index}")
        monkeypatch.setattr(trial, "what_fails", lambda gpu: gpus.append(gpu.index) or outcome)
        return gpus

    known = [backends.why_missing, dispatch._triton, dispatch._say_if_triton_failed, dispatch._candidates]
    known.append(launch.too_old)
    for function in known:
        function.cache_clear()
    yield machine
    for function in known:
        function.cache_clear()


def test_triton_is_chosen_where_it_could_be_tried_and_once(tried):
    gpus = tried(None, (7, 5), (9, 0))
    for _ in range(2):
        assert "triton" in backends.choices("segmented_batch_norm", "cuda")
        assert backends.choices("staircase_linear", "cuda") == ()
    assert gpus == [1] and backends.why_missing("triton") is None


def test_where_triton_fails_torch_runs_and_it_is_said_once(tried):
    gpus = tried("RuntimeError: Failed to find C compiler", (8, 0))
    with pytest.warns(RuntimeWarning, match="torch runs in its place: it is installed and .* C compiler") as said:
        for _ in range(2):
            assert "triton" not in backends.choices("segmented_batch_norm", "cuda")
            assert backends.choice("cuda").endswith("torch") and "triton" not in backends.choice("cuda")
    assert len(said) == 1 and gpus == [0]
    reason = "on GPU 0 .RuntimeError: Failed to find C compiler.; it needs a C compiler"
    with pytest.raises(BackendError, match=f"'triton' was asked for and is not here: .* {reason}"):
        with backends.using("triton"):
            pass
    assert re.search(reason, backends.why_missing("triton"))


def test_where_the_compiled_module_runs_nobody_is_bothered_with_triton(tried, monkeypatch):
    tried("RuntimeError: Failed to find C compiler", (8, 0))
    why = backends.why_missing
    monkeypatch.setattr(dispatch, "why_missing", lambda name: None if name == "cuda" else why(name))
    assert backends.choices("segmented_batch_norm", "cuda") == ("cuda",)


def test_an_older_gpu_is_no_reason_to_try(tried):
    gpus = tried("never said", (7, 5))
    assert backends.choices("segmented_batch_norm", "cuda") == () and gpus == []
    assert "GPU 0 is older than compute capability 8.0" in backends.why_missing("triton")


def test_the_interpreter_is_never_chosen_for_a_gpu(tried, monkeypatch):
    gpus = tried(None, (9, 0))
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert "triton" not in backends.choices("segmented_batch_norm", "cuda") and gpus == []
    assert backends.devices("triton") == ("cpu",)


def test_the_trial_compiles_launches_and_looks_at_the_result(monkeypatch):
    pytest.importorskip("triton")
    trial = importlib.import_module("eidetic_kernels.backends.triton.trial")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    assert trial.what_fails(device) is None
    monkeypatch.setattr(trial, "launch", lambda x: None)
    assert "did not compute what it should" in trial.what_fails(device)

    def breaks(x):
        raise FileNotFoundError("ptxas\n" + 1000 * "x ")

    monkeypatch.setattr(trial, "launch", breaks)
    failure = trial.what_fails(device)
    assert failure.startswith("FileNotFoundError: ptxas x x") and len(failure) <= 400


FAILS = """
import torch
from eidetic_kernels.backends.triton import trial
print(trial.what_fails(torch.device("cpu")))
"""


@pytest.mark.skipif(torch.cuda.is_available(), reason="Triton finds a GPU")
def test_what_triton_itself_raises_without_a_driver_is_caught():
    pytest.importorskip("triton")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    run = subprocess.run([sys.executable, "-c", FAILS], capture_output=True, text=True, env=environment)
    assert run.returncode == 0 and "active drivers" in run.stdout, run.stdout + run.stderr


# ---- the self-check and the command


@pytest.mark.parametrize("name", backends.NAMES)
def test_every_backend_of_this_machine_is_right(name):
    if backends.why_missing(name) is not None:
        pytest.skip(backends.why_missing(name))
    outcomes = list(self_check.check(name))
    assert outcomes and all(outcome.ok for outcome in outcomes), outcomes


@pytest.mark.parametrize("op", self_check.OPS)
@pytest.mark.parametrize("name", ["torch", "triton"])
def test_what_is_checked_on_a_gpu_is_right_in_half_precision(name, op):
    """bfloat16 is checked there alone."""
    if "cpu" not in backends.devices(name) or backends.why_missing(name) is not None:
        pytest.skip(f"no {name} on a CPU")
    outcome = self_check._outcome(op, self_check._CALLS[op], name, "cpu", torch.bfloat16)
    assert outcome.ok, outcome


def test_the_check_computes_in_float32_whatever_torch_is_told():
    products = torch.backends.cuda.matmul, torch.backends.cudnn.conv
    before, told = [each.fp32_precision for each in products], []

    def call(op, random):
        told.append([each.fp32_precision for each in products])
        return self_check._conv2d(op, random)

    assert before[1] == "tf32", "what a GPU's convolutions are by default"
    assert self_check._outcome("staircase_conv2d", call, "torch", "cpu", torch.float32).ok
    assert told[0] == ["ieee", "ieee"]
    assert [each.fp32_precision for each in products] == before


def test_the_command_prints_what_is_there_and_ends_well(capsys, monkeypatch):
    for module in (backends, dispatch):
        monkeypatch.setattr(module, "why_missing", lambda name: None if name == "torch" else "it is not built.")
    dispatch._candidates.cache_clear()
    assert command.main() == 0
    printed = capsys.readouterr().out
    assert "cuda    missing    it is not built." in printed and "all right." in printed
    for op in self_check.OPS:
        assert printed.count(f"{op} ") == 2


def test_the_command_fails_for_a_backend_that_is_wrong_or_breaks(stand_in, capsys, monkeypatch):
    right = stand_in.segmented_batch_norm_forward

    def wrong(*arguments):
        y, mean, rstd = right(*arguments)
        return y * 1.001, mean, rstd

    monkeypatch.setattr(stand_in, "segmented_batch_norm_forward", wrong)
    assert command.main() == 1
    assert "FAILED: the output is off by 1" in capsys.readouterr().out

    def broken(*arguments):
        raise RuntimeError("no such instruction")

    monkeypatch.setattr(stand_in, "segmented_batch_norm_forward", broken)
    assert command.main() == 1
    printed = capsys.readouterr().out
    assert "RuntimeError: no such instruction" in printed and "NOT right" in printed


def test_the_command_notices_statistics_that_do_not_move(stand_in, capsys, monkeypatch):
    right = stand_in.segmented_batch_norm_forward

    def still(x, residual, norm, out):
        statistics = {"running_mean": norm.running_mean.clone(), "running_var": norm.running_var.clone()}
        return right(x, residual, norm._replace(**statistics), out)

    monkeypatch.setattr(stand_in, "segmented_batch_norm_forward", still)
    assert command.main() == 1
    assert "running_" in capsys.readouterr().out


def test_the_command_in_a_process_of_its_own_with_a_backend_that_is_not_there():
    run = subprocess.run(
        [sys.executable, "-m", "eidetic_kernels"],
        capture_output=True,
        text=True,
        env={"EIDETIC_BACKEND": "abacus", "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"},
    )
    assert run.returncode == 1 and "backend 'abacus' is unknown" in run.stdout, run.stderr
