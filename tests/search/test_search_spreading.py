"""Labels spread over the neighbour graph: against scikit-learn and dense algebra, on disk, and how sure they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.semi_supervised import LabelSpreading

from instdisc.errors import InputError
from instdisc.jobs.votes import proposals, vote
from instdisc.search import graph as graph_module
from instdisc.search import spreading
from instdisc.search.graph import digest_of, nearest_graph, read_graph, stored_graph
from instdisc.search.labelling import least_reached
from instdisc.search.pairs import Vectors
from instdisc.search.spreading import ALPHA, calibrated, fit_trust, sharpened, solve, spread_labels


def clusters(count: int, classes: int, noise: float, seed: int = 0) -> tuple[torch.Tensor, np.ndarray]:
    """Unit vectors around a centre for each class, and the classes."""
    random = np.random.default_rng(seed)
    truth = np.arange(count) % classes
    values = random.normal(size=(classes, 16))[truth] + noise * random.normal(size=(count, 16))
    return torch.nn.functional.normalize(torch.from_numpy(values), dim=1).float(), truth


def dense(vectors: torch.Tensor, neighbours: int = 10) -> np.ndarray:
    """W of the mutual union, by sorting all cosines."""
    scores = (vectors @ vectors.T).double().numpy()
    np.fill_diagonal(scores, -np.inf)
    near = np.zeros_like(scores, dtype=bool)
    np.put_along_axis(near, np.argsort(-scores, axis=1, kind="stable")[:, :neighbours], True, axis=1)
    return np.where(near | near.T, np.exp((scores - 1) / 0.1), 0)


def shares(scores: np.ndarray) -> np.ndarray:
    scores = scores / np.where(scores.sum(0) > 0, scores.sum(0), 1)
    return scores / np.maximum(scores.sum(1, keepdims=True), 1e-300)


@pytest.fixture(scope="module")
def made() -> tuple[torch.Tensor, np.ndarray, np.ndarray]:
    vectors, truth = clusters(300, 4, 1.2)
    codes = np.full(300, -1)
    chosen = np.random.default_rng(3).choice(300, 25, replace=False)
    codes[chosen] = truth[chosen]
    return vectors, truth, codes


def test_the_affinity_and_the_solution_are_those_of_dense_algebra(made) -> None:
    vectors, _, codes = made
    weights = dense(vectors)
    scale = 1 / np.sqrt(weights.sum(1))
    expected = scale[:, None] * weights * scale
    affinity = nearest_graph(Vectors.of(vectors)).affinity()
    assert affinity.toarray() == pytest.approx(expected, abs=1e-5)
    assert (abs(affinity - affinity.T) > 1e-7).nnz == 0
    sources = np.eye(4)[codes] * (codes >= 0)[:, None]
    inverse = np.linalg.inv(np.eye(300) - ALPHA * expected)
    assert solve(affinity, sources.astype(np.float32), tolerance=1e-6) == pytest.approx(inverse @ sources, abs=2e-4)
    found = spread_labels(affinity, codes, tolerance=1e-6)
    assert found.shares == pytest.approx(shares(inverse @ sources), abs=1e-4)
    spread_out = inverse @ sources
    assert found.flow == pytest.approx((spread_out / spread_out.sum(0)).sum(1) * 300 / 4, rel=1e-2)
    # Leaving a label out is solving again without it.
    for place, row in enumerate(np.flatnonzero(codes >= 0)):
        without = sources.copy()
        without[row] = 0
        left = inverse @ without
        assert found.held_out[place] == pytest.approx(shares(left)[row], abs=1e-3)
        assert found.held_out_flow[place] == pytest.approx((left / left.sum(0))[row].sum() * 300 / 4, rel=1e-2)
    again = spread_labels(affinity, codes, tolerance=1e-6)
    assert np.array_equal(found.shares, again.shares) and np.array_equal(found.held_out, again.held_out)


def test_the_names_are_those_of_scikit_learn(made) -> None:
    """Its LabelSpreading iterates F = alpha S F + (1 - alpha) Y on the same weights, without the classes' totals."""
    vectors, _, codes = made
    weights = dense(vectors)
    theirs = LabelSpreading(kernel=lambda *_: weights, alpha=ALPHA, max_iter=20_000, tol=1e-10).fit(vectors, codes)
    affinity = nearest_graph(Vectors.of(vectors)).affinity()
    sources = (np.eye(4)[codes] * (codes >= 0)[:, None]).astype(np.float32)
    ours = solve(affinity, sources, tolerance=1e-6)
    assert ours / ours.sum(1, keepdims=True) == pytest.approx(theirs.label_distributions_, abs=1e-3)
    sure = np.ptp(np.sort(theirs.label_distributions_, axis=1)[:, -2:], axis=1) > 1e-3
    assert np.array_equal(ours.argmax(1)[sure], theirs.label_distributions_.argmax(1)[sure])


