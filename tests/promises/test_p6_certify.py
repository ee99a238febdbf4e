"""P6: certify() proves recall on a network at hand, and names layer and task of anything tampered with."""

import json
from dataclasses import replace
from operator import attrgetter
from types import SimpleNamespace

import pytest
import torch
from life import READINGS, batch, learn, train
from slow import slow
from small_networks import KINDS, MLP, NETWORKS, ConvNet, Residual
from torch.nn.attention import SDPBackend, sdpa_kernel

import eidetic_kernels as ek
from eidetic_kernels import backends
from eidetic_kernels.records.certificate import tolerance
from eidetic_kernels.records.environment import differences, environment

TASKS = 3


@pytest.fixture(params=KINDS)
def net(request):
    return NETWORKS[request.param]()


def learned(net, how="nested"):
    for task in range(TASKS):
        learn(net, task, how, max_units=0.5)
    return net


def flip(tensor, index):
    """Flip the lowest bit of one element, in place."""
    tensor.view(-1)[index : index + 1].view(torch.int32).bitwise_xor_(1)


def owners_of(layer, name):
    """Which task owns each element of a frozen tensor."""
    owners = []
    for task in range(layer.segments.tasks):
        if isinstance(layer, ek.EideticGroupedConv2d):
            owners += [task] * layer.segments.size(task) * getattr(layer, name)[:1].numel()
        elif name == "frozen_weight":
            owners += [task] * layer.frozen_rows_of(task)[0].numel()
        else:
            owners += [task] * layer.segments.size(task)
    return owners


def frozen_tensors(net):
    return [
        (path, module, name, buffer)
        for path, module in net.named_modules()
        for name, buffer in module.named_buffers(recurse=False)
        if name.startswith("frozen")
    ]


@pytest.mark.parametrize("how", READINGS)
def test_what_nobody_touched_is_certified(net, how, tmp_path):
    assert net.certify().ok
    learned(net, how)
    assert net.certify().ok, str(net.certify())
    assert net.certify().tasks == TASKS and net.certify().notes == ()
    net.prepare_for_task(TASKS, 3)
    train(net, torch.optim.AdamW(net.parameters(), 10.0))
    net.prune(0.5)
    assert net.certify().ok, str(net.certify())
    net.save(tmp_path / "net")
    again = ek.EideticNetwork.load(tmp_path / "net")
    assert again.certify().ok, str(again.certify())
    again.certify().check()


