"""Sharded weights (FSDP2): equal to DDP and to one process, and checkpoints that any number of processes can load."""

import contextlib
import json
import os
import resource
import shutil
import signal
from pathlib import Path

import pytest
import safetensors.torch
import torch

import methods
from components import ARGUMENTS
from launch import state, write_recipe
from ssl_toolkit import optim, regularization
from ssl_toolkit.checkpoint import sharded
from ssl_toolkit.checkpoint.io import read_checkpoint
from ssl_toolkit.cli import train as cli
from ssl_toolkit.distributed.ranks import rank, world_size
from ssl_toolkit.io.atomic import SUMS
from ssl_toolkit.optim import OptimizerSpec
from ssl_toolkit.regularization import Penalty, Regularizer
from ssl_toolkit.run_folder import CHECKPOINTS, newest_checkpoint

STEPS = {"max_steps": 6, "max_epochs": -1}
# without what each process drops for itself, which no other number of processes can draw again
PLAIN = {"name": "resnet10t", "kwargs": {"stem_width": 8, "channels": [8, 8, 16, 16]}}


def train(command, *arguments):
    cli.train(command, [str(each) for each in arguments], quietly=True)


def train_together(jobs):
    """In a process of a group: runs of all of them and copies of runs, one after the other."""
    os.environ.update(
        RANK=str(rank()), LOCAL_RANK=str(rank()), WORLD_SIZE=str(world_size()), TORCHELASTIC_RUN_ID="tests",
        MASTER_ADDR="127.0.0.1", MASTER_PORT="1",
    )  # fmt: skip
    torch.set_num_threads(1)
    for command, *arguments in jobs:
        if command == "interrupt":
            if rank() == 0:
                interrupt(*arguments)
            torch.distributed.barrier()
        else:
            train(command, *arguments, "--trainer.devices", world_size())


def interrupt(run, copy):
    """A copy of a run as it was after its third step."""
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns("step-0000000006.ckpt*"))


def go_on(run, strategy, batch_size):
    return ["pretrain", "--resume", run, "--trainer.strategy", strategy, "--data.batch_size", batch_size]


def largest_difference(first, second, without=None):
    """Of the weights, the buffers and what the optimizer keeps, in the newest checkpoints of two runs.

    Weights whose name ends with ``without`` are left out.
    """
    first, second = state(first), state(second)
    assert first["global_step"] == second["global_step"]
    assert first["state_dict"].keys() == second["state_dict"].keys()
    names = [name for name in first["state_dict"] if without is None or not name.endswith(without)]
    pairs = [(first["state_dict"][name], second["state_dict"][name]) for name in names]
    mine, others = (each["optimizer_states"][0]["state"] for each in (first, second))
    assert mine.keys() == others.keys()
    pairs += [(each, others[number][name]) for number, values in mine.items() for name, each in values.items()]
    assert all(one.shape == other.shape for one, other in pairs)
    # relative for numbers above 1, such as some running variances
    apart = [(one.double() - other.double()).abs() / other.double().abs().clamp(min=1) for one, other in pairs]
    return max(float(each.max()) for each in apart)


def write_plain_recipe(folder):
    """With all that looks at weights during a run: gradients clipped, evaluation, the watch."""
    arguments = methods.recipe("SimCLR", folder)["model"]["init_args"]
    # rounding makes a difference of the rate where a gradient is next to nothing
    optimizer = {"class_path": "ssl_toolkit.optim.AdamW", "init_args": {"lr": 1e-4}}
    return write_recipe(
        folder, model={"init_args": arguments | {"backbone": PLAIN, "optimizer": optimizer}},
        trainer={**STEPS, "gradient_clip_val": 0.5}, checkpoint={"every_n_steps": 3, "keep": 9},
        data={**methods.IMAGES, "val_fraction": 0.2}, evaluation={"every_n_epochs": 1}, watch={"every_n_steps": 2},
    )  # fmt: skip


