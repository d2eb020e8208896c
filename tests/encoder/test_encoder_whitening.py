"""Search vectors: the map against NumPy and scikit-learn, what it refuses, its file, and the encoder that has it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sklearn.decomposition import PCA
from tiny_encoders import arrays, tiny

from instdisc.encoder.backbones import stages
from instdisc.encoder.whitening import Moments, NoSearchVectorsError, fit_whitening, load_whitening
from instdisc.errors import InputError

CHANNELS = (5, 9)
STAGES = ("stage1", "stage2")


def features(count: int = 300, seed: int = 0) -> torch.Tensor:
    """Correlated features of two stages, the second of a hundred times the scale, none of mean zero."""
    random = np.random.default_rng(seed)
    mixed = random.normal(size=(count, 14)) @ random.normal(size=(14, 14)) + random.uniform(1, 3, 14)
    return torch.from_numpy(mixed * np.repeat([1, 100], CHANNELS)).float()


def moments_of(values: torch.Tensor, channels: tuple[int, ...] = CHANNELS, pieces: int = 7) -> Moments:
    moments = Moments(channels)
    for part in values.tensor_split(pieces):
        moments.add(part)
    return moments


def by_numpy(values: np.ndarray, asked: np.ndarray, shrinkage: float, dimensions: int) -> np.ndarray:
    """Unit search vectors of `asked`, from the formula in the docstring, without the code's own steps."""
    mean = values.mean(0)
    totals = [part.sum() for part in np.split(values.var(0), [CHANNELS[0]])]
    scale = np.sqrt(np.repeat(totals, CHANNELS))
    centred, asked = (values - mean) / scale, (asked - mean) / scale
    _, singular, directions = np.linalg.svd(centred, full_matrices=False)
    variances = singular**2 / len(values)
    added = shrinkage * (1 + values.shape[1] / len(values)) * variances[0]
    found = asked @ directions[:dimensions].T / np.sqrt(variances[:dimensions] + added)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def cosines(vectors: torch.Tensor | np.ndarray) -> np.ndarray:
    found = np.asarray(vectors, np.float64)
    return found @ found.T


def test_moments_are_the_mean_and_the_covariance_whatever_the_pieces() -> None:
    values = features()
    for pieces in (1, 7, 300):
        moments = moments_of(values, pieces=pieces)
        np.testing.assert_allclose(moments.mean, values.double().mean(0), rtol=1e-12)
        expected = np.cov(values.double().numpy(), rowvar=False, bias=True)
        np.testing.assert_allclose(moments.covariance, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("shrinkage", "dimensions"), [(0.003, 256), (0.0, 256), (0.1, 256), (0.003, 6)])
def test_the_map_is_what_the_formula_says(shrinkage: float, dimensions: int) -> None:
    values, asked = features(), features(40, seed=1)
    whitening = fit_whitening(moments_of(values), STAGES, shrinkage=shrinkage, dimensions=dimensions)
    found = whitening(asked)
    assert found.shape == (40, min(dimensions, 14)) and found.dtype == torch.float32
    torch.testing.assert_close(found.norm(dim=1), torch.ones(40))
    expected = by_numpy(values.double().numpy(), asked.double().numpy(), shrinkage, dimensions)
    np.testing.assert_allclose(cosines(found), cosines(expected), atol=2e-5)


def test_without_shrinkage_one_stage_is_whitened_as_scikit_learn_does() -> None:
    values, asked = features()[:, :5], features(40, seed=1)[:, :5]
    whitening = fit_whitening(moments_of(values, (5,)), ("stage1",), shrinkage=0.0)
    expected = PCA(whiten=True).fit(values.double().numpy()).transform(asked.double().numpy())
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(cosines(whitening(asked)), cosines(expected), atol=2e-5)


def test_a_stage_counts_the_same_whatever_its_scale() -> None:
    values = features()
    other = values * torch.tensor([7.0] * 5 + [0.01] * 9)
    one, two = (fit_whitening(moments_of(each), STAGES)(each[:50]) for each in (values, other))
    np.testing.assert_allclose(cosines(one), cosines(two), atol=1e-4)