def test_a_bit_flipped_anywhere_is_reported_by_layer_and_task(net):
    learned(net)
    tampered = 0
    for path, module, name, buffer in frozen_tensors(net):
        owners = owners_of(module, name)
        assert len(owners) == buffer.numel()
        for index in {0, len(owners) // 2, len(owners) - 1} if owners else ():
            flip(buffer, index)
            certificate = net.certify()
            assert not certificate.ok, f"{path}.{name}[{index}]"
            task = owners[index]
            assert any(path in line and f"task {task}" in line for line in certificate.problems), str(certificate)
            flip(buffer, index)
            tampered += 1
    assert tampered >= 3 * len(net.groups) * 2
    assert net.certify().ok, "flipped back, all is well"


def test_every_single_bit_of_a_tiny_network_is_covered():
    net = MLP(widths=(3,), dropout=0.0)
    learn(net, 0)
    for path, _, name, buffer in frozen_tensors(net):
        for index in range(buffer.numel()):
            flip(buffer, index)
            assert not net.certify().ok, f"{path}.{name}[{index}]"
            flip(buffer, index)


def test_a_bit_flipped_after_loading_is_reported(net, tmp_path):
    learned(net).save(tmp_path / "net")
    for number in range(len(frozen_tensors(net))):
        again = ek.EideticNetwork.load(tmp_path / "net")
        path, module, name, buffer = frozen_tensors(again)[number]
        if buffer.numel():
            flip(buffer, 0)
            task, certificate = owners_of(module, name)[0], again.certify()
            assert any(path in line and f"task {task}" in line for line in certificate.problems), str(certificate)


@pytest.mark.parametrize("change", [-1, 1])
def test_a_changed_segment_size_is_reported(net, change):
    learned(net)
    for group in net.groups:
        for task in range(TASKS):
            sizes = list(group.segments.frozen)
            group.segments.frozen = tuple(s + change * (t == task) for t, s in enumerate(sizes))
            certificate = net.certify()
            group.segments.frozen = tuple(sizes)
            assert any(group.name in line and f"task {task}" in line for line in certificate.problems), str(certificate)


def test_a_unit_moved_from_one_task_to_another_is_reported(net):
    """Totals stay, so that only the record of who owns what can tell."""
    learned(net)
    segments = net.groups[0].segments
    first, second, third = segments.frozen
    segments.frozen = (first - 1, second + 1, third)
    certificate = net.certify()
    assert any("task 0" in line for line in certificate.problems)
    assert any("task 1" in line for line in certificate.problems)


@pytest.mark.parametrize("how", ["nested", "disjoint"])
def test_changed_reads_are_reported(net, how):
    learned(net, how)
    for group in net.groups:
        for path, layer in group.producers.items():
            if not hasattr(layer.sources[0].group, "frozen"):
                continue  # it reads the network's input, which is the same either way
            before = layer.forward_transfer
            layer.forward_transfer = (before[0], not before[1], *before[2:])
            certificate = net.certify()
            layer.forward_transfer = before
            assert any(path in line for line in certificate.problems), str(certificate)


def test_a_swapped_head_is_reported(net):
    learned(net)
    first, second = net.heads[0], net.heads[1]
    first.frozen_bias, second.frozen_bias = second.frozen_bias, first.frozen_bias
    problems = net.certify().problems
    assert any("heads.0" in line and "task 0" in line for line in problems)
    assert any("heads.1" in line and "task 1" in line for line in problems)


def test_changed_probe_inputs_are_reported():
    net = learned(MLP())
    net.probes.of(1).neg_()
    (problem,) = net.certify().problems
    assert "task 1: its probe inputs are not the ones that were recorded" in problem


def test_missing_probe_inputs_are_reported():
    net = learned(MLP())
    del net.probes._buffers["2"]
    (problem,) = net.certify().problems
    assert "task 2: its probe inputs are gone" in problem


def test_missing_records_are_reported():
    net = learned(ConvNet())
    net.records.pop()
    certificate = net.certify()
    assert not certificate.ok and "2 records for 3 finished tasks" in str(certificate)


def test_check_raises_forgetting_error_with_the_report():
    net = learned(Residual())
    net.certify().check()
    flip(net.conv1.frozen_weight, 0)
    with pytest.raises(ek.ForgettingError, match=r"task 0: conv1"):
        net.certify().check()


def test_certify_changes_nothing_and_keeps_the_mode():
    net = learned(MLP())
    net.prepare_for_task(TASKS, 3)
    for mode in (True, False):
        net.train(mode)
        before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
        net.certify()
        assert net.training == mode
        assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())


def test_a_task_finished_before_any_input_was_seen_is_noted_and_its_tensors_still_guarded():
    net = MLP()
    net.prepare_for_task(0, 3)
    net.finish_task()
    certificate = net.certify()
    assert certificate.ok and any("task 0: the network had seen no input" in note for note in certificate.notes)
    flip(net.body[0].frozen_weight, 0)
    assert not net.certify().ok


def recorded_elsewhere(net, **changes):
    """As if every task had been finished with another torch, its logits having other last bits there."""
    net.records = [
        replace(record, logits="0" * 64, environment=record.environment | {"torch": "0.0"}, **changes)
        for record in net.records
    ]
    return net


def test_logits_of_another_environment_are_compared_as_numbers():
    certificate = recorded_elsewhere(learned(MLP())).certify()
    (note,) = certificate.notes
    assert certificate.ok and "recorded with torch 0.0" in note and "agree within 1e-04 of the largest" in note


