"""Checkpoints: exact round trips, what is kept and skipped, loading, and no pickle."""

from __future__ import annotations

import io
import json
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from torch import nn

from instdisc import checkpoint, files
from instdisc.checkpoint import (
    DamagedError,
    Shard,
    latest,
    load_encoder,
    open_checkpoint,
    save,
)
from instdisc.encoder import build_encoder
from instdisc.errors import InputError
from instdisc.files import write_json
from instdisc.runs import RunFolder
from instdisc.training.optimizer_state import flatten_optimizer, unflatten_optimizer


def small_save(folder: Path, step: int, **changes: Any) -> Path:
    tensors = {"encoder": {"weight": torch.full((3, 4), float(step))}, "optimizer": {"momentum": torch.ones(2)}}
    shard = Shard({"rows": torch.full((5, 2), float(step))}, 0, 5)
    return save(
        folder, **{"step": step, "tensors": tensors, "facts": {"epoch": step}, "shards": {"bank": shard}} | changes
    )


def same(left: Any, right: Any) -> bool:
    """Equal in value, type, order and dtype, tensors bit for bit."""
    if type(left) is not type(right):
        return False
    if isinstance(left, torch.Tensor):
        equal = left.dtype == right.dtype and left.shape == right.shape and left.stride() == right.stride()
        return equal and left.numpy().tobytes() == right.numpy().tobytes()
    if isinstance(left, dict):
        return list(left) == list(right) and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    return left == right or (left != left and right != right)


# ---------------------------------------------------------------------------------------------------------------------
# Round trips


@pytest.mark.fault("the bank is not saved: resume starts from noise")
@pytest.mark.fault("optimizer missing from a checkpoint")
@pytest.mark.fault("random states missing from a checkpoint")
@pytest.mark.fault("bank missing from a checkpoint")
@pytest.mark.parametrize(
    "make",
    [
        lambda weights: torch.optim.SGD(weights, lr=0.03, momentum=0.9, weight_decay=5e-4),
        lambda weights: torch.optim.SGD([{"params": [weight], "lr": 0.1 / 3} for weight in weights], lr=1),
        lambda weights: torch.optim.AdamW(weights, lr=torch.tensor(1e-3), betas=(0.9, 0.95)),
    ],
)
def test_training_continues_bit_for_bit(
    make: Callable[[list[nn.Parameter]], torch.optim.Optimizer], tmp_path: Path
) -> None:
    def step(network: nn.Module, optimizer: torch.optim.Optimizer, bank: torch.Tensor) -> None:
        images = torch.rand(4, 3, 8, 8).contiguous(memory_format=torch.channels_last)
        loss = (network(images) - bank[:4]).square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        bank[:4] = torch.randn(4, 6)

    def fresh() -> tuple[nn.Module, torch.optim.Optimizer, torch.Tensor]:
        network = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.Flatten(), nn.Linear(180, 6))
        network.to(memory_format=torch.channels_last)
        return network, make(list(network.parameters())), torch.zeros(9, 6)

    def save_all(folder: Path) -> None:
        moments, rest = flatten_optimizer(optimizer.state_dict())
        save(
            folder,
            step=3,
            tensors={"encoder": network.state_dict(), "optimizer": moments},
            facts={"epoch": 2, "seconds": 0.1 + 0.2, "optimizer": rest},
            shards={"bank": Shard({"rows": bank}, 0, 9)},
        )

    network, optimizer, bank = fresh()
    for _ in range(3):
        step(network, optimizer, bank)
    save_all(tmp_path)
    for _ in range(2):
        step(network, optimizer, bank)

    torch.manual_seed(99)
    resumed = latest(tmp_path)
    assert resumed is not None
    assert (resumed.step, resumed.facts["epoch"], resumed.facts["seconds"]) == (3, 2, 0.1 + 0.2)
    other, other_optimizer, other_bank = fresh()
    other.load_state_dict(resumed.tensors("encoder"))
    other_optimizer.load_state_dict(unflatten_optimizer(resumed.tensors("optimizer"), resumed.facts["optimizer"]))
    other_bank.copy_(resumed.rows("bank", 0, 9)["rows"])
    resumed.restore_random()
    for _ in range(2):
        step(other, other_optimizer, other_bank)
    assert same(other.state_dict() | {}, network.state_dict() | {})
    assert same(other_optimizer.state_dict(), optimizer.state_dict())
    assert torch.equal(other_bank, bank)


