"""The closed form (experiments/), each step by a second way: dense arrays, SciPy, scikit-learn, our own KNN."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.linalg
import torch
from PIL import Image
from sklearn.decomposition import PCA
from torch.nn.functional import normalize

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "experiments"))
import closed_form
from closed_form import Components, Vectors, averages, gather, mirror_parts, votes
from sparse_manifold import ClosedForm, Cosines, Moments, Patches, Settings, dictionary, groups_of, mirror_basis, solve

from instdisc import KNN
from instdisc.errors import InputError

SMALL = Settings(atoms=96, patch=5, window=4, group=6, classes=120, dims=24, dropped=2, ridge=1e-3)
CLASSES = 4


def made(count: int, seed: int, size: int = 24) -> tuple[np.ndarray, np.ndarray]:
    """uint8 (count, size, size, 3) and labels: two copies of the class's small motif, anywhere, on noise."""
    motifs = np.random.default_rng(5).normal(size=(CLASSES, 5, 5, 3)) * 45
    motifs -= motifs.mean((1, 2), keepdims=True)  # no class has a colour
    rng = np.random.default_rng(seed)
    labels = rng.integers(CLASSES, size=count)
    images = 128 + 12 * rng.normal(size=(count, size, size, 3))
    for image, label in zip(images, labels, strict=True):
        for _ in range(2):
            row, column = rng.integers(size - 4, size=2)
            image[row : row + 5, column : column + 5] = 128 + motifs[label] + 12 * rng.normal(size=(5, 5, 3))
    return np.clip(images, 0, 255).astype(np.uint8), labels