def test_in_another_environment_other_numbers_are_reported_all_the_same():
    net = recorded_elsewhere(learned(MLP()), probe=None)  # earlier versions did not record it
    net.probes.of(1).mul_(1.01)
    (problem,) = net.certify().problems
    assert "task 1: its logits differ" in problem and "torch 0.0 (here" in problem


def test_records_without_numbers_are_noted_in_another_environment():
    """Those of versions that did not keep them."""
    certificate = recorded_elsewhere(learned(MLP()), values=None, shared=None).certify()
    assert certificate.ok and "cannot be compared bit for bit" in "".join(certificate.notes)
    assert "tensors that belong to no task were not recorded" in "".join(certificate.notes)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda net: torch.set_num_threads(2), "threads 1 (here 2)"),
        (
            lambda net: setattr(torch.backends.mkldnn, "enabled", False),
            "torch.backends.mkldnn.enabled True (here False)",
        ),
        (lambda net: torch.backends.cuda.enable_flash_sdp(False), "kinds of attention flash memory-efficient math"),
        (lambda net: net.half(), "dtype float32 (here float16)"),
        (lambda net: net.to(torch.bfloat16), "dtype float32 (here bfloat16)"),
    ],
    ids=["threads", "mkldnn", "attention", "half", "bfloat16"],
)
def test_another_setting_or_precision_is_named_and_is_no_forgetting(change, named):
    net = learned(ConvNet())
    mkldnn = torch.backends.mkldnn.enabled
    try:
        change(net)
        certificate = net.certify()
    finally:
        torch.set_num_threads(1)
        torch.backends.mkldnn.enabled = mkldnn
        torch.backends.cuda.enable_flash_sdp(True)
    assert certificate.ok, str(certificate)
    assert named in str(certificate)


def test_a_tampered_network_in_half_precision_is_still_found_by_its_numbers():
    net = learned(MLP())
    net.half()
    net.body[0].frozen_weight[:8] *= -2
    assert any("logits differ" in problem for problem in net.certify().problems)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # from inside Dynamo
@pytest.mark.parametrize("whole", [*slow(True), False], ids=["network", "a module of it"])
def test_a_compiled_network_is_certified_as_python(whole):
    """Compiled code may round otherwise: a task may be finished compiled and certified not compiled, and back."""
    net = MLP(dropout=0.0)
    rounding = []

    def other_rounding(graph, inputs):
        rounding.append(graph)
        return lambda *given: [y * (1 + 2**-20) if y.is_floating_point() else y for y in graph.forward(*given)]

    net.wiring  # noqa: B018  a compiled module cannot be traced
    (net if whole else net.body).compile(backend=other_rounding)
    learned(net)
    assert rounding and net.certify().ok
    notes = net.certify().notes
    assert not notes if whole else "body: compiled by itself, so that recall runs compiled code" in notes[0]
    for module in net.modules():
        module._compiled_call_impl = None
    assert net.certify().ok and not net.certify().notes


def test_tensors_of_no_task_are_fingerprinted():
    class Normalised(MLP):
        def __init__(self):
            super().__init__()
            self.register_buffer("mean", torch.full((6,), 0.1))

        def forward(self, x):
            return super().forward(x - self.mean)

    net = learned(Normalised())
    net.certify().check()
    flip(net.mean, 3)
    problems = net.certify().problems
    assert any("task 0: the network's own tensors that belong to no task" in problem for problem in problems)


def test_the_router_is_fingerprinted(tmp_path):
    net = learned(MLP())
    net.train_router([[batch(net, seed=task)] for task in range(TASKS)], max_epochs=1)
    net.save(tmp_path / "net")
    for each in (net, ek.EideticNetwork.load(tmp_path / "net")):
        each.certify().check()
        flip(each.router.weight, 0)
        assert "- the router's tensors are not the ones that were trained." in each.certify().problems
        object.__setattr__(each, "router", None)  # removed behind the network's back
        each._modules.pop("router", None)
        assert "- the router is gone." in each.certify().problems