TENSORS = [
    torch.arange(6).reshape(2, 3),
    torch.tensor(3.5, dtype=torch.float64),
    torch.zeros(0, 4),
    torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
    torch.tensor([True, False]),
]
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(TENSORS)
    | st.sampled_from(["$tensor", "$map"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(
            st.text(max_size=3) | st.sampled_from(["$tensor", "$float", "a.b"]) | st.integers(0, 9), inner, max_size=4
        )
    ),
    max_leaves=12,
)


@hypothesis.given(VALUES)
@hypothesis.settings(max_examples=200, deadline=None, derandomize=True)
def test_any_state_dict_comes_back_exactly_through_json(state: Any) -> None:
    tensors, rest = flatten_optimizer(state)
    assert same(unflatten_optimizer(tensors, json.loads(json.dumps(rest, allow_nan=False))), state)


def test_what_only_pickle_could_hold_is_refused() -> None:
    with pytest.raises(TypeError, match="groups.0.schedule is a function"):
        flatten_optimizer({"groups": [{"schedule": lambda step: step}]})


def test_kinds_of_tensors(tmp_path: Path) -> None:
    shared = torch.randn(4, 3)
    group = {
        "tied": shared,
        "tied again": shared,
        "transposed": shared.T,
        "part": torch.arange(100.0)[10:20],
        "scalar": torch.tensor(7),
        "half": torch.randn(3).bfloat16(),
        "empty": torch.zeros(0, 5),
        "learned": nn.Parameter(torch.ones(2)),
    }
    small_save(tmp_path, 1, tensors={"objective": group, "nothing": {}})
    found = open_checkpoint(tmp_path / "step-000000001")
    restored = found.tensors("objective")
    assert restored.keys() == group.keys()
    assert all(torch.equal(restored[name], group[name]) for name in group)
    assert restored["half"].dtype == torch.bfloat16
    assert found.tensors("nothing") == {}
    assert (found.path / "objective.safetensors").stat().st_size < 2000, "a view is saved without what it is a view of"
    with pytest.raises(InputError, match='holds no "bank2"'):
        found.tensors("bank2")


# ---------------------------------------------------------------------------------------------------------------------
# Keeping, replacing, skipping


def test_only_the_newest_are_kept_and_leftovers_go(tmp_path: Path) -> None:
    (tmp_path / ".step-000000007.tmp").mkdir(parents=True)
    (tmp_path / ".step-000000007.tmp" / "encoder.safetensors").write_bytes(b"half")
    (tmp_path / "notes.txt").write_text("a person's own")
    for step in (1, 2, 10, 1_234_567_890):
        small_save(tmp_path, step, keep=2)
    assert {path.name for path in tmp_path.iterdir()} == {"step-000000010", "step-1234567890", "notes.txt"}
    found = latest(tmp_path)
    assert found is not None
    assert found.step == 1_234_567_890
    names = {path.name for path in found.path.iterdir()}
    assert names == {
        "encoder.safetensors",
        "optimizer.safetensors",
        "bank-00000-of-00001.safetensors",
        "random-00000-of-00001.safetensors",
        "state.json",
    }


