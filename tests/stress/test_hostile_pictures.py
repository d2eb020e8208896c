"""Thousands of files made to break a decoder: each is read, or refused with a reason."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from decoding import MEMORY, Outcome, tried
from hostile_pictures import Hostile, corpus, sample, small_files

from instdisc.data.decoding.decode import decode
from instdisc.data.loading.dataset import open_pictures
from instdisc.data.loading.quarantine import Quarantine
from instdisc.data.sources.open import open_source
from instdisc.errors import InputError
from instdisc.serve.upload import decode_aside


@pytest.fixture(scope="module")
def files() -> list[Hostile]:
    return corpus()


@pytest.fixture(scope="module")
def outcomes(files: list[Hostile]) -> list[Outcome]:
    return list(tried(files))


def test_the_corpus_is_large_and_the_same_every_time(files: list[Hostile]) -> None:
    again = corpus()
    assert [(file.name, file.content) for file in again] == [(file.name, file.content) for file in files]
    assert len({file.content for file in files}) > 1_000
    for kind in small_files():
        assert sum(f"-{kind}-" in file.name for file in files) > 40, kind


@pytest.mark.fault("decompression bomb")
@pytest.mark.fault("a worker that dies leaves the run hanging")
def test_no_file_crashes_hangs_or_takes_too_much_memory(outcomes: list[Outcome], files: list[Hostile]) -> None:
    assert len(outcomes) == len(files)
    bad = [one for one in outcomes if one.state not in ("read", "refused")]
    assert not bad, [(one.file.name, one.state, one.said) for one in bad]
    assert 0 < max(one.megabytes for one in outcomes) <= MEMORY // 1_000_000
    for one in outcomes:
        if one.state == "refused":
            assert one.said and "\n" not in one.said and len(one.said) < 160, one


def test_what_is_known_comes_out(outcomes: list[Outcome]) -> None:
    wrong = [
        (one.file.name, one.file.expected, one.state, one.said)
        for one in outcomes
        if one.file.expected
        and not any(
            one.state == "read" if words == "read" else one.state == "refused" and words in one.said
            for words in one.file.expected.split("|")
        )
    ]
    assert not wrong


@pytest.mark.fault("a corrupt or truncated picture trains half-grey in silence")
def test_a_file_that_was_cut_is_refused_or_has_all_its_pixels(outcomes: list[Outcome]) -> None:
    whole = {one.file.content: one for one in tried(Hostile("whole", content) for content in small_files().values())}
    assert {one.state for one in whole.values()} == {"read"}
    cut = [one for one in outcomes if one.file.whole]
    half = [one.file.name for one in cut if one.state == "read" and one.said != whole[one.file.whole].said]
    assert len(cut) > 1_000 and not half


@pytest.mark.fault("a corrupt or truncated picture kills the run after hours")
def test_a_training_reads_what_can_be_read_and_lists_the_rest(outcomes: list[Outcome], tmp_path: Path) -> None:
    """In the product's own processes: each file becomes a row or a line of the quarantine."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    cheap = [one for one in outcomes if one.seconds < 0.5]
    readable = {one.file.content for one in cheap if one.state == "read"}
    chosen = sample([one.file for one in cheap], 300, seed=1)
    for number, file in enumerate(chosen):
        (folder / f"{number:04}.jpg").write_bytes(file.content)
    quarantine = Quarantine(tmp_path / "quarantine.csv")
    source = open_source(str(folder), index_folder=tmp_path)
    assert len(source) == len(chosen)
    pictures = open_pictures(source, 32, "cpu", storage="memory", workers=2, quarantine=quarantine)
    expected = [number for number, file in enumerate(chosen) if file.content in readable]
    assert pictures.rows.tolist() == expected
    assert quarantine.count == len(chosen) - len(expected)
    assert len((tmp_path / "quarantine.csv").read_text().splitlines()) == 1 + quarantine.count


@pytest.mark.parametrize("kind", [kind for kind in ("avif", "heic", "webp") if kind in small_files()])
def test_an_upload_of_a_newer_format_is_the_picture_that_a_training_sees(kind: str) -> None:
    content = small_files()[kind]
    np.testing.assert_array_equal(decode_aside(content), decode(content))
    assert decode(content).shape == (6, 5, 3)


@pytest.mark.fault("an upload without a size limit")
@pytest.mark.parametrize(
    "name", ["scans.jpg", "exif-in-pieces.jpg", "tile-25000.tif", "pixels-65500.png", "archive-in-archive.jpg"]
)
def test_an_upload_of_the_worst_is_refused_with_a_reason(files: list[Hostile], name: str) -> None:
    (file,) = (one for one in files if one.name == f"crafted-{name}")
    with pytest.raises(InputError, match=f"This can't be used as a picture: .*({file.expected})"):
        decode_aside(file.content)