def test_probe_inputs_are_the_first_that_the_task_was_trained_on():
    net = MLP()
    net.prepare_for_task(0, 3)
    early, x = torch.full((20, 6), 0.5), batch(net)[0]
    net.eval()(early)  # an evaluation pass will do until training begins
    assert torch.equal(net.probes.of(0), early[:8])
    net.train()(x)
    net(x + 1)
    net.eval()(early)
    assert torch.equal(net.probes.of(0), x[:8])
    net.finish_task()
    net.eval()(x + 2, task=0)
    assert torch.equal(net.probes.of(0), x[:8])


def test_a_network_that_takes_no_noise_is_certified_by_what_it_takes():
    def positive(net, inputs):
        assert (inputs[0] > 0).all()  # as an embedding takes only some numbers, and a logarithm positive ones

    net = MLP()
    net.register_forward_pre_hook(positive)
    net.prepare_for_task(0, 3)
    net(batch(net)[0].abs() + 0.1)
    net.finish_task()
    assert net.certify().ok and not net.certify().notes


def test_a_certificate_does_not_depend_on_who_asks_inside_autocast():
    net = learned(MLP())
    with torch.autocast("cpu", torch.bfloat16):
        assert net.certify().ok and not net.certify().notes
    net.prepare_for_task(3, 3)
    with torch.autocast("cpu", torch.bfloat16):
        net.finish_task()
    assert net.certify().ok and net.certify().tasks == 4


def test_on_a_cpu_a_lower_precision_of_products_is_noted():
    net = learned(MLP())
    torch.set_float32_matmul_precision("medium")
    try:
        certificate = net.certify()
    finally:
        torch.set_float32_matmul_precision("highest")
    (note,) = certificate.notes
    assert certificate.ok
    assert "recorded with torch.backends.mkldnn.matmul.fp32_precision ieee (here bf16)" in note
    assert "agree within 1e-02 of the largest" in note
    assert net.certify().notes == ()  # "highest" set by hand is what nobody set


@pytest.mark.parametrize("name", ["MKL_CBWR", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS"])
def test_a_variable_by_which_libraries_choose_code_is_named_and_is_no_forgetting(name, monkeypatch):
    """MKL_CBWR=COMPATIBLE changes bits of products, and was an alarm. Nobody who sets none sees a difference."""
    monkeypatch.delenv(name, raising=False)
    net = learned(MLP())
    monkeypatch.setenv(name, "")
    assert all(name not in record.environment for record in net.records) and net.certify().notes == ()
    monkeypatch.setenv(name, "COMPATIBLE")
    net.records = [replace(record, logits="0" * 64) for record in net.records]  # other last bits
    (note,) = net.certify().notes
    assert net.certify().ok and f"recorded with {name} unset (here COMPATIBLE)" in note

    there = learned(MLP())
    assert there.certify().notes == ()
    monkeypatch.delenv(name)
    assert f"recorded with {name} COMPATIBLE (here unset)" in there.certify().notes[0]


def test_variables_that_ask_for_less_than_float32_allow_for_it(gpu, monkeypatch):
    plain = torch.zeros(1)
    monkeypatch.setenv("ONEDNN_DEFAULT_FPMATH_MODE", "STRICT")
    assert tolerance(environment(plain)) == 1e-4
    monkeypatch.setenv("ONEDNN_DEFAULT_FPMATH_MODE", "BF16")
    assert tolerance(environment(plain)) == 1e-2
    before = environment(gpu)
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "1")
    assert differences(before, environment(gpu)) == "NVIDIA_TF32_OVERRIDE unset (here 1)"
    assert tolerance(environment(gpu)) == 1e-2


@pytest.mark.parametrize("part", ["", "router", "heads.0", "probes"])
def test_on_the_meta_device_there_is_nothing_to_certify_or_to_save(part, tmp_path):
    net = learned(MLP())
    net.train_router([[batch(net, seed=task)] for task in range(TASKS)], max_epochs=1)
    net.certify().write(tmp_path / "certificate.json")
    net.get_submodule(part).to("meta")
    for call in (
        net.certify,
        lambda: net.certify(against=tmp_path / "certificate.json"),
        lambda: net.save(tmp_path / "net"),
    ):
        with pytest.raises(ek.InputError, match=r"lie on the meta device, which holds no numbers"):
            call()
    assert not (tmp_path / "net").exists()


SETTINGS = {
    "torch.backends.cuda.matmul.allow_tf32": True,
    "torch.backends.cudnn.allow_tf32": False,
    "torch.backends.cudnn.benchmark": True,
    "torch.backends.cudnn.deterministic": True,
    "torch.backends.cudnn.enabled": False,
    "torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction": False,
    "torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction": False,
    "torch.backends.cuda.matmul.allow_fp16_accumulation": True,
}
NEWER = {"torch.backends.cuda.matmul.allow_tf32": "torch.backends.cuda.matmul.fp32_precision"}
NEWER["torch.backends.cudnn.allow_tf32"] = "torch.backends.cudnn.conv.fp32_precision"


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "GPU")
    monkeypatch.setattr(backends, "choice", lambda device: "torch")
    return SimpleNamespace(device=torch.device("cuda", 0), dtype=torch.float32, is_cuda=True)


