"""What a checkpoint claims: each wrong claim ends in one line that names the file, and leaves the run as it was."""

import copy
import shutil

import pytest
import torch

from ssl_toolkit.checkpoint.contents import check_contents
from ssl_toolkit.cli import main
from ssl_toolkit.io.atomic import write_checksum

HUGE = 1 << 70
OPTIMIZER, SCHEDULER, LOOP = "optimizer_states/0", "lr_schedulers/0", "loops/fit_loop"
COUNTS = f"{LOOP}/epoch_loop.batch_progress/current"
MADE = f"{LOOP}/epoch_loop.automatic_optimization.optim_progress/optimizer/step/total/completed"
MISSING = object()

# a place in the checkpoint, what is put there, and what is said of it
CLAIMS = {
    "moments are longer": (f"{OPTIMIZER}/state/0/exp_avg", torch.zeros(1000), r"exp_avg of shape \[1000\]"),
    "moments are shorter": (f"{OPTIMIZER}/state/0/exp_avg", torch.zeros(1), r"exp_avg of shape \[1\]"),
    "moments are turned": (f"{OPTIMIZER}/state/1/exp_avg_sq", torch.zeros(24, 32, 3, 3), "exp_avg_sq of shape"),
    "moments are one number": (f"{OPTIMIZER}/state/0/exp_avg", torch.tensor(0.0), r"exp_avg of shape \[\]"),
    "moments are complex": (f"{OPTIMIZER}/state/17/exp_avg", torch.zeros(24, dtype=torch.cfloat), "complex64"),
    "moments are sparse": (f"{OPTIMIZER}/state/17/exp_avg", torch.zeros(24).to_sparse(), "expected a dense tensor"),
    "moments are missing": (f"{OPTIMIZER}/state/0/exp_avg", MISSING, "lacks exp_avg"),
    "moments are a text": (f"{OPTIMIZER}/state/0/exp_avg", "zeros", "no tensor as exp_avg"),
    "the step is negative": (f"{OPTIMIZER}/state/0/step", torch.tensor(-1.0), "step is -1.0, expected 0 to 6"),
    "the step is many": (f"{OPTIMIZER}/state/0/step", torch.zeros(9), "step is a tensor"),
    "no state": (f"{OPTIMIZER}/state", {}, "state is empty"),
    "no optimizer": ("optimizer_states", [], "optimizer_states is empty"),
    "state of another parameter": (f"{OPTIMIZER}/state/99", {}, "state is of a parameter 99"),
    "parameters twice": (f"{OPTIMIZER}/param_groups/0/params", [0] * 17, "does not number the parameters"),
    "fewer parameters": (f"{OPTIMIZER}/param_groups/1/params", list(range(17, 60)), "groups of"),
    "no groups": (f"{OPTIMIZER}/param_groups", "text", "expected a list"),
    "no schedule": ("lr_schedulers", [], "lr_schedulers is empty"),
    "a method of the schedule": (f"{SCHEDULER}/step", 5, "unknown entry 'step'"),
    "a schedule that is elsewhere": (f"{SCHEDULER}/last_epoch", 4, "last_epoch is 4"),
    "a schedule without its factors": (f"{SCHEDULER}/lr_lambdas", MISSING, "lack lr_lambdas"),
    "a schedule of more groups": (f"{SCHEDULER}/lr_lambdas", [{}] * 9, "each of 2 groups"),
    "an epoch as text": ("epoch", "1", "epoch is '1'"),
    "a negative step": ("global_step", -6, "global_step is -6"),
    "a step that is not the file's": ("global_step", 7, "not that of the file's name"),
    "huge counts": (MADE, HUGE, "a huge number"),
    "more steps than were made": (MADE, 10**9, "its loops count 1000000000"),
    "a method of a counter": (f"{COUNTS}/reset", 5, "unknown entry 'reset'"),
    "a counter is missing": (f"{COUNTS}/processed", MISSING, "processed is missing"),
    "no loops": ("loops", {}, "loops.fit_loop is missing"),
    "loops are a list": (LOOP, [1], "expected a dictionary"),
    "a version that is none": ("pytorch-lightning_version", "new\n\x1b[31m", r"is 'new\\n\\x1b\[31m'"),
    "a version of long ago": ("pytorch-lightning_version", "0.9.0", "a version of Lightning"),
    "no callbacks": ("callbacks", MISSING, "callbacks is missing"),
    "a callback's count as text": ("callbacks/NonFinite/num_skipped", "many", "num_skipped is 'many'"),
    "findings of another form": ("callbacks/Watch/findings", {"loss": ["a"]}, "expected three texts"),
    "an average of another shape": (
        "callbacks/WeightAverage", {"num": 1, "average": {"backbone.model.bn1.weight": torch.zeros(1)}}, "the shape",
    ),
    "no place in the data": ("ImageData", MISSING, "place in the data is missing"),
    "a negative place": ("ImageData/batch", -1, "batch is -1"),
    "a place in a later epoch": ("ImageData/epoch", 7, "ImageData.epoch 7"),
    "a place beyond the epoch": ("ImageData/batch", 10**6, "cannot resume at batch 1000000"),
    "batches of another size": ("ImageData/global_batch", 7, "whose batches have 7 images"),
    "progress of nothing": ("progress", [6, 0, 5.0], "all steps"),
    "weights are a list": ("state_dict", [], "state_dict is a list"),
    "a weight is a number": ("state_dict/backbone.model.bn1.weight", 1.0, "expected a dense tensor"),
    "a weight is missing": ("state_dict/backbone.model.bn1.weight", MISSING, "of another network"),
    "a weight of another shape": ("state_dict/backbone.model.bn1.weight", torch.ones(3), "of another network"),
}  # fmt: skip