def stored(file: Path, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Made pictures of 32 pixels a side, as PNG in a Parquet file: they and their labels."""
    images, labels = made(count, seed, size=32)
    written = []
    for image in images:
        Image.fromarray(image).save(out := io.BytesIO(), "PNG")
        written.append({"bytes": out.getvalue()})
    pq.write_table(pa.table({"image": written, "label": labels}), file)
    return images, labels


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return made(40, seed=0)[0]


@pytest.fixture(scope="module")
def patches(images: np.ndarray) -> Patches:
    return Patches.fit(images, SMALL)


@pytest.fixture(scope="module")
def atoms(patches: Patches, images: np.ndarray) -> torch.Tensor:
    return dictionary(patches, images, SMALL)


def mirrored(rows: torch.Tensor, even: int) -> torch.Tensor:
    """Whitened patches of the mirrored pictures."""
    return torch.cat([rows[..., :even], -rows[..., even:]], -1)


def codes(rows: torch.Tensor, atoms: torch.Tensor, even: int) -> np.ndarray:
    """(rows, atoms) 0/1, written out: the atoms, then their mirror images."""
    both = torch.cat([atoms, mirrored(atoms, even)])
    return (rows @ both.T >= SMALL.cosine).double().numpy()


def turned(half: int) -> np.ndarray:
    """The orthogonal matrix to the coordinates (a + a′)/√2, (a − a′)/√2."""
    one = np.eye(half)
    return np.block([[one, one], [one, -one]]) / np.sqrt(2)


@pytest.mark.parametrize("side", [4, 5])
def test_pixels_turn_into_even_and_odd_parts(side: int) -> None:
    even, odd = mirror_basis(3, side)
    basis = torch.cat([even, odd])
    torch.testing.assert_close(basis @ basis.T, torch.eye(3 * side * side, dtype=torch.float64))
    picture = torch.rand(3, side, side, dtype=torch.float64)
    torch.testing.assert_close(even @ picture.flatten(), even @ picture.flip(-1).flatten())
    torch.testing.assert_close(odd @ picture.flatten(), -(odd @ picture.flip(-1).flatten()))


@pytest.mark.parametrize("means", ["picture", "patch"])
def test_a_mirrored_picture_has_the_mirrored_patches(images: np.ndarray, means: str) -> None:
    patches = Patches.fit(images, Settings(patch=5, means=means))
    found, other = patches.of(images[:3]), patches.of(images[:3, :, ::-1])
    assert found.shape == (3, 20, 20, 75 if means == "picture" else 72)
    torch.testing.assert_close(other, mirrored(found.flip(2), patches.even), atol=1e-4, rtol=0)
    torch.testing.assert_close(found.norm(dim=3), torch.ones(3, 20, 20))


def test_whitened_patches_have_equal_variance_where_nothing_is_added(images: np.ndarray) -> None:
    patches = Patches.fit(images, Settings(patch=5, whitening=0.0))
    rows = patches._filtered(np.concatenate([images, images[:, :, ::-1]])).flatten(0, 2).double()
    torch.testing.assert_close(rows.T @ rows / len(rows), torch.eye(75, dtype=torch.float64), atol=1e-3, rtol=0)


def test_no_two_patches_of_the_dictionary_are_near(patches: Patches, atoms: torch.Tensor) -> None:
    both = torch.cat([atoms, mirrored(atoms, patches.even)])
    assert both.shape == (SMALL.atoms, len(patches.filters))
    cosines = both @ both.T - 2 * torch.eye(len(both))
    assert cosines.max() <= SMALL.apart + 1e-5
    with pytest.raises(InputError, match="choose fewer atoms"):
        dictionary(patches, made(2, seed=1)[0], Settings(atoms=4096, patch=5))


@pytest.mark.parametrize("wrong", [{"atoms": 7}, {"window": 3}, {"group": 1}, {"atoms": 64}, {"means": "none"}])
def test_settings_that_cannot_be_are_told(wrong: dict[str, object]) -> None:
    with pytest.raises(InputError):
        Settings(**wrong)  # type: ignore[arg-type]


def test_moments_are_those_of_codes_written_out_with_mirror_images(
    patches: Patches, atoms: torch.Tensor, images: np.ndarray
) -> None:
    rng = np.random.default_rng(0)
    rows = groups_of(patches.of(images), SMALL, rng)
    moments = Moments(len(atoms), SMALL.group)
    moments.add(Cosines(atoms, patches.even).of(rows), SMALL.cosine)
    second, within = moments.matrices()

    both = np.concatenate([codes(rows, atoms, patches.even), codes(mirrored(rows, patches.even), atoms, patches.even)])
    assert moments.ones == both.sum() / 2
    groups = both.reshape(-1, SMALL.group, both.shape[1])
    first, other = np.triu_indices(SMALL.group, 1)
    differences = (groups[:, first] - groups[:, other]).reshape(-1, both.shape[1])
    turn = turned(len(atoms))
    for written, blocks in ((both, second), (differences, within)):
        expected = turn @ (written.T @ written / len(written)) @ turn.T
        np.testing.assert_allclose(expected, scipy.linalg.block_diag(*blocks.numpy()), atol=1e-6)


def test_moments_in_blocks_are_those_of_all_at_once(patches: Patches, atoms: torch.Tensor, images: np.ndarray) -> None:
    rows = groups_of(patches.of(images), SMALL, np.random.default_rng(0))
    cosines = Cosines(atoms, patches.even)
    whole, parts = Moments(len(atoms), SMALL.group), Moments(len(atoms), SMALL.group)
    whole.add(cosines.of(rows), SMALL.cosine)
    for part in rows.split(SMALL.group * 7):
        parts.add(cosines.of(part), SMALL.cosine)
    for one, other in zip(whole.matrices(), parts.matrices(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_a_group_lies_in_a_window_of_one_picture() -> None:
    count, size = 50, 11
    numbered = torch.arange(count * size * size).reshape(count, size, size, 1)
    found = groups_of(numbered, SMALL, np.random.default_rng(0)).reshape(count, SMALL.group).numpy()
    picture, place = found // size**2, found % size**2
    assert (picture == np.arange(count)[:, None]).all()
    assert all(len(set(own)) == SMALL.group for own in place)
    for coordinate in (place // size, place % size):
        assert np.ptp(coordinate, axis=1).max() == SMALL.window - 1


def test_the_map_is_scipys_and_no_other_map_has_a_smaller_trace(
    patches: Patches, atoms: torch.Tensor, images: np.ndarray
) -> None:
    moments = gather(patches, atoms, images, SMALL)
    second, within = moments.matrices()
    dims = SMALL.dims
    table, evens, quotients = solve(second, within, dims, 0, SMALL.ridge)
    added = [SMALL.ridge * block.diagonal().mean() * torch.eye(len(atoms), dtype=torch.float64) for block in second]
    v = scipy.linalg.block_diag(*(block + more for block, more in zip(second, added, strict=True)))
    d = scipy.linalg.block_diag(*within.numpy())
    values, axes = scipy.linalg.eigh(d, v, subset_by_index=(0, dims - 1))
    np.testing.assert_allclose(quotients, values, atol=1e-8)

    map_ = np.zeros((dims, 2 * len(atoms)))
    wide = table.double().numpy().T * np.sqrt(2)
    map_[:evens, : len(atoms)], map_[evens:, len(atoms) :] = wide[:evens], wide[evens:]
    np.testing.assert_allclose(map_ @ v @ map_.T, np.eye(dims), atol=1e-5)
    angles = scipy.linalg.subspace_angles(map_.T, axes)
    assert angles.max() < 1e-3

    least = np.trace(map_ @ d @ map_.T)
    assert least == pytest.approx(values.sum(), rel=1e-5)
    low = np.linalg.cholesky(v)
    rng = np.random.default_rng(0)
    for _ in range(20):  # P = Q L⁻¹ with orthonormal rows Q is every map with P V Pᵀ = 1
        own = np.linalg.qr(rng.normal(size=(len(v), dims)))[0].T
        near = np.linalg.qr((map_ @ low).T + 0.02 * rng.normal(size=(len(v), dims)))[0].T
        for rows in (own, near):
            feasible = scipy.linalg.solve_triangular(low.T, rows.T).T
            assert np.trace(feasible @ d @ feasible.T) > least


def test_the_first_directions_are_dropped(patches: Patches, atoms: torch.Tensor, images: np.ndarray) -> None:
    second, within = gather(patches, atoms, images, SMALL).matrices()
    all_of_them, evens, quotients = solve(second, within, 12, 0, SMALL.ridge)
    rest, rest_evens, same = solve(second, within, 8, 4, SMALL.ridge)
    np.testing.assert_allclose(quotients, same)
    kept = evens - rest_evens, 12 - evens - (8 - rest_evens)
    assert sum(kept) == 4
    torch.testing.assert_close(rest[:, :rest_evens], all_of_them[:, kept[0] : evens])
    torch.testing.assert_close(rest[:, rest_evens:], all_of_them[:, evens + kept[1] :])


@pytest.fixture(scope="module")
def closed(patches: Patches, atoms: torch.Tensor, images: np.ndarray) -> ClosedForm:
    moments = gather(patches, atoms, images, SMALL)
    table, evens, _ = solve(*moments.matrices(), SMALL.dims, SMALL.dropped, SMALL.ridge)
    return ClosedForm(patches, atoms, table, evens, SMALL.cosine)


def test_maps_are_the_codes_times_the_map(closed: ClosedForm, images: np.ndarray) -> None:
    rows = closed.patches.of(images[:2]).flatten(0, 2)
    split, table = closed.evens, closed.table.double().numpy()
    written = np.concatenate([table, table * np.where(np.arange(SMALL.dims) < split, 1, -1)])
    expected = codes(rows, closed.atoms, closed.patches.even) @ written
    expected /= np.maximum(np.linalg.norm(expected, axis=1, keepdims=True), 1e-12)
    found = closed.maps(images[:2])
    assert found.shape == (2, SMALL.dims, 20, 20)
    np.testing.assert_allclose(found.permute(0, 2, 3, 1).flatten(0, 2), expected, atol=1e-4)


def test_a_mirrored_pictures_vector_has_the_odd_part_negated(closed: ClosedForm, images: np.ndarray) -> None:
    for cells in (1, 2, 3, 5, 20):
        one, other = (averages(closed.maps(own), cells) for own in (images[:3], images[:3, :, ::-1]))
        assert one.shape == (3, SMALL.dims, cells, cells)
        even, odd = mirror_parts(one, closed.evens)
        even_too, odd_too = mirror_parts(other, closed.evens)
        torch.testing.assert_close(even, even_too, atol=1e-4, rtol=0)
        torch.testing.assert_close(odd, -odd_too, atol=1e-4, rtol=0)
        torch.testing.assert_close(torch.cat([even, odd], 1).norm(dim=1), one.flatten(1).norm(dim=1))


def test_votes_with_mirrored_pictures_are_those_of_twice_the_pictures() -> None:
    generator = torch.Generator().manual_seed(0)
    rows, queries = torch.randn(500, 12, generator=generator), torch.randn(80, 12, generator=generator)
    labels = np.random.default_rng(0).integers(5, size=500)
    twice = torch.cat([rows, torch.cat([rows[:, :7], -rows[:, 7:]], 1)])
    found = votes(queries, iter(rows.split(130)), labels, 7)
    for mirror, (vectors, names) in enumerate([(rows, labels), (twice, np.tile(labels, 2))]):
        for which, (k, temperature) in closed_form.VOTES.items():
            expected = KNN(k, temperature).fit(vectors, names).predict(queries)
            np.testing.assert_array_equal(found[which][mirror], expected.numpy())


def test_components_are_scikit_learns_of_twice_the_vectors() -> None:
    generator = torch.Generator().manual_seed(0)
    scales = torch.tensor([2.0, 0.5, 1.8, 0.6, 0.4, 0.3, 1.9, 0.5, 1.7, 0.4])
    rows = normalize(torch.randn(300, 10, generator=generator) * scales + 0.3, dim=1)
    twice = torch.cat([rows, torch.cat([rows[:, :6], -rows[:, 6:]], 1)])
    expected = PCA(4, whiten=True, svd_solver="full").fit(twice.numpy()).transform(rows.numpy())
    found, evens = Components(iter(rows.split(77)), 6).of(rows, 4)
    assert 0 < evens < 4
    np.testing.assert_allclose(found @ found.T, expected @ expected.T, rtol=0.01, atol=0.01)


def test_vectors_are_taken_up_where_they_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(closed_form, "BLOCK", 4)
    monkeypatch.setattr(closed_form, "WRITE_SECONDS", 0.0)
    rows, asked = torch.rand(18, 3), []

    def block(first: int, last: int) -> dict[int, torch.Tensor]:
        asked.append(first)
        if asked == [0, 4, 8]:
            raise KeyboardInterrupt
        return {1: rows[first:last], 2: 2 * rows[first:last, :2]}

    widths = {1: 3, 2: 2}
    with pytest.raises(KeyboardInterrupt):
        Vectors(tmp_path, "train", 18, widths).fill(block)
    again = Vectors(tmp_path, "train", 18, widths)
    again.fill(block)
    assert asked == [0, 4, 8, 8, 12, 16]
    torch.testing.assert_close(torch.cat(list(again.chunks(1))), rows.half().float())
    torch.testing.assert_close(torch.cat(list(again.chunks(2))), (2 * rows[:, :2]).half().float())
    Vectors(tmp_path, "train", 18, widths).fill(block)
    assert len(asked) == 6
    for count, other in ((17, widths), (18, {3: 4})):
        with pytest.raises(SystemExit, match="other --cells or pictures"):
            Vectors(tmp_path, "train", count, other)


def test_it_separates_made_pictures_better_than_raw_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train, test, out = tmp_path / "train.parquet", tmp_path / "test.parquet", tmp_path / "out.json"
    (images, labels), (others, truth) = (stored(train, 300, seed=1), stored(test, 150, seed=2))
    words = f"--train {train} --test {test} --work {tmp_path / 'work'} --out {out} --held-out 60 --cells 1 2"
    words += " --atoms 192 --patch 5 --window 4 --group 8 --classes 480 --dims 48 --dropped 2"
    monkeypatch.setattr(closed_form, "COMPONENTS", (16,))
    monkeypatch.setattr(sys, "argv", ["closed_form.py", *words.split()])
    closed_form.main()
    first = out.read_text(encoding="utf-8")
    found = json.loads(first)
    assert found["classified"] == {"held-out": 60, "test": 150} and found["pictures"] == 240
    rows = found["knn"]["test"]
    assert [row["numbers"] for row in rows] == [48, 48, 16, 16, 192, 192, 16, 16]

    pixels = KNN(200, 0.07, centre=True).fit(images.reshape(300, -1).astype(np.float32), labels)
    raw = 100 * pixels.score(others.reshape(150, -1).astype(np.float32), truth)
    assert raw < 60
    assert found["mean"] > raw + 30

    closed_form.main()  # nothing is computed again
    assert json.loads(out.read_text(encoding="utf-8"))["seconds"] == found["seconds"]
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--atoms", "96"])
    with pytest.raises(SystemExit, match="other settings"):
        closed_form.main()