@pytest.mark.guarantee("P3")
@pytest.mark.timeout(300)
@pytest.mark.slow
def test_parts_copies_and_one_process_agree_and_go_on_from_each_other(run_processes, tmp_path, reached):
    recipe = write_plain_recipe(tmp_path)
    half = ["pretrain", "-c", recipe, "--data.batch_size", 4, "--trainer.strategy"]
    one, copies, parts = (tmp_path / name for name in ("one", "copies", "parts"))
    resumed = [
        (run, strategy, tmp_path / f"{run.name}-{strategy}") for run in (copies, parts) for strategy in ("ddp", "fsdp2")
    ][1:]
    jobs = [[*half, "ddp", "--out", copies], [*half, "fsdp2", "--out", parts]]
    for run, strategy, copy in resumed:
        jobs += [["interrupt", run, copy], go_on(copy, strategy, 4)]
    run_processes(train_together, 2, jobs, timeout=250)
    train("pretrain", "-c", recipe, "--out", one)
    alone = tmp_path / "alone"
    interrupt(parts, alone)
    train(*go_on(alone, "auto", 8), "--trainer.devices", 1)

    middle = parts / CHECKPOINTS / "step-0000000003.ckpt"
    assert {"__0_0.distcp", "__1_0.distcp", SUMS} <= {file.name for file in middle.iterdir()}
    runs = [copies, parts, alone, *(copy for _, _, copy in resumed)]
    found = {run.name: largest_difference(one, run) for run in runs}
    assert max(found.values()) <= 1e-6, found
    assert largest_difference(parts, tmp_path / "parts-fsdp2") == 0
    # what the run says of its weights is what the checkpoint holds
    exported = safetensors.torch.load_file(parts / "backbone.safetensors")
    held = state(parts)["state_dict"]
    assert all(tensor.equal(held[f"backbone.model.{name}"]) for name, tensor in exported.items())
    reached(
        f"6 steps of AdamW by DDP, by FSDP2 and by one process, and by each from the third step of the others: weights "
        f"and moments differ by at most {max(found.values()):.1e}"
    )