@pytest.fixture(scope="module")
def begun(begin_run):
    """A run of eight steps, with its state after six of them."""
    return begin_run(8, 3)


def change(checkpoint, place, value):
    *path, last = (int(each) if each.isdigit() else each for each in place.split("/"))
    for each in path:
        checkpoint = checkpoint[each]
    if value is MISSING:
        del checkpoint[last]
    else:
        checkpoint[last] = value


@pytest.mark.guarantee("S1")
@pytest.mark.parametrize("claim", CLAIMS)
def test_a_checkpoint_that_claims_what_cannot_be_is_refused_in_one_line(claim, begun, tmp_path, capsys, reached):
    place, value, words = CLAIMS[claim]
    run = tmp_path / "run"
    shutil.copytree(begun, run)
    file = run / "checkpoints" / "step-0000000006.ckpt"
    checkpoint = torch.load(file, weights_only=True)
    change(checkpoint, place, value)
    torch.save(checkpoint, file)
    write_checksum(file, file)
    before = {each: each.read_bytes() for each in sorted(run.rglob("*")) if each.is_file()}

    assert main(["pretrain", "--resume", str(run)]) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line]
    assert len(said) == 1, said
    assert said[0].startswith("ssl-toolkit: error: ")
    assert str(file) in said[0]
    with pytest.raises(ValueError, match=words):
        raise ValueError(said[0])
    assert {each: each.read_bytes() for each in sorted(run.rglob("*")) if each.is_file()} == before
    reached(f"{len(CLAIMS)} wrong claims of a checkpoint, each refused in one line")


def places(checkpoint, path=()):
    entries = checkpoint.items() if isinstance(checkpoint, dict) else enumerate(checkpoint)
    for key, each in entries:
        yield *path, key
        if isinstance(each, (dict, list)) and len(path) < 9:
            yield from places(each, (*path, key))


@pytest.mark.guarantee("S1")
@pytest.mark.slow
def test_no_entry_of_the_loops_may_be_anything_else(begun, reached):
    """Lightning looks at no type: what passes here would end in a traceback, or in other counts."""
    file = begun / "checkpoints" / "step-0000000006.ckpt"
    whole = torch.load(file, weights_only=True)
    check_contents(whole, file)
    fit_loop, num = whole["loops"]["fit_loop"], 0
    inert = ("state_dict", "automatic_optimization.state_dict", "manual_optimization.state_dict", "val_loop.state_dict")
    for path in places(fit_loop):
        if any(str(path[0]).endswith(each) for each in inert):
            continue
        for value in ("text", -1, HUGE, None, [], {}, 1.5, float("nan"), torch.zeros(3), MISSING):
            changed = copy.deepcopy(whole)
            place = changed["loops"]["fit_loop"]
            for key in path[:-1]:
                place = place[key]
            if value is MISSING:
                del place[path[-1]]
            else:
                place[path[-1]] = value
            with pytest.raises(ValueError, match="step-0000000006") as refused:
                check_contents(changed, file)
            assert "\n" not in str(refused.value)
            num += 1
    reached(f"{num} of {num} wrong entries of Lightning's loops refused")
