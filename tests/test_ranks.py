"""What processes send each other, on one, two and three of them, against the answer written down by hand."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from several_ranks import tour

from instdisc import ranks
from instdisc.errors import InputError

WORLDS = (2, 3)


def counts_of(world: int) -> list[int]:
    """How many rows each rank of the tour brings: the last one none."""
    return [*range(1, world), 0]


@pytest.mark.parametrize("world", WORLDS)
def test_every_rank_knows_itself(world: int) -> None:
    facts = tour(world)
    assert [each["ranks.world"].item() for each in facts] == [world] * world
    assert [each["ranks.main"].item() for each in facts] == [True] + [False] * (world - 1)
    assert all(each["ranks.sizes"].tolist() == counts_of(world) for each in facts)


@pytest.mark.parametrize("world", WORLDS)
def test_shares_in_a_group_are_this_ranks(world: int) -> None:
    expected = {2: [[0, 5], [5, 10]], 3: [[0, 4], [4, 7], [7, 10]]}[world]
    assert [each["ranks.share"].tolist() for each in tour(world)] == expected


@pytest.mark.parametrize("count", [0, 1, 2, 7, 8, 9, 1000])
@pytest.mark.parametrize("total", [1, 2, 3, 8])
def test_shares_cover_everything_once_and_differ_by_one_at_most(count: int, total: int) -> None:
    shares = [ranks.share(count, of, total) for of in range(total)]
    assert [row for first, stop in shares for row in range(first, stop)] == list(range(count))
    lengths = [stop - first for first, stop in shares]
    assert max(lengths) - min(lengths) <= 1
    assert ranks.share(count) == (0, count), "one process holds all"


@pytest.mark.fault("a partial last batch written to wrong rows")
@pytest.mark.parametrize("world", WORLDS)
def test_gather_takes_uneven_and_empty_parts_in_rank_order(world: int) -> None:
    expected = [[float(rank)] * 2 for rank, count in enumerate(counts_of(world)) for _ in range(count)]
    numbers = [number for count in counts_of(world) for number in range(count)]
    for each in tour(world):
        assert each["ranks.gathered"].tolist() == expected
        assert each["ranks.gathered_whole_numbers"].tolist() == numbers


@pytest.mark.parametrize("world", WORLDS)
def test_sums_maxima_and_decisions_are_the_same_everywhere(world: int) -> None:
    for each in tour(world):
        assert each["ranks.total"].tolist() == [world, sum(range(world))]
        assert each["ranks.largest"].tolist() == [-1, world - 1]
        assert each["ranks.any"].tolist() == [True, False]
        assert bytes(each["ranks.word"].tolist()) == b"from 1"


@pytest.mark.fault("`all_reduce` without a backward: gradient off by 1/world_size though the loss is right")
@pytest.mark.parametrize("world", WORLDS)
def test_gather_with_gradient_sums_what_every_rank_says_of_a_part(world: int) -> None:
    """Rank r's loss is (r + 1) sum_j x_j^2 over everyone's x: d/dx_j of the sum of losses is 2 x_j sum_r (r + 1)."""
    weight = sum(range(1, world + 1))
    for each in tour(world):
        assert torch.equal(each["ranks.gradient"], 2 * weight * each["ranks.gradient_leaf"])


@pytest.mark.parametrize("world", WORLDS)
def test_statistics_and_gradients_are_averaged(world: int) -> None:
    middle = sum(range(world)) / world
    for rank, each in enumerate(tour(world)):
        torch.testing.assert_close(each["ranks.mean"], torch.tensor([0.0, middle]))
        assert each["ranks.batches"].item() == 7 + rank, "a count of batches is no statistic"
        assert each["ranks.averaged"].item() == pytest.approx(middle)
        assert each["ranks.same_module"].tolist() == [False, True], "a module without parameters has nothing to average"


def test_one_process_sends_nothing() -> None:
    (facts,) = tour(1)
    assert facts["ranks.same_module"].all()
    rows = torch.ones(3, 2, requires_grad=True)
    assert ranks.gather_with_gradient(rows) is rows
    for answer in (ranks.gather(rows), ranks.total(rows), ranks.largest(rows)):
        assert torch.equal(answer, rows)
        assert not answer.requires_grad
    assert ranks.sizes(5) == [5]
    assert ranks.any_rank(True) is True
    assert ranks.any_rank(False) is False
    assert ranks.broadcast_object({"a": 1}) == {"a": 1}
    assert ranks.is_main()
    ranks.barrier()
    ranks.stop()


def test_start_joins_the_group_that_torchrun_made(monkeypatch: pytest.MonkeyPatch) -> None:
    joined = []
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda backend, **settings: joined.append(backend))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(ranks, "_meet", lambda timeout: {})
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with ranks.distributed():
        assert joined == [], "an ordinary start is one process"
    monkeypatch.setenv("WORLD_SIZE", "1")
    ranks.start()
    assert joined == []
    monkeypatch.setenv("WORLD_SIZE", "2")
    ranks.start()
    assert joined == ["gloo"]


SUM = """
import os, sys, time, torch
from instdisc import ranks
time.sleep(float(sys.argv[1]))
ranks.start()
print(ranks.total(torch.tensor(ranks.rank() + 1)).item(), flush=True)
os._exit(0)  # as if killed: nothing is taken back from the store
"""


def test_who_is_started_anew_does_not_meet_the_dead() -> None:
    """One store for three starts, as torchrun keeps it; from the second on rank 1 is early, then rank 0."""
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    environment = os.environ | {
        "GLOO_SOCKET_IFNAME": "lo",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "WORLD_SIZE": "2",
    }
    for waits in ((0, 0), (2, 0), (0, 2)):
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", SUM, str(wait)],
                env=environment | {"RANK": str(rank), "TORCHELASTIC_RESTART_COUNT": str(3 * rank)},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for rank, wait in enumerate(waits)
        ]
        try:
            said = [process.communicate(timeout=500)[0] for process in processes]
        finally:
            for process in processes:
                process.kill()
        assert [text.split()[-1] for text in said] == ["3", "3"], said


@pytest.mark.parametrize("rank", [0, 1])
def test_who_is_left_alone_is_told(rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank 1 finds what a rank 0 that is dead had left."""
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    store.set("start", "before")
    store.set("before/met", "another")
    told = {"WORLD_SIZE": "2", "RANK": str(rank), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    for name, value in (told | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)}).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=r"2 processes have not met .*: start them all with torchrun"):
        ranks._meet(timedelta(seconds=1))
    monkeypatch.delenv("MASTER_ADDR")
    with pytest.raises(InputError, match=r"MASTER_ADDR.*or one alone without WORLD_SIZE"):
        ranks._meet(timedelta(seconds=1))