def test_many_labels_are_left_out_in_groups(made, monkeypatch) -> None:
    vectors, _, codes = made
    affinity = nearest_graph(Vectors.of(vectors)).affinity()
    exact = spread_labels(affinity, codes)
    monkeypatch.setattr(spreading, "_COLUMNS_OF", 300 * 8)
    monkeypatch.setattr(spreading, "_AT_ONCE", 300 * 3)  # and the columns in several blocks
    grouped = spread_labels(affinity, codes)
    assert grouped.shares == pytest.approx(exact.shares, abs=1e-3)
    assert grouped.held_out.shape == exact.held_out.shape
    assert (grouped.held_out.argmax(1) == exact.held_out.argmax(1)).mean() > 0.7


def test_the_graph_on_disk_is_the_graph(made, tmp_path: Path, monkeypatch) -> None:
    vectors, _, _ = made
    file, own = tmp_path / "index" / "graph.safetensors", Vectors.of(vectors)
    first = stored_graph(file, own)
    with monkeypatch.context() as without:
        without.setattr(graph_module, "nearest_graph", None)  # it is read, not computed
        second = stored_graph(file, own)
    assert np.array_equal(first.places, second.places) and np.array_equal(first.scores, second.scores)
    assert [one.name for one in file.parent.iterdir()] == [file.name]
    # Other vectors, fewer, and a damaged file: it is computed again.
    changed = vectors.clone()
    changed[0] = vectors[1]
    for other in (changed, vectors[:200]):
        assert read_graph(file, digest_of(Vectors.of(other)), len(other)) is None
        again = stored_graph(file, Vectors.of(other))
        assert np.array_equal(again.places, nearest_graph(Vectors.of(other)).places)
    stored_graph(file, own)
    whole = file.read_bytes()
    for damage in (whole[:-20], whole[:-5] + bytes([whole[-5] ^ 1]) + whole[-4:], b"", b"\xff" * 100):
        file.write_bytes(damage)
        assert read_graph(file, digest_of(own), 300) is None
        assert np.array_equal(stored_graph(file, own).places, first.places)
        assert read_graph(file, digest_of(own), 300) is not None
    elsewhere = tmp_path / "a file"
    elsewhere.write_bytes(b"")
    assert np.array_equal(stored_graph(elsewhere / "graph", own).places, first.places)  # it can't be written there


def test_confidence_is_how_often_a_vote_is_right() -> None:
    """On pictures like those labelled: of the votes about 0.9 sure, 85 to 95 % are right."""
    sure, right = [], []
    for seed in range(6):
        vectors, truth = clusters(1_000, 5, 1.5, seed)
        codes = np.full(1_000, -1)
        chosen = np.random.default_rng(seed).choice(1_000, 100, replace=False)
        codes[chosen] = truth[chosen]
        trust = calibrated(spread_labels(nearest_graph(Vectors.of(vectors)).affinity(), codes), codes)
        assert trust.sum(axis=1) == pytest.approx(np.ones(1_000), abs=1e-5)
        sure.append(trust.max(1)[codes < 0])
        right.append((trust.argmax(1) == truth)[codes < 0])
    sure, right = np.concatenate(sure), np.concatenate(right)
    near = (sure > 0.85) & (sure < 0.95)
    assert near.sum() > 200 and right[near].mean() == pytest.approx(0.9, abs=0.05)
    assert sure.mean() == pytest.approx(right.mean(), abs=0.05)


def test_power_and_doubt_follow_what_was_right_and_few_labels_hardly_move_them() -> None:
    votes, flow = np.tile([0.8, 0.2], (200, 1)), np.ones(200)

    def sure_of(*right: int) -> list[float]:
        codes = [(np.arange(200) % 10 >= count).astype(np.int64) for count in right]
        return [float(fit_trust(votes, flow, one)(votes, flow)[0, 0]) for one in codes]

    usual = fit_trust(votes[:0], flow[:0], np.zeros(0, np.int64))
    always, often, half = sure_of(10, 8, 5)
    assert half < often < usual(votes, flow)[0, 0] < always
    assert often == pytest.approx(0.8, abs=0.05) and half < 0.7
    few = fit_trust(votes[:3], flow[:3], np.zeros(3, np.int64))
    assert few.power == pytest.approx(usual.power, rel=0.2) and few.doubt <= usual.doubt