@pytest.mark.parametrize("setting", SETTINGS)
def test_on_a_gpu_every_setting_that_changes_bits_is_recorded_and_named(setting, gpu):
    owner, _, name = setting.removeprefix("torch.backends.").rpartition(".")
    owner = attrgetter(owner)(torch.backends)
    before, recorded = getattr(owner, name), environment(gpu)
    assert SETTINGS[setting] is not before
    setattr(owner, name, SETTINGS[setting])
    try:
        here = environment(gpu)
    finally:
        setattr(owner, name, before)
    said = differences(recorded, here)
    assert said.startswith(NEWER.get(setting, setting) + " ") and said.count("here") == 1
    assert json.loads(json.dumps(recorded)) == environment(gpu)  # a checkpoint keeps it so


def test_a_gpus_other_settings_are_recorded_by_the_newer_names_and_outside_torch(gpu, monkeypatch):
    recorded = environment(gpu)
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    matmul.fp32_precision = "tf32"  # from here on torch raises where the older name is read
    try:
        assert differences(recorded, environment(gpu)) == ("torch.backends.cuda.matmul.fp32_precision ieee (here tf32)")
    finally:
        matmul.fp32_precision = before
        torch.set_float32_matmul_precision("highest")

    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    assert "CUBLAS_WORKSPACE_CONFIG unset (here :4096:8)" in differences(recorded, environment(gpu))
    with sdpa_kernel(SDPBackend.MATH):
        assert "kinds of attention" in differences(recorded, environment(gpu))

    torch.use_deterministic_algorithms(True)
    try:
        assert "torch.use_deterministic_algorithms False (here True)" in differences(recorded, environment(gpu))
    finally:
        torch.use_deterministic_algorithms(False)

    older = {key: value for key, value in recorded.items() if "cudnn.benchmark" not in key}
    assert "torch.backends.cudnn.benchmark unknown (here False)" in differences(older, recorded)


def test_forged_logit_digests_are_reported():
    net = learned(MLP())
    record = net.records[1]
    net.records[1] = type(record)(1, record.units, record.fingerprints, "0" * 64, record.environment)
    (problem,) = net.certify().problems
    assert "task 1" in problem and "logits" in problem


def test_the_certificate_prints_its_verdict():
    net = learned(MLP())
    assert str(net.certify()) == "3 finished tasks: nothing was forgotten."
    flip(net.heads[2].frozen_bias, 0)
    assert "NOT what they were" in str(net.certify()) and "heads.2" in str(net.certify())


def test_a_batch_of_the_network_is_not_needed(tmp_path):
    """A loaded network carries its probe inputs: no data is needed to prove it."""
    net = learned(ConvNet())
    net.save(tmp_path / "net")
    again = ek.EideticNetwork.load(tmp_path / "net")
    assert torch.equal(again.probes.of(1), net.probes.of(1))
    assert again.probes.of(1).shape == (8, *batch(net)[0].shape[1:])