def test_nothing_of_the_group_outlives_it(tmp_path: Path) -> None:
    """A thread of gloo that lets go of a tensor while the interpreter ends would abort a run that has succeeded."""
    if not Path("/proc/self/task").exists():
        pytest.skip("the names of threads are read from /proc")
    program = f"""
import pathlib, torch
from instdisc import ranks
def gloo():
    names = [(task / "comm").read_text() for task in pathlib.Path("/proc/self/task").iterdir()]
    return [name for name in names if "gloo" in name]
ranks.join("gloo", init_method="file://{tmp_path}/meeting", world_size=1, rank=0)
layer = torch.nn.Linear(2, 1)
layer(torch.ones(1, 2)).sum().backward()
torch.optim.SGD(layer.parameters(), lr=0.1).step()
torch.distributed.all_reduce(torch.ones(1))
before = len(gloo())
ranks.stop()
print(before > 0, gloo())
"""
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, timeout=500)
    assert done.stdout.strip() == "True []", done.stdout + done.stderr


def test_device_that_is_not_there_is_told() -> None:
    assert ranks.device("cpu") == torch.device("cpu")
    assert ranks.device().type in ("cpu", "cuda", "mps")
    for missing in ("nonsense", "cuda:99"):
        with pytest.raises(InputError, match="take cpu"):
            ranks.device(missing)