def test_few_pictures_are_not_pushed_equally_far_apart() -> None:
    """Whitened without shrinkage, as many points as dimensions all have the same distance: nothing is near."""
    random = np.random.default_rng(0)
    groups = random.normal(size=(4, 60)).repeat(6, axis=0)
    values = torch.from_numpy(groups + 0.3 * random.normal(size=(24, 60))).float()
    same = np.equal.outer(np.arange(24) // 6, np.arange(24) // 6) & ~np.eye(24, dtype=bool)
    found = {s: cosines(fit_whitening(moments_of(values, (60,)), ("end",), shrinkage=s)(values)) for s in (0.0, 0.003)}
    others = ~same & ~np.eye(24, dtype=bool)
    assert found[0.0][same].max() < 0.01
    assert found[0.003][same].mean() > 0.05 > 0 > found[0.003][others].mean()


def test_constant_features_do_no_harm() -> None:
    values = features()
    values[:, 2] = 5.0
    assert fit_whitening(moments_of(values), STAGES)(values).isfinite().all()
    values[:, :5] = 1e6  # a whole stage
    whitening = fit_whitening(moments_of(values), STAGES)
    assert whitening.dim == 9 and whitening(values).isfinite().all()
    torch.testing.assert_close(whitening(values).norm(dim=1), torch.ones(300))


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (features(15), "at least 16 pictures, and there are 15"),
        (torch.full((300, 14), 0.1), "the same features"),
        (torch.zeros(300, 14), "the same features"),
        (features().index_fill(0, torch.tensor([7]), torch.nan), "NaN or infinite"),
        (features().index_fill(0, torch.tensor([7]), torch.inf), "NaN or infinite"),
    ],
)
def test_where_no_map_can_be_made_the_reason_is_said(values: torch.Tensor, reason: str) -> None:
    with pytest.raises(NoSearchVectorsError, match=reason):
        fit_whitening(moments_of(values), STAGES)


def test_a_map_is_kept_to_the_bit(tmp_path: Path) -> None:
    whitening = fit_whitening(moments_of(features()), STAGES, step=12)
    whitening.save(tmp_path / "map.safetensors")
    again = load_whitening(tmp_path / "map.safetensors", 12, {"stage1": 5, "stage2": 9, "stage3": 3})
    assert again is not None
    assert again.facts == whitening.facts and again.digest == whitening.digest
    assert torch.equal(again.matrix, whitening.matrix) and torch.equal(again.mean, whitening.mean)
    assert fit_whitening(moments_of(features(seed=2)), STAGES).digest != whitening.digest


def test_a_map_of_another_step_or_encoder_is_not_taken(tmp_path: Path) -> None:
    file = tmp_path / "map.safetensors"
    assert load_whitening(file, 12) is None
    fit_whitening(moments_of(features()), STAGES, step=12).save(file)
    assert load_whitening(file, 13) is None
    with pytest.raises(InputError, match="belongs to another encoder"):
        load_whitening(file, 12, {"stage1": 5, "stage2": 10})


def test_a_damaged_or_newer_file_is_said_to_be_so(tmp_path: Path) -> None:
    file = tmp_path / "map.safetensors"
    whitening = fit_whitening(moments_of(features()), STAGES, step=12)
    whitening.save(file)
    content, tensors = file.read_bytes(), load_file(file)
    facts = {"stages": STAGES, "channels": CHANNELS, "pictures": 3, "shrinkage": 0.1, "step": 12, "format": 1}
    nan = tensors | {"mean": torch.full((14,), torch.nan)}

    def spoil(tensors: dict[str, torch.Tensor], facts: object) -> None:
        save_file(tensors, file, {"whitening": json.dumps(facts)})

    for spoilt in (
        lambda: file.write_bytes(content[:-40]),
        lambda: file.write_bytes(b"nothing of the kind"),
        lambda: spoil(tensors, [1]),
        lambda: spoil(tensors, facts | {"channels": [5, 8]}),
        lambda: spoil(tensors, facts | {"stages": ["one"]}),
        lambda: spoil(tensors, facts | {"colour": "blue"}),
        lambda: spoil({"mean": tensors["mean"]}, facts),
        lambda: spoil(nan, facts),
    ):
        spoilt()
        with pytest.raises(InputError, match=r"is damaged .*--recompute"):
            load_whitening(file, 12)
    spoil(tensors, facts | {"format": 99})
    with pytest.raises(InputError, match="newer version"):
        load_whitening(file, 12)