def test_a_step_that_stands_is_left_and_a_damaged_one_replaced(tmp_path: Path) -> None:
    path = small_save(tmp_path, 5)
    written = (path / "state.json").stat().st_mtime_ns
    assert small_save(tmp_path, 5, facts={"epoch": 77}) == path
    assert (path / "state.json").stat().st_mtime_ns == written
    (path / "encoder.safetensors").unlink()
    small_save(tmp_path, 5, facts={"epoch": 77})
    assert open_checkpoint(path).facts == {"epoch": 77}


def test_a_save_never_removes_what_is_newer(tmp_path: Path) -> None:
    """A run resumed from 10 because 20 is damaged must not count 20 as one of those to keep."""
    for step in (10, 20):
        small_save(tmp_path, step)
    (tmp_path / "step-000000020" / "state.json").write_text("{}")
    small_save(tmp_path, 15, keep=2)
    assert {path.name for path in tmp_path.iterdir()} == {f"step-0000000{step}" for step in (10, 15, 20)}


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) * 3 // 4] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        flip,
        lambda file: file.unlink(),
        lambda file: file.write_bytes(file.read_bytes()[:-1]),
        lambda file: file.write_bytes(b""),
        lambda file: file.write_bytes(b"[1, 2]"),
    ],
)
@pytest.mark.parametrize(
    "name",
    [
        "encoder.safetensors",
        "bank-00000-of-00001.safetensors",
        "random-00000-of-00001.safetensors",
        "state.json",
    ],
)
def test_damage_is_seen_and_the_one_before_is_taken(name: str, damage: Callable[[Path], None], tmp_path: Path) -> None:
    for step in (1, 2):
        small_save(tmp_path, step)
    damage(tmp_path / "step-000000002" / name)
    warnings: list[str] = []
    found = latest(tmp_path, warn=warnings.append)
    assert found is not None
    assert found.step == 1
    assert len(warnings) == 1
    assert f"step-000000002 is damaged ({name}" in warnings[0]
    with pytest.raises(DamagedError):
        open_checkpoint(tmp_path / "step-000000002")


def test_only_named_groups_are_hashed_when_only_they_are_wanted(tmp_path: Path) -> None:
    path = small_save(tmp_path, 1)
    flip(path / "bank-00000-of-00001.safetensors")
    assert latest(tmp_path, verify=("encoder",)) is not None
    assert latest(tmp_path, verify=("bank",), warn=lambda text: None) is None


def test_no_checkpoint_and_a_newer_format(tmp_path: Path) -> None:
    assert latest(tmp_path / "nowhere") is None
    assert latest(tmp_path) is None
    path = small_save(tmp_path, 1)
    state = json.loads((path / "state.json").read_text())
    (path / "state.json").write_text(json.dumps(state | {"format": 2}))
    with pytest.raises(InputError, match="newer version"):
        latest(tmp_path)


# ---------------------------------------------------------------------------------------------------------------------
# load


CHOICES: dict[str, Any] = {"backbone": "conv6", "width": 4, "dim": 8}
CHOICES |= {"image_size": 24, "crop_fraction": 0.75, "mean": (0.1, 0.2, 0.3), "std": (0.5, 0.6, 0.7)}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    encoder = build_encoder(CHOICES, seed=7)
    # As if it had started from published weights: loading must not ask the network for them again.
    write_json(
        RunFolder(tmp_path).config, {"format": 1, "encoder": encoder.describe() | {"pretrained": "gone.safetensors"}}
    )
    save(RunFolder(tmp_path).checkpoints, step=12, tensors={"encoder": encoder.state_dict()}, facts={})
    return tmp_path


