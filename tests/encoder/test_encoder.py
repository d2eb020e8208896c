"""The encoder against arithmetic by hand, Pillow, torchvision and plain forward passes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tiny_encoders import TINY, arrays, png, smooth, tiny
from torch import nn

from instdisc.encoder import EncoderConfig, Preprocessing, build_encoder, unit_length
from instdisc.errors import InputError

# ---------------------------------------------------------------------------------------------------------------------
# The networks


def cifar_resnet18_parameters(width: int, dim: int) -> int:
    """Counted from the description: 3×3 stem, four stages of two blocks of two 3×3 convolutions, one linear layer."""

    def convolution(entering: int, leaving: int, kernel: int = 3) -> int:
        return entering * leaving * kernel**2 + 2 * leaving  # no bias; scale and shift of the normalisation

    total = convolution(3, width)
    entering = width
    for stage in range(4):
        leaving = width * 2**stage
        total += convolution(entering, leaving) + 3 * convolution(leaving, leaving)
        total += convolution(entering, leaving, kernel=1) if stage else 0  # the shortcut where the width changes
        entering = leaving
    return total + entering * dim + dim


@pytest.mark.parametrize("width", [None, 16])
def test_resnet18_on_small_pictures_is_the_cifar_network(width: int | None) -> None:
    encoder = build_encoder({"backbone": "resnet18", "width": width})
    assert sum(weights.numel() for weights in encoder.parameters()) == cifar_resnet18_parameters(width or 64, 128)
    if width is None:
        assert cifar_resnet18_parameters(64, 128) == 11_168_832 + 65_664
    assert isinstance(encoder.head, nn.Linear)
    assert (encoder.head.in_features, encoder.head.out_features) == (8 * (width or 64), 128)
    assert encoder.head.bias is not None
    maps = {}
    for name in ("layer1", "layer4"):
        stage = encoder.backbone.get_submodule(name)
        stage.register_forward_hook(lambda module, entering, leaving, name=name: maps.update({name: leaving.shape}))
    encoder(torch.zeros(2, 3, 32, 32))
    assert maps["layer1"][2:] == (32, 32), "nothing shrinks the picture before the first stage"
    assert maps["layer4"][2:] == (4, 4)


def test_narrow_shortcuts_give_what_convolutions_give_and_train_on_every_processor() -> None:
    """Where AVX2 is all, the weights' gradient of such a convolution kills the process (oneDNN's issue 6035)."""
    encoder = build_encoder({"backbone": "resnet18", "image_size": 32, "width": 4})
    shortcuts = [module for name, module in encoder.backbone.named_modules() if name.endswith("downsample.0")]
    assert [module.in_channels for module in shortcuts] == [4, 8, 16]
    for shortcut in shortcuts:
        pictures = torch.randn(3, shortcut.in_channels, 9, 9, requires_grad=True)
        found = shortcut(pictures)
        expected = torch.nn.functional.conv2d(pictures.double(), shortcut.weight.double(), stride=2)
        torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-5)
        given = torch.randn_like(found)
        ours = torch.autograd.grad(found, [pictures, shortcut.weight], given)
        theirs = torch.autograd.grad(expected, [pictures, shortcut.weight], given.double())
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    encoder = encoder.to(memory_format=torch.channels_last).train()
    for _ in range(3):
        encoder(torch.randn(8, 3, 32, 32).contiguous(memory_format=torch.channels_last)).sum().backward()
    assert all(torch.isfinite(shortcut.weight.grad).all() for shortcut in shortcuts)


def test_large_pictures_keep_timms_own_stem() -> None:
    plain = build_encoder({"backbone": "resnet18", "image_size": 128})
    assert plain.backbone.conv1.kernel_size == (7, 7)
    assert isinstance(plain.backbone.maxpool, nn.MaxPool2d)
    assert sum(weights.numel() for weights in plain.backbone.parameters()) == 11_176_512  # published, without classes
    narrow = build_encoder({"backbone": "resnet18", "image_size": 128, "width": 8})
    assert narrow.backbone.conv1.weight.shape == (8, 3, 7, 7)
    deep = build_encoder({"backbone": "resnet18d", "image_size": 128, "width": 8})
    assert isinstance(deep.backbone.conv1, nn.Sequential)
    asked = build_encoder({"backbone": "resnet18", "image_size": 128, "small_stem": True})
    assert asked.backbone.conv1.weight.shape == (64, 3, 3, 3)


@pytest.mark.parametrize("pairs", [3, 4])
def test_small_encoders_have_pairs_of_convolutions_of_the_stated_widths(pairs: int) -> None:
    encoder = build_encoder({"backbone": f"conv{2 * pairs}", "width": 8})
    widths = [part.out_channels for part in encoder.modules() if isinstance(part, nn.Conv2d)]
    assert widths == [8, 8, 16, 16, 32, 32, 64, 64][: 2 * pairs]
    places = {}
    for name in ("stage1", "stage2", "stage3", "stage4")[:pairs]:
        stage = encoder.backbone.get_submodule(name)
        stage.register_forward_hook(lambda module, entering, leaving, name=name: places.update({name: leaving.shape}))
    encoder(torch.zeros(2, 3, 32, 32))
    assert [tuple(shape[1:]) for shape in places.values()] == [(8, 32, 32), (16, 16, 16), (32, 8, 8), (64, 4, 4)][
        :pairs
    ]


def test_conv7_begins_with_a_rotation_of_patches_and_hands_them_on() -> None:
    backbone = build_encoder({"backbone": "conv7", "width": 32}).backbone.train()
    filters = backbone.stem.filters.reshape(12, 12)
    torch.testing.assert_close(filters @ filters.T, torch.eye(12), msg="no number of a patch is lost or doubled")
    grey, pixels = torch.full((1, 3, 9, 9), 0.7), torch.randn(4, 3, 9, 9)
    mean_alone = torch.nn.functional.conv2d(grey, backbone.stem.filters)
    assert (mean_alone.abs().amax(dim=(0, 2, 3)) > 1e-6).nonzero().tolist() == [[0]], "colours and edges see no grey"
    stem = backbone.stem(pixels)
    assert stem.shape == (4, 24, 8, 8) and (stem >= 0).all()
    white = stem[:, :12] - stem[:, 12:]  # a number and its negative, each cut off at zero
    torch.testing.assert_close(white.mean(dim=(0, 2, 3)), torch.zeros(12), atol=1e-5, rtol=0)
    torch.testing.assert_close(white.var(dim=(0, 2, 3), correction=0), torch.ones(12), atol=0.01, rtol=0)
    for stage in (backbone.stage1, backbone.stage2, backbone.stage3):
        for convolution in (part for part in stage if isinstance(part, nn.Conv2d)):
            entering = torch.randn(2, convolution.in_channels, 5, 5)
            torch.testing.assert_close(convolution(entering)[:, : convolution.in_channels], entering)


@pytest.mark.parametrize(("side", "places"), [(32, (16, 8, 4)), (28, (14, 7, 4)), (16, (8, 4, 2)), (2, (1, 1, 1))])
def test_conv7_halves_pictures_of_any_side(side: int, places: tuple[int, ...]) -> None:
    encoder = build_encoder({"backbone": "conv7", "width": 8, "image_size": side})
    found = []
    for stage in (encoder.backbone.stage1, encoder.backbone.stage2, encoder.backbone.stage3):
        stage.register_forward_hook(lambda module, entering, leaving: found.append(tuple(leaving.shape[1:])))
    encoder(torch.zeros(2, 3, side, side))
    assert found == [(width, place, place) for width, place in zip((8, 16, 32), places, strict=True)]
    assert list(encoder.level_channels().values()) == [8, 16, 32, 32]


@pytest.mark.parametrize(
    ("backbone", "size"),
    [("vit_tiny_patch16_224", 32), ("convnext_atto", 64), ("mobilenetv3_small_100", 32), ("resnet10t", 64)],
)
def test_other_backbones_of_timm_give_unit_rows(backbone: str, size: int) -> None:
    encoder = build_encoder({"backbone": backbone, "image_size": size, "dim": 32})
    vectors = encoder.embed(arrays(3, size, size))
    assert vectors.shape == (3, 32)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(3))


def test_mlp_head() -> None:
    head = tiny(head="mlp").head
    assert [type(layer) for layer in head] == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear]
    assert head[0].weight.shape == (16, 16)
    assert tiny(head="mlp", hidden=40).head[3].weight.shape == (16, 40)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"backbone": "resnet81"}, "resnet18"),
        ({"backbone": "resnet18.nobody"}, "resnet18.a1_in1k"),
        ({"backbone": "conv9"}, "conv6"),
        ({"backbone": "inception_v3"}, "32 × 32 px"),
        ({"backbone": "convnext_atto", "width": 8}, "width of convnext_atto"),
        ({"backbone": "convnext_atto", "small_stem": True, "width": None}, "small stem"),
        ({"backbone": "resnet18", "width": 7}, "even"),
        ({"backbone": "resnet18", "width": 8, "pretrained": True}, "leave out either"),
        ({"pretrained": True}, "no published weights for conv6"),
        ({"head": "deep"}, '"linear", "mlp" or "none"'),
        ({"dim": 0}, "at least 1"),
        ({"depth": 18}, '"depth" is no setting'),
        ({"crop_fraction": 0.0}, "crop_fraction"),
        ({"std": (1.0, 0.0, 1.0)}, "std must be above 0"),
    ],
)
def test_impossible_choices_get_a_sentence(changes: dict, words: str) -> None:
    choices = {**TINY, **changes}
    if "backbone" in changes and "width" not in changes:
        choices["width"] = None
    with pytest.raises(InputError, match=words):
        build_encoder(choices)


# ---------------------------------------------------------------------------------------------------------------------
# Unit length, precision, initialisation


@pytest.mark.fault("normalise without an epsilon: NaN on a zero vector")
def test_zero_vector_gives_neither_nan_nor_a_wild_gradient() -> None:
    vectors = torch.tensor([[0.0, 0.0], [3.0, 4.0], [1e-4, 0.0]], requires_grad=True)
    unit = unit_length(vectors)
    torch.testing.assert_close(unit, torch.tensor([[0.0, 0.0], [0.6, 0.8], [1.0, 0.0]]))
    unit.sum().backward()
    assert torch.isfinite(vectors.grad).all()
    encoder = tiny()
    nn.init.zeros_(encoder.head.weight)
    nn.init.zeros_(encoder.head.bias)
    assert encoder.embed(arrays(2)).abs().sum() == 0


def test_head_and_length_are_float32_under_autocast() -> None:
    encoder = tiny().eval()
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    seen = {}
    encoder.backbone.register_forward_hook(lambda module, entering, leaving: seen.update(pooled=leaving))
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        vectors = encoder(images)
    convolved = nn.functional.linear(seen["pooled"].float(), encoder.head.weight, encoder.head.bias)
    assert vectors.dtype == torch.float32
    torch.testing.assert_close(vectors, convolved / convolved.norm(dim=1, keepdim=True))
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(4))
    low = encoder.embed(images.sigmoid(), precision="bfloat16")
    high = encoder.embed(images.sigmoid(), precision="float32")
    assert not torch.equal(low, high)
    torch.testing.assert_close(low, high, atol=0.03, rtol=0)


def test_same_seed_same_weights_and_no_trace_in_the_global_state() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = build_encoder({"backbone": "resnet18", "width": 8}, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    second = build_encoder({"backbone": "resnet18", "width": 8}, seed=1)
    third = build_encoder({"backbone": "resnet18", "width": 8}, seed=2)
    weights = [encoder.state_dict() for encoder in (first, second, third)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert not torch.equal(weights[0]["head.weight"], weights[2]["head.weight"])
    assert all(part.training for part in first.modules())


def test_describe_is_json_and_builds_the_same_encoder() -> None:
    import json

    encoder = build_encoder({**TINY, "mean": (0.1, 0.2, 0.3)})
    facts = json.loads(json.dumps(encoder.describe()))
    again = build_encoder(facts)
    assert again.config == encoder.config
    assert again.preprocessing == Preprocessing(32, 1.0, (0.1, 0.2, 0.3))
    assert EncoderConfig(image_size=224).preprocessing.crop_fraction == 0.875


# ---------------------------------------------------------------------------------------------------------------------
# Starting weights


def test_start_from_a_whole_encoder_and_from_a_backbone_alone(tmp_path: Path) -> None:
    donor = tiny()
    save_file(donor.state_dict(), tmp_path / "whole.safetensors")
    save_file(donor.backbone.state_dict(), tmp_path / "backbone.safetensors")
    save_file(
        {f"module.{name}": value for name, value in donor.state_dict().items()}, tmp_path / "parallel.safetensors"
    )
    pictures = arrays(3)
    for name in ("whole", "parallel"):
        heir = build_encoder({**TINY, "pretrained": str(tmp_path / f"{name}.safetensors")}, seed=9)
        assert torch.equal(heir.embed(pictures), donor.embed(pictures))
        assert "at random" not in heir.origin
    heir = build_encoder({**TINY, "pretrained": str(tmp_path / "backbone.safetensors")}, seed=9)
    assert torch.equal(heir.features(pictures)["backbone"], donor.features(pictures)["backbone"])
    assert "left at random: head.weight, head.bias" in heir.origin


def test_start_reports_what_does_not_fit(tmp_path: Path) -> None:
    file = tmp_path / "other.safetensors"
    save_file({**tiny(dim=8).state_dict(), "fc.weight": torch.zeros(3)}, file)
    heir = build_encoder({**TINY, "pretrained": str(file)})
    assert "left at random: head.weight, head.bias" in heir.origin
    assert "not used: fc.weight, head.bias, head.weight" in heir.origin
    save_file({"fc.weight": torch.zeros(3)}, file)
    with pytest.raises(InputError, match="Nothing in .* fits"):
        build_encoder({**TINY, "pretrained": str(file)})
    file.write_bytes(b"not weights")
    with pytest.raises(InputError, match="can't be read"):
        build_encoder({**TINY, "pretrained": str(file)})
    with pytest.raises(InputError, match="can't be read"):
        build_encoder({**TINY, "pretrained": str(tmp_path / "nowhere")})


@pytest.mark.fault("pickle: loading a stranger's checkpoint runs their code")
def test_weights_in_a_pickle_are_refused_unread(tmp_path: Path) -> None:
    class RunsCode:
        def __reduce__(self):
            return Path.touch, (tmp_path / "trace",)

    file = tmp_path / "weights.pth"
    torch.save({"head.weight": RunsCode()}, file)
    with pytest.raises(InputError, match="can't be read as a safetensors file"):
        build_encoder({**TINY, "pretrained": str(file)})
    assert not (tmp_path / "trace").exists()
    torch.load(file, weights_only=False)
    assert (tmp_path / "trace").exists(), "this is what a reader of pickles does"


def test_published_weights_without_a_network_get_a_sentence() -> None:
    with pytest.raises(InputError, match="could not be fetched"):
        build_encoder({"backbone": "test_resnet", "pretrained": True})  # HF_HUB_OFFLINE is set


# ---------------------------------------------------------------------------------------------------------------------
# Preprocessing


def test_a_picture_at_its_size_is_only_normalised() -> None:
    view = Preprocessing(32, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    (picture,) = arrays(1)
    expected = (picture.transpose(2, 0, 1) / 255 - np.reshape(view.mean, (3, 1, 1))) / np.reshape(view.std, (3, 1, 1))
    for form in (picture, Image.fromarray(picture), png(picture)):
        np.testing.assert_allclose(view(form).numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("turned", [False, True])
def test_pixels_are_normalised_alike_however_they_lie_and_stay_as_they_are(
    dtype: torch.dtype, layout: torch.memory_format, turned: bool
) -> None:
    view = Preprocessing(size=6, mean=(0.1, 0.5, 0.7), std=(0.2, 0.3, 0.9))
    levels = torch.arange(3 * 3 * 36).view(3, 3, 6, 6) % 251
    pixels = levels.to(torch.uint8) if dtype == torch.uint8 else (levels / 255).to(dtype)
    pixels = pixels.contiguous(memory_format=layout)
    if turned:
        pixels = pixels.transpose(2, 3)
    before = pixels.clone()
    share = pixels.double().numpy() / (255 if dtype == torch.uint8 else 1)
    expected = (share - np.reshape(view.mean, (3, 1, 1))) / np.reshape(view.std, (3, 1, 1))
    np.testing.assert_allclose(view.normalise(pixels).numpy(), expected, rtol=1e-6, atol=1e-6)
    assert torch.equal(pixels, before) and view.normalise(pixels).dtype == torch.float32


@pytest.mark.parametrize("crop_fraction", [1.0, 0.875])
@pytest.mark.parametrize(("height", "width"), [(128, 128), (96, 192), (300, 200), (20, 31)])
def test_fit_equals_resize_and_centre_crop_of_torchvision(height: int, width: int, crop_fraction: float) -> None:
    from torchvision.transforms import functional

    picture = smooth(height, width)
    ours = Preprocessing(56, crop_fraction).fit(picture).numpy().transpose(1, 2, 0)
    resized = functional.resize(Image.fromarray(picture), round(56 / crop_fraction))
    theirs = np.asarray(functional.center_crop(resized, [56, 56]))
    # They round the resized side and the crop's corner to whole pixels: up to half a pixel of a smooth slope.
    assert np.abs(ours.astype(int) - theirs).max() <= (6 if height >= 56 else 16)
    assert np.abs(ours.astype(int) - theirs).mean() < 2


def test_shrinking_is_antialiased_and_strips_cost_no_memory() -> None:
    stripes = np.zeros((256, 256, 3), np.uint8)
    stripes[:, ::2] = 255
    fitted = Preprocessing(32).fit(stripes).float()
    assert (fitted - 127.5).abs().max() < 20
    assert Preprocessing(32).fit(np.zeros((1, 200_000, 3), np.uint8)).shape == (3, 32, 32)


def test_float_pixels_are_fitted_as_bytes_are() -> None:
    view = Preprocessing(24, 0.9)
    picture = smooth(60, 80)
    by_floats = view.fit((picture / 255).astype(np.float32))
    torch.testing.assert_close(by_floats, view.fit(picture) / 255, atol=1.01 / 255, rtol=0)