def test_an_encoder_embeds_by_its_map() -> None:
    encoder = tiny()
    pictures = arrays(30)
    assert encoder.dimensions() == 16  # without a map search vectors are the embedding
    assert torch.equal(encoder.embed(pictures), encoder.embed(pictures, vectors="embedding"))
    levels = encoder.features(pictures)
    names = ("stage1", "stage2", "stage3")
    side_by_side = torch.cat([levels[name] for name in names], dim=1)
    moments = Moments([4, 8, 16])
    moments.add(side_by_side)
    encoder.whitening = fit_whitening(moments, names)
    found = encoder.embed(pictures, batch=7)
    assert encoder.dimensions() == found.shape[1] == encoder.whitening.dim <= 28
    assert encoder.dimensions("embedding") == 16
    torch.testing.assert_close(found, encoder.whitening(side_by_side), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(encoder.embed(pictures, vectors="embedding"), levels["embedding"])
    ((rows, streamed),) = encoder.embed_stream(pictures, 30, vectors="embedding")
    torch.testing.assert_close(streamed, levels["embedding"][torch.from_numpy(rows)])
    assert "whitening" not in " ".join(encoder.state_dict())  # weights load as they always did
    with pytest.raises(InputError, match='"search" or "embedding", not "bank"'):
        encoder.embed(pictures, vectors="bank")


@pytest.mark.parametrize(
    ("backbone", "expected"),
    [
        ("conv6", {"stage1": 4, "stage1 std": 4, "stage2": 8, "stage3": 16, "stage3 std": 16}),
        ("resnet18", {"act1": 4, "layer1": 4, "layer1 std": 4, "layer4": 32, "layer4 std": 32}),
    ],
)
def test_search_vectors_are_made_of_all_stages(backbone: str, expected: dict[str, int]) -> None:
    encoder = tiny(backbone=backbone).eval()
    found = encoder.search_stages(torch.zeros(2, 3, 32, 32))
    assert expected.items() <= found.items()
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        side_by_side, levels = encoder.stage_features(images, list(found)), encoder.levels(images, list(found))
    torch.testing.assert_close(side_by_side, torch.cat([levels[name] for name in found], dim=1))


@pytest.mark.parametrize("backbone", ["conv6", "resnet18"])
def test_a_stages_levels_are_mean_and_deviation_over_the_places_of_its_map(backbone: str) -> None:
    encoder = tiny(backbone=backbone).eval()
    images, maps = torch.randn(3, 3, 32, 32), {}
    for stage in stages(encoder.backbone):
        stage.module.register_forward_hook(
            lambda module, entering, leaving, name=stage.name: maps.update({name: leaving.double().numpy().copy()})
        )
    with torch.no_grad():
        found = encoder.stage_features(
            images, [f"{stage.name}{way}" for stage in stages(encoder.backbone) for way in ("", " std")]
        )
    expected = [way(values, axis=(2, 3)) for values in maps.values() for way in (np.mean, np.std)]
    np.testing.assert_allclose(found, np.concatenate(expected, axis=1), atol=1e-5)


def test_a_network_that_is_too_wide_for_both_gives_the_means_alone() -> None:
    encoder = tiny(backbone="resnet50", width=64).eval()
    found = encoder.search_stages(torch.zeros(2, 3, 32, 32))
    assert found == {"act1": 64, "layer1": 256, "layer2": 512, "layer3": 1024, "layer4": 2048}


def test_a_map_of_the_first_format_stays_readable(tmp_path: Path) -> None:
    """It was made of means alone, and its file names no others."""
    encoder, pictures, names = tiny(), arrays(30), ("stage1", "stage2", "stage3")
    side_by_side = torch.cat([encoder.features(pictures)[name] for name in names], dim=1)
    made = fit_whitening(moments_of(side_by_side, (4, 8, 16)), names, step=3)
    facts = {"stages": names, "channels": (4, 8, 16), "pictures": 30, "shrinkage": 0.003, "step": 3, "format": 1}
    save_file({"mean": made.mean, "matrix": made.matrix}, tmp_path / "map", {"whitening": json.dumps(facts)})
    encoder.whitening = load_whitening(tmp_path / "map", 3, encoder.level_channels())
    torch.testing.assert_close(encoder.embed(pictures), made(side_by_side), atol=1e-4, rtol=1e-4)