@pytest.mark.fault("normalisation at search time other than at training time")
@pytest.mark.fault("image size at search time other than at training time")
def test_load_gives_the_encoder_with_its_preprocessing(run: Path) -> None:
    original = build_encoder(CHOICES, seed=7)
    encoder = load_encoder(str(run))
    assert encoder.preprocessing == original.preprocessing
    found = {name: getattr(encoder.preprocessing, name) for name in ("size", "crop_fraction", "mean", "std")}
    usual = build_encoder({"backbone": "conv6", "width": 4, "dim": 8}).preprocessing
    assert found == {"size": 24, "crop_fraction": 0.75, "mean": (0.1, 0.2, 0.3), "std": (0.5, 0.6, 0.7)}
    assert all(getattr(usual, name) != value for name, value in found.items()), "what is usual would show nothing"
    assert not encoder.training
    assert encoder.origin == f"step 12 of {run}"
    pictures = np.random.default_rng(0).integers(0, 256, (3, 40, 50, 3), dtype=np.uint8)
    assert torch.equal(encoder.embed(pictures), original.embed(pictures))


def broken_runs() -> Iterator[Any]:
    def config(**changes: Any) -> Callable[[Path], None]:
        def act(run: Path) -> None:
            file = RunFolder(run).config
            write_json(file, {**json.loads(file.read_text()), **changes})

        return act

    yield pytest.param(lambda run: RunFolder(run).config.unlink(), "not a run folder", id="no config")
    yield pytest.param(lambda run: RunFolder(run).config.write_text("{"), "damaged", id="cut config")
    yield pytest.param(config(format=2), "newer version", id="newer")
    yield pytest.param(config(encoder={"backbone": "resnet19"}), "no backbone", id="backbone")
    yield pytest.param(config(encoder={"backbone": "conv6", "dim": 8}), "do not fit", id="other encoder")
    yield pytest.param(config(encoder=None), "does not describe an encoder", id="no encoder")
    yield pytest.param(
        lambda run: (RunFolder(run).checkpoints / "step-000000012" / "state.json").unlink(), "no whole", id="damaged"
    )


@pytest.mark.parametrize(("breaking", "words"), list(broken_runs()))
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_load_of_what_is_no_good_run_gets_a_sentence(breaking: Callable[[Path], None], words: str, run: Path) -> None:
    breaking(run)
    with pytest.raises(InputError, match=words):
        load_encoder(run)
    with pytest.raises(InputError, match="no run folder"):
        load_encoder(run / "nowhere")


# ---------------------------------------------------------------------------------------------------------------------
# No pickle


@pytest.mark.fault("pickle: loading a stranger's checkpoint runs their code")
@pytest.mark.parametrize("form", ["pickle", "torch.save"])
def test_a_pickle_among_the_files_is_never_run(form: str, run: Path) -> None:
    """A stranger's checkpoint: its code would leave a trace, and its state.json says that all is well."""
    trace = run / "trace"
    for group in ("encoder", "bank-00000-of-00001"):
        path = save(
            RunFolder(run).checkpoints,
            step=13,
            tensors={"encoder": {"weight": torch.ones(2)}},
            facts={},
            shards={"bank": Shard({"rows": torch.ones(2, 3)}, 0, 2)},
        )
        with open(path / f"{group}.safetensors", "wb") as file:
            (pickle.dump if form == "pickle" else torch.save)(RunsCode(trace), file)
        state = json.loads((path / "state.json").read_text())
        state["files"][f"{group}.safetensors"] = files.file_digest(path / f"{group}.safetensors")
        del state["sha256"]
        (path / "state.json").write_text(json.dumps(state | {"sha256": checkpoint._digest(state)}))
        found = latest(path.parent)
        assert found is not None and found.step == 13, "it is taken for whole"
        with pytest.raises((SafetensorError, InputError)):
            load_encoder(run) if group == "encoder" else found.rows("bank", 0, 2)
        assert not trace.exists()
        if form == "pickle":
            pickle.loads((path / f"{group}.safetensors").read_bytes())  # noqa: S301
        else:
            torch.load(io.BytesIO((path / f"{group}.safetensors").read_bytes()), weights_only=False)
        assert trace.is_file(), "this is what a reader of pickles does"
        trace.unlink()
        shutil.rmtree(path)


class RunsCode:
    """Whoever unpickles it writes a file."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.trace,)