@pytest.mark.slow
@pytest.mark.guarantee("P3")
@pytest.mark.timeout(600)
def test_a_checkpoint_of_two_processes_is_resumed_by_any_number(run_processes, tmp_path, reached):
    recipe = write_plain_recipe(tmp_path)
    one, parts = tmp_path / "one", tmp_path / "parts"
    train("pretrain", "-c", recipe, "--out", one)
    half = ["pretrain", "-c", recipe, "--data.batch_size", 4, "--trainer.strategy", "fsdp2", "--out", parts]
    run_processes(train_together, 2, [half], timeout=250)
    found = {}
    for processes in (1, 2, 4):
        copy = tmp_path / str(processes)
        interrupt(parts, copy)
        run_processes(train_together, processes, [go_on(copy, "fsdp2", 8 // processes)], timeout=250)
        found[processes] = largest_difference(one, copy)
    assert max(found.values()) <= 1e-6, found
    numbers = ", ".join(f"{difference:.1e} at W={processes}" for processes, difference in found.items())
    reached(f"saved at W=2 and resumed: weights and moments differ from one process by {numbers}")


@pytest.mark.guarantee("P3")
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", methods.on_representatives())
def test_every_method_trains_sharded_as_with_ddp(name, run_processes, tmp_path, reached):
    # a low rate, as above
    options = ["--model.optimizer.lr", 1e-4, "--data.batch_size", 4, "--trainer.strategy"]
    arguments = [methods.command(name), "-c", write_recipe(tmp_path, name, trainer=STEPS), *options]
    runs = [tmp_path / strategy for strategy in ("ddp", "fsdp2")]
    run_processes(train_together, 2, [[*arguments, run.name, "--out", run] for run in runs], timeout=250)
    # of a gradient that is rounding and nothing else, as of the bias of attention's keys, Adam makes a step of its rate
    found = largest_difference(*runs, without="in_proj_bias")
    headers = [safetensors.safe_open(run / "backbone.safetensors", "pt").metadata()["ssl_toolkit"] for run in runs]
    assert json.loads(headers[0])["task"] == json.loads(headers[1])["task"]
    for run in runs if methods.command(name) == "transfer" else ():
        whole, held = safetensors.torch.load_file(run / "model.safetensors"), state(run)["state_dict"]
        assert whole.keys() == held.keys()
        assert all(tensor.equal(held[key]) for key, tensor in whole.items())
    assert found <= (1e-5 if methods.table()[name].rounding_grows else 1e-6)
    assert largest_difference(*runs) <= 2 * STEPS["max_steps"] * 1e-4
    reached(f"{name}, 6 steps of AdamW: at most {found:.1e} from DDP")


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("options", [["--model.cache_features", "true"], ["--model.head", "nearest_mean"]])
def test_features_that_are_computed_once_are_those_of_ddp(run_processes, tmp_path, options):
    recipe = write_recipe(tmp_path, "Classification", trainer=STEPS)
    frozen = [
        "--model.freeze_backbone",
        "true",
        "--model.augmentation",
        "null",
        "--model.dropout",
        0,
        *options,
        "--data.batch_size",
        4,
    ]
    runs = [tmp_path / strategy for strategy in ("ddp", "fsdp2")]
    jobs = [["transfer", "-c", recipe, *frozen, "--trainer.strategy", run.name, "--out", run] for run in runs]
    run_processes(train_together, 2, jobs, timeout=250)
    first, second = (safetensors.torch.load_file(run / "model.safetensors") for run in runs)
    apart = [
        (each.double() - second[name].double()).abs() / each.double().abs().clamp(min=1) for name, each in first.items()
    ]
    found = max(float(each.max()) for each in apart)
    # convolutions on another memory layout round in another way
    assert found <= 1e-5


@pytest.mark.slow
@pytest.mark.guarantee("P3")
@pytest.mark.timeout(600)
def test_feature_maps_computed_again_or_in_bfloat16_are_those_of_ddp(run_processes, tmp_path, reached):
    settings = {
        "gradient_checkpointing": ["--model.gradient_checkpointing", "true"],
        "bf16-mixed": ["--trainer.precision", "bf16-mixed"],
        "both": ["--model.gradient_checkpointing", "true", "--trainer.precision", "bf16-mixed"],
    }
    recipe = write_plain_recipe(tmp_path)
    # the layout that weights in parts have: else convolutions round in another way
    options = ["--model.memory_format", "contiguous", "--data.batch_size", 4, "--trainer.strategy"]
    jobs = [
        ["pretrain", "-c", recipe, *setting, *options, strategy, "--out", tmp_path / f"{name}-{strategy}"]
        for name, setting in settings.items()
        for strategy in ("ddp", "fsdp2")
    ]
    run_processes(train_together, 2, jobs, timeout=500)
    found = {name: largest_difference(tmp_path / f"{name}-ddp", tmp_path / f"{name}-fsdp2") for name in settings}
    # computed again, they are the same; bfloat16 is another computation
    assert largest_difference(tmp_path / "both-ddp", tmp_path / "bf16-mixed-ddp") <= 1e-6
    assert largest_difference(tmp_path / "gradient_checkpointing-ddp", tmp_path / "bf16-mixed-ddp") > 1e-6
    assert max(found.values()) <= 1e-6, found
    reached(", ".join(f"{name}: at most {value:.1e} from DDP" for name, value in found.items()))


def components():
    """Every optimizer and regularizer, found by looking, as options of a command line; with whether it takes parts."""
    found = {}
    for package, base, option in ((optim, OptimizerSpec, "optimizer"), (regularization, Regularizer, "regularizers+")):
        for name in package.__all__:
            each = getattr(package, name)
            if isinstance(each, type) and issubclass(each, base) and each not in (base, Penalty):
                written = {"class_path": f"{package.__name__}.{name}", "init_args": ARGUMENTS.get(name, {})}
                if name == "Adagrad":  # by its own, a hundredth of Adam's, gradients of nothing but rounding are steps
                    written["init_args"] = {"eps": 1e-8}
                found[name] = [f"--model.{option}", json.dumps(written)], each.shardable
    return found


@pytest.mark.nightly
@pytest.mark.timeout(900)
def test_every_component_works_in_parts_or_is_refused(run_processes, tmp_path, capsys):
    jobs, pairs = [], {}
    recipe = write_recipe(tmp_path, "Classification", trainer={"max_steps": 3, "max_epochs": -1})
    refused = []
    for name, (options, shardable) in components().items():
        # the layout that weights in parts have: else convolutions round in another way
        options = [*options, "--model.memory_format", "contiguous", "--data.batch_size", 4, "--trainer.strategy"]
        arguments = ["transfer", "-c", recipe, *options]
        if not shardable:
            with pytest.raises(ValueError, match=r"trainer\.strategy fsdp2 .*(leave|use another)"):
                train(*arguments, "fsdp2", "--out", tmp_path / name)
            assert not (tmp_path / name).exists()
            refused.append(name)
            continue
        pairs[name] = tmp_path / f"{name}-ddp", tmp_path / f"{name}-fsdp2"
        for strategy, run in zip(("ddp", "fsdp2"), pairs[name], strict=True):
            jobs.append([*arguments, strategy, "--out", run])
    run_processes(train_together, 2, jobs, timeout=800)
    found = {name: largest_difference(*runs) for name, runs in pairs.items()}
    with capsys.disabled():
        print(f"\nrefused: {', '.join(refused)}; largest differences {found}")
    assert len(found) > 15
    # a hundredth of a step of AdamW: of gradients that are next to nothing but rounding it makes steps, too
    assert max(found.values()) <= 1e-5, found


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--average.kind", "ema"], "average.kind ema"),
        (["--early_stopping.patience", "2", "--data.val_fraction", "0.2"], "early_stopping.restore_best to false"),
        (["--trainer.precision", "16-mixed"], "computes in 32-true or bf16-mixed, got 16-mixed"),
        (["--model.compile", "true"], "model.compile does not work"),
        (["--model.sync_batchnorm", "false"], "needs model.sync_batchnorm"),
        (["--model.optimizer", "Muon"], "Muon needs whole layers"),
        (["--model.regularizers+", "SAM"], "SAM cannot work with"),
        (["--budget", "1min"], "--budget does not work with"),
        (["--speed", "auto"], "--speed does not work with"),
    ],
)
def test_what_needs_whole_weights_is_refused_before_the_folder_is_a_run(options, words, tmp_path):
    run = tmp_path / "run"
    with pytest.raises(ValueError, match=words) as refused:
        train("pretrain", "-c", write_recipe(tmp_path), "--trainer.strategy", "fsdp2", "--out", run, *options)
    assert "fsdp2" in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not run.exists()


def example(step):
    """A checkpoint as Lightning makes it, small."""
    generator = torch.Generator().manual_seed(step)
    tensors = {"weight": torch.randn(6, 4, generator=generator), "num": torch.tensor(step)}
    moments = {"exp_avg": torch.randn(6, 4, generator=generator), "step": torch.tensor(float(step)), "other": None}
    groups = [{"lr": 0.1, "params": [0]}]
    return {
        "state_dict": tensors, "optimizer_states": [{"state": {0: moments}, "param_groups": groups}],
        "global_step": step, "loops": {}, "pytorch-lightning_version": "2.6.6",
    }  # fmt: skip


def save(run, step):
    path = run / CHECKPOINTS / f"step-{step:010d}.ckpt"
    return sharded.save(path, example(step), [["weight"]])


def assert_is(checkpoint, step):
    expected = example(step)
    assert checkpoint.keys() == expected.keys()
    assert checkpoint["global_step"] == step
    for name, tensor in expected["state_dict"].items():
        assert tensor.equal(checkpoint["state_dict"][name])
    for name, value in expected["optimizer_states"][0]["state"][0].items():
        found = checkpoint["optimizer_states"][0]["state"][0][name]
        assert (value is None and found is None) or value.equal(found)
    assert checkpoint["optimizer_states"][0]["param_groups"] == [{"lr": 0.1, "params": [0]}]


@pytest.fixture
def saved(tmp_path):
    """A run with two checkpoints."""
    for step in (5, 10):
        assert save(tmp_path, step) is None
    return tmp_path


def test_what_is_saved_is_loaded_and_replaced(saved):
    assert_is(read_checkpoint(newest_checkpoint(saved)), 10)
    assert save(saved, 10) is None
    assert_is(read_checkpoint(newest_checkpoint(saved)), 10)
    assert sorted(each.name for each in (saved / CHECKPOINTS).iterdir()) == [
        "step-0000000005.ckpt",
        "step-0000000010.ckpt",
    ]


@pytest.mark.guarantee("R10")
def test_a_damaged_folder_is_passed_over_and_named(saved, capsys, reached):
    newest = saved / CHECKPOINTS / "step-0000000010.ckpt"
    whole = {file.name: file.read_bytes() for file in newest.iterdir()}
    cases = []
    for name, content in whole.items():
        for place in (0, len(content) // 2, len(content) - 2):
            cases.append((name, content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]))
        cases += [(name, content[: len(content) // 2]), (name, b""), (name, None)]
    lines = whole[SUMS].decode().splitlines(keepends=True)
    cases.append((SUMS, "".join(lines[:-1]).encode()))
    for name, content in cases:
        if content is None:
            (newest / name).unlink()
        else:
            (newest / name).write_bytes(content)
        assert newest_checkpoint(saved) == saved / CHECKPOINTS / "step-0000000005.ckpt", name
        said = capsys.readouterr().out
        assert all(words in said for words in (str(newest), "step-0000000005.ckpt"))
        (newest / name).write_bytes(whole[name])
    assert newest_checkpoint(saved) == newest
    reached(f"{len(cases)} of {len(cases)} damages of a checkpoint in parts passed over, a missing part among them")


class Payload:
    """Runs a command when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


@pytest.mark.guarantee("S1")
def test_hostile_files_of_a_folder_run_nothing(saved, tmp_path, monkeypatch, reached):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    newest, marker = saved / CHECKPOINTS / "step-0000000010.ckpt", tmp_path / "executed"
    import pickle

    names = [file.name for file in newest.iterdir() if file.name != SUMS]
    ran = 0
    for name in names:
        whole = (newest / name).read_bytes()
        for write in (lambda file: torch.save(Payload(marker), file), lambda file: pickle.dump(Payload(marker), file)):
            with (newest / name).open("wb") as file:
                write(file)
            # what is not read is not refused
            context = contextlib.nullcontext() if name == ".metadata" else pytest.raises(ValueError, match="run")
            with context:
                read_checkpoint(newest)
            ran += marker.exists()
            (newest / name).write_bytes(whole)
    assert ran == 0
    reached(f"a checkpoint in parts: {ran} of {2 * len(names)} pickles executed")


CLAIMS = {
    "outside of the checkpoint": lambda each: each["parts"][0].__setitem__(2, "../../elsewhere"),
    "beyond its end": lambda each: each["parts"][0].__setitem__(0, [6, 0]),
    "no such bytes": lambda each: each["parts"][0].__setitem__(4, 1 << 40),
    "more numbers than": lambda each: each.update(
        size=[1 << 30, 4], parts=[[[0, 0], [1 << 30, 4], *each["parts"][0][2:]]]
    ),
    "not the whole of its shards": lambda each: each.update(size=[1 << 30, 4]),
    "not the whole": lambda each: each["parts"].clear(),
    "other dimensions": lambda each: each.update(size=[24]),
    "size is .text., expected counts": lambda each: each.update(size="text"),
    "dtype is missing": lambda each: each.pop("dtype"),
}


@pytest.mark.guarantee("S1")
@pytest.mark.parametrize("said", CLAIMS)
def test_what_a_folder_claims_of_its_shards_is_compared_with_its_files(saved, said):
    newest = saved / CHECKPOINTS / "step-0000000010.ckpt"
    rest = torch.load(newest / "rest.pt", weights_only=True)
    CLAIMS[said](rest["tensors"]["state_dict/weight"])
    torch.save(rest, newest / "rest.pt")
    with pytest.raises(ValueError, match=f"{newest}.*{said}") as refused:
        read_checkpoint(newest)
    assert "\n" not in str(refused.value)


def killed_while_saving(folder):
    """For each moment at which a save flushes or renames something: what is there after a kill at that moment."""
    outcomes = []
    for moment in range(100):
        run = Path(folder, str(moment))
        assert save(run, 5) is None
        child = os.fork()
        if child == 0:
            count = iter(range(1000))

            def kill_at(function, count=count, moment=moment):
                def wrapped(*arguments, **options):
                    if next(count) == moment:
                        os.kill(os.getpid(), signal.SIGKILL)
                    return function(*arguments, **options)

                return wrapped

            os.fsync, Path.rename, Path.replace = map(kill_at, (os.fsync, Path.rename, Path.replace))
            save(run, 10)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        newest = newest_checkpoint(run)
        step = int(newest.stem.split("-")[1])
        assert_is(read_checkpoint(newest), step)
        visible = sorted(each.name for each in (run / CHECKPOINTS).iterdir() if not each.name.startswith("."))
        if status == 0:
            return outcomes
        outcomes.append((step, visible))
        # the next start goes on saving, and leaves nothing of the last one
        assert save(run, 15) is None
        assert not list((run / CHECKPOINTS).glob(".*"))
    raise AssertionError("the save never ended")


@pytest.mark.guarantee("R8")
def test_a_kill_at_any_moment_of_a_save_leaves_the_old_or_the_new(run_processes, tmp_path, reached):
    (outcomes,) = run_processes(killed_while_saving, 1, str(tmp_path))
    assert len(outcomes) >= 6
    for step, visible in outcomes:
        assert visible == ["step-0000000005.ckpt"] + ["step-0000000010.ckpt"] * (step == 10)
    assert {step for step, _ in outcomes} == {5, 10}
    reached(f"a checkpoint in parts: killed at {len(outcomes)} of {len(outcomes)} moments of a save, 0 unreadable")


def save_without_room(folder):
    run = Path(folder)
    assert save(run, 5) is None
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, limits[1]))
    problem = save(run, 10)
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    return problem


def test_a_full_disk_keeps_what_was_saved(run_processes, tmp_path):
    (problem,) = run_processes(save_without_room, 1, str(tmp_path))
    assert problem == "File too large"
    assert [each.name for each in (tmp_path / CHECKPOINTS).iterdir()] == ["step-0000000005.ckpt"]
    assert_is(read_checkpoint(newest_checkpoint(tmp_path)), 5)
