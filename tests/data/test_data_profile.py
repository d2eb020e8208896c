"""Pictures with an ICC profile become the sRGB that its definition says, whichever way they are decoded."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageCms
from profiles import ADOBE_RGB, DISPLAY_P3, SRGB, made, made_cmyk, shown
from test_data_decode import HEIC, encode, noise, smooth

from instdisc.data.decoding import decode as decoding
from instdisc.data.decoding.decode import decode, decode_stored


@pytest.mark.parametrize("primaries", [DISPLAY_P3, ADOBE_RGB, SRGB], ids=["P3", "Adobe", "gamma"])
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "JPEG"])
def test_colours_are_those_of_the_profile(kind: str, primaries: tuple[tuple[float, float], ...]) -> None:
    pixels = smooth(64, 48)
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}}.get(kind, {})
    plain = decode(encode(pixels, kind, **options))
    turned = decode(encode(pixels, kind, icc_profile=made(primaries, 2.2), **options))
    assert np.abs(turned - shown(plain, primaries, 2.2)).max() <= 2
    assert np.abs(turned.astype(int) - plain).max() > 5


@pytest.mark.parametrize("kind", ["AVIF", *HEIC])
def test_colours_of_the_formats_of_telephones(kind: str) -> None:
    picture = Image.fromarray(smooth(64, 48))
    plain = decode(encode(picture, kind))
    profile = made(DISPLAY_P3, 2.2)
    if kind == "HEIC":
        picture.info["icc_profile"] = profile
        turned = decode(encode(picture, kind))
    else:
        turned = decode(encode(picture, kind, icc_profile=profile))
    assert np.abs(turned - shown(plain, DISPLAY_P3, 2.2)).max() <= 2


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_both_ways_of_decoding_a_jpeg_give_the_same_pixels(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    profile = made(ADOBE_RGB, 1.8, b"RGB " if mode == "RGB" else b"GRAY")
    data = encode(Image.fromarray(smooth(300, 200)).convert(mode), "JPEG", icc_profile=profile)
    quick = [decode(data), decode(data, at_least=40), decode_stored(data, 32)[0]]
    assert np.abs(quick[0].astype(int) - np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))).max() > 5
    monkeypatch.setattr(decoding, "decode_whole", lambda *_: None)
    for one, other in zip(quick, (decode(data), decode(data, at_least=40), decode_stored(data, 32)[0]), strict=True):
        np.testing.assert_array_equal(one, other)


def test_grey_follows_its_own_curve() -> None:
    levels = np.arange(256, dtype=np.uint8)[None]
    turned = decode(encode(levels, "PNG", icc_profile=made(SRGB, 1.8, b"GRAY")))
    expected = shown(np.repeat(levels[..., None], 3, 2), SRGB, 1.8)
    assert np.abs(turned - expected).max() <= 2


def test_inks_are_those_of_the_press() -> None:
    """A black of L* 20 and a cyan that is grey, which no formula without the profile would give."""
    corners = {(c, m, y, k): (100.0, 0.0, 0.0) for c in (0, 1) for m in (0, 1) for y in (0, 1) for k in (0, 1)}
    corners |= {(0, 0, 0, 1): (20.0, 0.0, 0.0), (1, 0, 0, 0): (60.0, 0.0, 0.0)}
    inks = np.zeros((8, 24, 4), np.uint8)
    inks[:, 8:16, 3], inks[:, 16:, 0] = 255, 255
    picture = Image.frombytes("CMYK", (24, 8), inks.tobytes())
    for kind, options in (("TIFF", {}), ("JPEG", {"quality": 100, "subsampling": 0})):
        turned = decode(encode(picture, kind, icc_profile=made_cmyk(corners), **options))
        for column, light in ((4, 100), (12, 20), (20, 60)):
            linear = ((light + 16) / 116) ** 3 if light > 8 else light / 903.3
            expected = 255 * (1.055 * linear ** (1 / 2.4) - 0.055)
            assert np.abs(turned[4, column] - expected).max() <= 3, (kind, light)


def test_alpha_is_left_alone_and_white_stays_white() -> None:
    rgba = np.dstack([smooth(16, 16), np.full((16, 16), 255, np.uint8)])
    rgba[:8, :, 3] = 0
    turned = decode(encode(rgba, "PNG", icc_profile=made(DISPLAY_P3, 2.2)))
    assert (turned[:8] == 255).all()
    assert np.abs(turned[8:] - shown(rgba[8:, :, :3], DISPLAY_P3, 2.2)).max() <= 2


def test_what_is_srgb_or_makes_no_sense_changes_nothing() -> None:
    pixels = noise(9, 9)
    profile = made(DISPLAY_P3, 2.2)
    own = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for other in (own, profile[:200], bytes(400), made(SRGB, 1.0, b"GRAY"), profile[:128] + bytes(400)):
        np.testing.assert_array_equal(decode(encode(pixels, "PNG", icc_profile=other)), pixels)


def test_damaged_profiles_give_a_picture() -> None:
    random = np.random.default_rng(0)
    pixels = noise(9, 9)
    for _ in range(300):
        profile = bytearray(made(DISPLAY_P3, 2.2))
        for place in random.integers(0, len(profile), random.integers(1, 9)):
            profile[place] = random.integers(0, 256)
        assert decode(encode(pixels, "PNG", icc_profile=bytes(profile))).shape == (9, 9, 3)
