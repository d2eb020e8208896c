"""The graph against exact search: what it finds is ranked and scored exactly, and its recall is what it says."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
import usearch.index
from serving import served
from test_search_pairs import clustered
from tiny_runs import picture_folder, tiny

from instdisc.errors import InputError
from instdisc.jobs.duplicates import duplicates, look_alikes
from instdisc.jobs.leaks import leaks
from instdisc.jobs.map import make_map
from instdisc.jobs.outliers import outliers
from instdisc.jobs.train import train
from instdisc.search.approximate import Graph
from instdisc.search.index import Index
from instdisc.search.pairs import Vectors, neighbours_of_all, similar_pairs
from instdisc.serve.opened import Opened


@pytest.fixture(scope="module")
def rows() -> torch.Tensor:
    return clustered(6_000, 48, 0, spread=0.8)


@pytest.fixture(scope="module")
def graph(rows: torch.Tensor) -> Graph:
    return Graph(Vectors.of(rows))


def test_the_recall_is_what_a_count_over_all_gives(rows: torch.Tensor, graph: Graph) -> None:
    found = graph.neighbours_of_all(10)[1]
    products = rows.double() @ rows.double().T
    products.fill_diagonal_(-2)
    true = products.topk(10, dim=1).indices.numpy()
    recall = np.mean([len(np.intersect1d(a, b)) / 10 for a, b in zip(found, true, strict=True)])
    assert graph.recall >= 0.99
    assert recall == pytest.approx(graph.recall, abs=0.01)


def test_scores_are_exact_in_order_and_never_the_picture_itself(rows: torch.Tensor, graph: Graph) -> None:
    own = np.arange(0, 6_000, 7)
    scores, places = graph.search(rows[own], 12, exclude=own)
    expected = (rows[own].double()[:, None] * rows[places].double()).sum(2)
    assert torch.allclose(scores.double(), expected, atol=1e-6)
    assert (scores.diff(dim=1) <= 0).all()
    assert not (places == torch.from_numpy(own)[:, None]).any()
    assert all(len(set(line)) == 12 for line in places.tolist())


def test_a_narrow_graph_is_searched_more_broadly_until_it_is_good(rows: torch.Tensor) -> None:
    narrow = usearch.index.Index(ndim=48, metric="ip", dtype="f16", connectivity=4, expansion_add=8)
    narrow.add(np.arange(6_000), rows.numpy())
    poor, good = (Graph(Vectors.of(rows), links=narrow, recall=recall) for recall in (0.5, 0.999))
    assert poor.breadth < good.breadth == 1_024
    assert 0.5 <= poor.recall < good.recall < 0.999, "not as good as asked for, and it says so"


@pytest.mark.parametrize("count", [1, 2, 9, 40])
def test_small_collections_are_answered_whole(count: int) -> None:
    """All others are asked for: what the graph does not reach is found exactly."""
    rows = clustered(count, 8, 1, spread=1.0)
    graph = Graph(Vectors.of(rows))
    places = graph.search(rows, count)[1]
    assert all(sorted(line) == list(range(count)) for line in places.tolist())
    with pytest.raises(InputError, match=r"ask for fewer"):
        graph.search(rows, count + 1)
    with pytest.raises(InputError, match=r"at least one"):
        graph.search(rows, 0)
    if count > 1:
        exact = neighbours_of_all(Vectors.of(rows), count - 1)
        np.testing.assert_allclose(graph.neighbours_of_all(count - 1)[0], exact[0], atol=1e-6)


def test_pairs_are_nearly_all_and_none_is_wrong(rows: torch.Tensor, graph: Graph) -> None:
    """Pictures with more copies than are asked for at first (a clique of 90) included."""
    copies = torch.nn.functional.normalize(rows[:1] + 0.01 * clustered(90, 48, 5), dim=1)
    whole = torch.cat([rows, copies])
    exact = similar_pairs(Vectors.of(whole), 0.8)
    found = Graph(Vectors.of(whole)).similar_pairs(0.8)
    wanted = set(zip(exact.first.tolist(), exact.second.tolist(), strict=True))
    given = list(zip(found.first.tolist(), found.second.tolist(), strict=True))
    assert len(exact) > 90 * 89 // 2 and len(given) == len(set(given))
    assert len(wanted & set(given)) >= 0.99 * len(wanted) and len(set(given) - wanted) <= 2  # at the very threshold
    assert (found.first < found.second).all() and (np.diff(found.scores) <= 0).all()
    with pytest.raises(InputError, match="higher similarity"):
        graph.similar_pairs(0.01, most=1_000)

    others = clustered(500, 48, 0, spread=0.1)
    exact = similar_pairs(Vectors.of(rows), 0.6, against=Vectors.of(others))
    found = graph.similar_pairs(0.6, against=Vectors.of(others))
    wanted = set(zip(exact.first.tolist(), exact.second.tolist(), strict=True))
    given = list(zip(found.first.tolist(), found.second.tolist(), strict=True))
    assert len(wanted) > 200 and len(wanted & set(given)) >= 0.99 * len(wanted)


def test_an_index_answers_by_the_graph_as_without(rows: torch.Tensor) -> None:
    """With pictures removed, one left out a query, and filters."""
    names = pa.table(
        {"id": [f"{row}.png" for row in range(6_000)], "location": [f"/{row}.png" for row in range(6_000)]}
    )
    removed = np.arange(6_000) % 5 == 0
    index, exact = (Index([rows[:2_000], rows[2_000:]], names, removed=removed) for _ in range(2))
    assert index.approximate() >= 0.99
    index.removed[1] = exact.removed[1] = True  # after the graph was built
    own = np.arange(3, 6_000, 10)
    few = np.ones(6_000, bool)
    few[rng_rows := np.random.default_rng(0).choice(6_000, 500, replace=False)] = False
    for among in (None, few, np.arange(6_000) < 300):
        found = index.search(rows[own], 10, among=among, exclude=own)
        wanted = exact.search(rows[own], 10, among=among, exclude=own)
        assert (found[0] - wanted[0]).abs().max() < 1e-5 or (found[0] >= wanted[0][:, -1:] - 1e-6).float().mean() > 0.99
        assert not index.removed[found[1].numpy()].any() and not (found[1] == torch.from_numpy(own)[:, None]).any()
        assert among is not few or not np.isin(found[1].numpy(), rng_rows).any()


def test_rows_that_are_no_answers_are_passed_over_by_the_graph_as_without(rows: torch.Tensor) -> None:
    names = pa.table({"id": [f"{row}.png" for row in range(400)], "location": [f"/{row}.png" for row in range(400)]})
    removed = np.arange(400) % 50 == 7
    index, exact = (Index([rows[:400]], names, removed=removed) for _ in range(2))
    index.approximate()
    for without, exclude in (([], None), ([3, 4, 4, 7], None), ([9], np.array([2, 9, -1]))):
        found, wanted = (one.search(rows[1:4], 20, without=without, exclude=exclude) for one in (index, exact))
        assert torch.equal(found[1], wanted[1]) and torch.allclose(found[0], wanted[0], atol=1e-6)
        assert not np.isin(found[1].numpy(), without).any() and not removed[found[1].numpy()].any()
    for one in (index, exact):
        with pytest.raises(InputError, match="389 pictures are there"):  # 8 were removed, 3 are left out
            one.search(rows[:1], 390, without=[3, 4, 5, 7])
    assert len(index.search(rows[:1], 389, without=[3, 4, 5, 7])[1][0]) == 389


def test_the_commands_answer_alike(tmp_path: Path) -> None:
    pictures = picture_folder(tmp_path / "pictures", 60)
    shutil.copy(pictures / "red" / "0003.png", pictures / "blue" / "copy.png")
    run = train(pictures, tmp_path / "run", tiny(epochs=1), say=None).path
    other = picture_folder(tmp_path / "other", 12)
    for job in (
        lambda **how: duplicates(run, out=tmp_path / "out", say=None, **how),
        lambda **how: look_alikes(run, threshold=0.9, out=tmp_path / "out", say=None, **how),
        lambda **how: leaks(run, other, look_alikes=True, threshold=0.9, out=tmp_path / "out", say=None, **how),
        lambda **how: outliers(run, by="similarity", out=tmp_path / "out", say=None, **how),
    ):
        found = job(approximate=True)
        assert found and [one.__class__ for one in found] == [one.__class__ for one in job()]
        assert len(found) == len(job())
    assert make_map(run, approximate=True, say=None).is_file()

    said: list[str] = []
    one = Opened(run, device="cpu")
    one.approximate(said.append)
    assert "100.0 %" in said[0]
    with served(one) as client, served(run) as exact:
        near, all_looked_at = (page.json("/api/neighbours/3")["results"] for page in (client, exact))
        assert len({hit["row"] for hit in near}) == len(all_looked_at)
        np.testing.assert_allclose(*([hit["score"] for hit in hits] for hits in (near, all_looked_at)), atol=1e-5)


def test_without_usearch_a_sentence_says_what_to_install(tmp_path: Path) -> None:
    script = (
        "import sys; sys.modules['usearch'] = None\nfrom instdisc.cli import main\nsys.argv[0] = 'instdisc'\nmain()"
    )
    pictures = picture_folder(tmp_path / "pictures", 20)
    run = train(pictures, tmp_path / "run", tiny(epochs=1), say=None).path
    for words in (["duplicates", str(run), "--approximate"], ["serve", str(run), "--approximate", "--port", "0"]):
        done = subprocess.run([sys.executable, "-c", script, *words], capture_output=True, text=True, timeout=500)
        assert done.returncode == 1 and "pip install 'instdisc[ann]'" in done.stderr, done.stderr
        assert "Traceback" not in done.stderr
