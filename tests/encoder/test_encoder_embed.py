"""Embedding many pictures of every form against one forward pass a picture."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_encoders import arrays, png, smooth, tiny
from torch import nn

from instdisc.data.sources.open import open_source
from instdisc.encoder import Encoder, EncoderConfig, build_encoder
from instdisc.encoder.embed import collect, gathered
from instdisc.errors import InputError

# ---------------------------------------------------------------------------------------------------------------------
# Embedding


def by_hand(encoder: Encoder, pictures: list[np.ndarray]) -> torch.Tensor:
    """One picture at a time, without any of the streaming."""
    mean, std = (np.reshape(numbers, (3, 1, 1)) for numbers in (encoder.preprocessing.mean, encoder.preprocessing.std))
    rows = []
    with torch.no_grad():
        for picture in pictures:
            pixels = (picture.transpose(2, 0, 1) / 255 - mean) / std
            rows.append(encoder.eval()(torch.from_numpy(pixels.astype(np.float32))[None])[0])
    encoder.train()
    return torch.stack(rows)


@pytest.mark.fault("recomputed rows misplaced unless n divides the batch size")
@pytest.mark.parametrize("batch", [1, 3, 7, 22, 23, 24, 1000])
def test_every_form_and_batch_size_gives_the_same_rows(batch: int, tmp_path: Path) -> None:
    pictures = arrays(23)
    encoder = tiny()
    expected = by_hand(encoder, pictures)
    paths = []
    for number, picture in enumerate(pictures):
        paths.append(tmp_path / f"{number:02d}.png")
        paths[-1].write_bytes(png(picture))
    stack = np.stack(pictures)
    tensor = torch.from_numpy(stack.transpose(0, 3, 1, 2).copy())
    forms = {
        "paths": paths,
        "names": [str(path) for path in paths],
        "URLs": [f"file://{path}" for path in paths],
        "bytes": [png(picture) for picture in pictures],
        "PIL": [Image.fromarray(picture) for picture in pictures],
        "arrays": pictures,
        "array": stack,
        "uint8": tensor,
        "floats": tensor / 255,
        "tensors": list(tensor),
        "generator": (picture for picture in pictures),
        "stacks": [tensor[:9], pictures[9], tensor[10:]],
        "mixture": [*paths[:5], *pictures[5:10], *(tensor[10:] / 255)],
        "folder": tmp_path,
        "source": open_source(stack),
    }
    for form, images in forms.items():
        vectors = encoder.embed(images, batch)
        assert vectors.dtype == torch.float32, form
        torch.testing.assert_close(vectors, expected, atol=1e-5, rtol=0, msg=lambda text, form=form: f"{form}: {text}")


def test_arrays_of_the_encoders_size_are_those_one_by_one() -> None:
    """However they lie in memory; they need no fitting, and go to the encoder as they are."""
    encoder = build_encoder(EncoderConfig("conv6", dim=8, width=4, image_size=16), seed=0)
    pictures = np.random.default_rng(0).integers(0, 256, (7, 16, 16, 3), dtype=np.uint8)
    wanted = encoder.embed(list(pictures), 3)
    fixed = pictures.copy()
    fixed.flags.writeable = False
    planar = np.ascontiguousarray(pictures.transpose(0, 3, 1, 2)).transpose(0, 2, 3, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for other in (pictures, fixed, planar, pictures[::-1][::-1]):
            torch.testing.assert_close(encoder.embed(other, 3), wanted, atol=1e-6, rtol=0)
    torch.testing.assert_close(encoder.embed(pictures[::-1], 7), wanted.flip(0), atol=1e-6, rtol=0)


def test_single_pictures_and_none(tmp_path: Path) -> None:
    encoder = tiny()
    (picture,) = arrays(1)
    file = tmp_path / "one.png"
    file.write_bytes(png(picture))
    expected = by_hand(encoder, [picture])
    for images in (
        picture,
        file,
        str(file),
        png(picture),
        Image.fromarray(picture),
        torch.from_numpy(picture.transpose(2, 0, 1).copy()),
    ):
        torch.testing.assert_close(encoder.embed(images), expected, atol=1e-5, rtol=0)
    assert encoder.embed([]).shape == (0, 16)
    assert encoder.embed(torch.zeros(0, 3, 32, 32)).shape == (0, 16)
    assert {name: values.shape for name, values in encoder.features([]).items()}["stage2"] == (0, 8)
    grey = np.full((32, 32), 99, np.uint8)
    expected = by_hand(encoder, [np.stack([grey] * 3, axis=-1)])
    torch.testing.assert_close(encoder.embed(np.stack([grey, grey])), expected.expand(2, -1), atol=1e-5, rtol=0)


def test_other_sizes_and_shapes_in_one_call() -> None:
    encoder = tiny()
    pictures = [smooth(32, 32), smooth(100, 40), smooth(31, 64)]
    alone = torch.cat([encoder.embed(picture) for picture in pictures])
    torch.testing.assert_close(encoder.embed(pictures), alone, atol=1e-5, rtol=0)
    tensor = torch.from_numpy(smooth(64, 48).transpose(2, 0, 1).copy())[None]
    torch.testing.assert_close(encoder.embed(tensor), encoder.embed([smooth(64, 48)]), atol=1e-5, rtol=0)


@pytest.mark.fault("evaluation runs with gradients")
@pytest.mark.fault("evaluation leaves the encoder in eval mode")
def test_modes_come_back_even_after_an_error() -> None:
    encoder = tiny(head="mlp")
    encoder.train()
    encoder.backbone.stage2.eval()  # a frozen part stays frozen
    modes = {name: part.training for name, part in encoder.named_modules()}
    statistics = {name: value.clone() for name, value in encoder.named_buffers()}
    graphs: list[bool] = []
    watch = encoder.backbone.register_forward_hook(lambda *passed: graphs.append(passed[-1].requires_grad))
    vectors = encoder.embed(arrays(5), batch=2)
    watch.remove()
    assert graphs == [False] * 3, "a graph that is cut off at the end was kept all the same"
    assert not vectors.requires_grad
    assert {name: part.training for name, part in encoder.named_modules()} == modes
    assert all(torch.equal(value, statistics[name]) for name, value in encoder.named_buffers())

    def broken() -> None:
        raise RuntimeError("device lost")

    encoder.head[0].register_forward_hook(lambda module, entering, leaving: broken())
    with pytest.raises(RuntimeError, match="device lost"):
        encoder.features(arrays(2))
    assert {name: part.training for name, part in encoder.named_modules()} == modes
    assert not any(part._forward_hooks for part in encoder.backbone.modules())
    with torch.no_grad():
        pass
    assert torch.is_grad_enabled()


def test_vectors_can_be_learned_from() -> None:
    classifier = nn.Linear(16, 2)
    classifier(tiny().embed(arrays(4))).sum().backward()
    assert classifier.weight.grad is not None


def test_embedding_while_training_goes_on_between_batches() -> None:
    encoder = tiny()
    for _, vectors in encoder.embed_stream(arrays(5), batch=2):
        assert encoder.training and torch.is_grad_enabled() and not vectors.requires_grad


def test_features_of_every_stage_are_pooled_maps() -> None:
    encoder = tiny()
    pictures = arrays(5)
    features = encoder.features(pictures, batch=2)
    assert {name: values.shape[1] for name, values in features.items()} == {
        "stage1": 4,
        "stage2": 8,
        "stage3": 16,
        "backbone": 16,
        "embedding": 16,
    }
    torch.testing.assert_close(features["embedding"], encoder.embed(pictures))
    encoder.eval()
    with torch.no_grad():
        images = torch.stack([encoder.preprocessing(picture) for picture in pictures])
        first = encoder.backbone.stage1(images)
        torch.testing.assert_close(features["stage1"], first.flatten(2).mean(2), atol=1e-5, rtol=1e-5)
        second = encoder.backbone.stage2(first)
        torch.testing.assert_close(features["stage2"], second.flatten(2).mean(2), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(features["stage3"], features["backbone"])
    resnet = build_encoder({"backbone": "resnet18", "width": 8}).features(pictures)
    assert [values.shape[1] for values in resnet.values()] == [8, 8, 16, 32, 64, 64, 128]
    torch.testing.assert_close(resnet["layer4"], resnet["backbone"])


def test_unreadable_pictures_are_named_or_reported(tmp_path: Path) -> None:
    encoder = tiny()
    pictures = arrays(9)
    for number, picture in enumerate(pictures):
        (tmp_path / f"{number}.png").write_bytes(png(picture))
    (tmp_path / "3.png").write_bytes(b"this is no picture at all")
    (tmp_path / "4.png").write_bytes(png(pictures[4])[:200])
    paths = [tmp_path / f"{number}.png" for number in range(9)]
    paths[6] = tmp_path / "gone.png"
    with pytest.raises(InputError, match="3.png can't be used as a picture: the file is not"):
        encoder.embed(paths, batch=4)
    with pytest.raises(InputError, match="Picture number 1 can't be used"):
        encoder.embed([pictures[0], b"GIF89a"])
    for images, lost in ((paths, [3, 4, 6]), (open_source(tmp_path), [3, 4])):
        reported: dict[int, str] = {}

        def report(row: int, name: str, reason: str, reported: dict[int, str] = reported) -> None:
            reported[row] = f"{name}: {reason}"

        rows, vectors = [], []
        for numbers, values in encoder.embed_stream(images, batch=2, on_unreadable=report):
            rows.extend(numbers.tolist())
            vectors.append(values)
        assert sorted(reported) == lost
        assert "3.png: the file is not" in reported[3]
        assert sorted(rows) == [row for row in range(9) if row not in lost]
        expected = by_hand(encoder, pictures)
        torch.testing.assert_close(torch.cat(vectors), expected[rows], atol=1e-5, rtol=0)


def test_chosen_rows_of_a_source() -> None:
    encoder = tiny()
    pictures = arrays(11)
    chosen = np.array([1, 4, 5, 10])
    numbers, vectors = zip(*encoder.embed_stream(open_source(np.stack(pictures)), batch=3, rows=chosen), strict=True)
    assert np.concatenate(numbers).tolist() == chosen.tolist()
    torch.testing.assert_close(torch.cat(vectors), by_hand(encoder, pictures)[chosen], atol=1e-5, rtol=0)
    with pytest.raises(InputError, match="rows of a Source"):
        list(encoder.embed_stream(pictures, rows=chosen))


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (17, "not a int"),
        ({"a": 1}, "not a dict"),
        ([("picture", 3)], "without their labels"),
        (torch.zeros(2, 32, 32, 3), "is \\(n, 3, height, width\\)"),
        (torch.full((2, 3, 32, 32), -2.0), "floats in 0..1"),
        (torch.zeros(2, 3, 32, 32, dtype=torch.int64), "uint8, or floats"),
    ],
)
def test_what_is_no_picture_gets_a_sentence(images: object, words: str) -> None:
    with pytest.raises(InputError, match=words):
        tiny().embed(images)
    with pytest.raises(InputError, match="at least 1"):
        tiny().embed(arrays(1), batch=0)


def test_results_are_put_together_and_no_chunk_is_kept() -> None:
    """Chunks in any order; each is gone before the next but one is asked for."""
    rows = np.random.default_rng(0).permutation(100)
    wanted = torch.randn(100, 3)
    alive: list[weakref.ref] = []

    def chunks() -> Iterator[tuple[np.ndarray, torch.Tensor]]:
        for some in np.array_split(rows, 9):
            assert sum(one() is not None for one in alive) <= 1
            values = wanted[some]
            alive.append(weakref.ref(values))
            yield some, values
            del values

    found = collect(((some, {"a": values}) for some, values in chunks()), {"a": 3})
    assert torch.equal(found["a"], wanted)
    alive.clear()
    numbers, vectors = gathered(chunks(), 120, 3)
    assert np.array_equal(numbers, np.arange(100)) and np.array_equal(vectors, wanted.numpy())
    assert collect(iter([]), {"a": 3})["a"].shape == (0, 3) and gathered(iter([]), 5, 3)[1].shape == (0, 3)


def test_memory_is_fixed_however_many_pictures_come() -> None:
    """At most two batches are read ahead of the one that is computed."""
    taken = 0

    def endless() -> object:
        nonlocal taken
        while True:
            taken += 1
            yield arrays(1)[0]

    stream = tiny().embed_stream(endless(), batch=4)
    for number in range(1, 4):
        next(stream)
        assert taken <= 4 * (number + 1)
    stream.close()


def short_of_memory(encoder: Encoder, most: int, asked: list[int]) -> None:
    """Have the encoder refuse more than `most` pictures at once, in the words of a GPU."""

    def refuse(module: nn.Module, entering: tuple[torch.Tensor, ...]) -> None:
        asked.append(len(entering[0]))
        if len(entering[0]) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    encoder.backbone.register_forward_pre_hook(refuse)


@pytest.mark.parametrize("most", [1, 3, 6, 11])
def test_a_batch_that_memory_is_too_short_for_is_computed_in_pieces(most: int) -> None:
    pictures, encoder = arrays(23), tiny()
    expected, asked = encoder.embed(pictures), list[int]()
    short_of_memory(encoder, most, asked)
    torch.testing.assert_close(encoder.embed(pictures, batch=12), expected)
    refused = [count for count in asked if count > most]
    assert sum(asked) - sum(refused) == 23 and refused == sorted(refused, reverse=True), (
        "once each size, and no picture twice"
    )
    assert len(set(refused)) == len(refused) <= 4


def test_what_one_picture_is_too_much_for_says_so() -> None:
    encoder, asked = tiny(), list[int]()
    short_of_memory(encoder, 0, asked)
    with pytest.raises(torch.OutOfMemoryError):
        encoder.embed(arrays(5))
    assert asked == [5, 3, 2, 1]