def test_one_wrong_vote_in_ten_leaves_a_doubt_for_all() -> None:
    """Nine of ten are right where the shares are clear, and where they are not: no power alone says so of both."""
    votes = np.array([[0.6, 0.1, 0.1, 0.1, 0.1]] * 50 + [[0.35, 0.2, 0.15, 0.15, 0.15]] * 50)
    codes = np.where(np.arange(100) % 10 > 0, 0, 1)
    sure = fit_trust(votes, np.ones(100), codes)(votes, np.ones(100))[[0, -1], 0]
    assert sure == pytest.approx([0.9, 0.9], abs=0.08)
    assert fit_trust(votes, np.ones(100), np.zeros(100, np.int64))(votes, np.ones(100))[0, 0] > 0.97


def test_of_equal_shares_the_one_that_more_arrives_at_is_surer() -> None:
    sure = sharpened(np.tile([0.6, 0.3, 0.1], (4, 1)), np.array([0.0, 0.1, 1.0, 10.0]), 2.0)
    assert sure[0] == pytest.approx([1 / 3] * 3) and sure.sum(1) == pytest.approx(np.ones(4))
    assert sure[2] == pytest.approx(np.array([0.36, 0.09, 0.01]) / 0.46, abs=1e-3)  # 0.6, 0.3 and 0.1 squared
    assert (np.diff(sure[:, 0]) > 0).all()


def test_few_labels_and_odd_pictures() -> None:
    vectors, _ = clusters(120, 3, 0.2)
    vectors[:20] = vectors[0]  # equal pictures: among themselves, each other's ten nearest
    vectors[119] = torch.nn.functional.normalize(-vectors[:20].mean(0), dim=0)
    graph = nearest_graph(Vectors.of(vectors)).affinity()
    rows, names = np.arange(120), ["a", "b", "c"]
    for given in ({50: 0}, {50: 2, 53: 2}, {50: 0, 51: 1}, {40: 0, 43: 0, 41: 1, 42: 2, 119: 1}):
        codes = np.full(120, -1)
        codes[list(given)] = list(given.values())
        found = vote(rows, vectors, codes, names, graph=graph)
        assert set(found.codes) <= set(given.values())
        assert np.isfinite(found.confidence).all() and (found.confidence > 0).all() and (found.confidence <= 1).all()
        assert (found.accuracy is None) == (len(given) == 1)
        for by in ("mixed", "covered", "uncertain"):
            places = proposals(vectors, codes, 15, graph=graph, by=by)
            assert len(set(places)) == 15 and not set(places) & set(given)
    with pytest.raises(InputError, match="No picture is labelled yet"):
        vote(rows, vectors, np.full(120, -1), names, graph=graph)
    with pytest.raises(InputError, match="alpha is 1"):
        spread_labels(graph, codes, alpha=1)
    vectors[7, 3] = torch.nan
    with pytest.raises(InputError, match="NaN or infinity"):
        nearest_graph(Vectors.of(vectors))
    for count in (1, 2):  # a collection of hardly anything
        few = vectors[40 : 40 + count]
        found = vote(
            rows[:count], few, np.array([0, -1][:count]), ["a"], graph=nearest_graph(Vectors.of(few)).affinity()
        )
        assert found.codes.tolist() == [0] * count


def test_proposals_take_a_picture_of_every_part_and_none_that_stands_alone() -> None:
    vectors, truth = clusters(400, 8, 0.3)
    alone = torch.nn.functional.normalize(torch.from_numpy(np.random.default_rng(9).normal(size=(5, 16))), dim=1)
    vectors[-5:] = alone.float()
    affinity = nearest_graph(Vectors.of(vectors)).affinity()
    chosen = least_reached(affinity, np.zeros(0, np.int64), 8)
    assert set(truth[chosen]) == set(range(8)) and (chosen < 395).all()
    more = least_reached(affinity, chosen[:4], 4)
    assert set(truth[more]) == set(truth[chosen[4:]])
    assert np.array_equal(more, least_reached(affinity, chosen[:4], 4))
