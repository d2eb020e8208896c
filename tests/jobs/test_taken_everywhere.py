"""Arrays of paths, fits again, ids, signed URLs, servers that refuse, widths that do not fit."""

from __future__ import annotations

import http.server
import io
import os
import socket
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from tiny_runs import TINY, made_pictures, picture_folder

import instdisc
from instdisc.data.sources.open import open_source
from instdisc.data.storage.remote import names_below
from instdisc.data.storage.urls import without_secrets
from instdisc.encoder import build_encoder
from instdisc.encoder.backbones import has_width
from instdisc.errors import InputError
from instdisc.jobs import index
from instdisc.jobs.collection import Collection
from instdisc.training.presets import DataFacts, preset

COUNT = 20
SETTINGS = {name: value for name, value in TINY.items() if name not in ("epochs", "seed")}


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


class Column:
    """What a pandas Series is to others: one dimension, an array inside, and an iterator."""

    ndim = 1

    def __init__(self, values: list[str]) -> None:
        self.values = np.array(values, dtype=object)
        self.shape = self.values.shape

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return self.values

    def __len__(self) -> int:
        return len(self.values)

    def __iter__(self) -> Iterator[str]:
        return iter(self.values)


FORMS: dict[str, Callable[[list[str]], Any]] = {
    "list": list,
    "tuple": tuple,
    "paths": lambda names: [Path(name) for name in names],
    "array": np.array,
    "array of objects": lambda names: np.array(names, dtype=object),
    "array of paths": lambda names: np.array([Path(name) for name in names], dtype=object),
    "column": Column,
    "arrow": pa.array,
    "arrow chunks": lambda names: pa.chunked_array([names[:3], names[3:]]),
}


@pytest.mark.fault("an array of paths is taken for pixels")
@pytest.mark.parametrize("form", FORMS)
def test_paths_in_any_form_are_a_source(form: str, tmp_path: Path) -> None:
    files = [str(file) for file in sorted(picture_folder(tmp_path / "p", COUNT).glob("*/*.png"))]
    source = open_source(FORMS[form](files))
    assert [source.identifier(row) for row in range(COUNT)] == files
    assert source.read(3) == Path(files[3]).read_bytes()
    encoder = build_encoder({"backbone": "conv6", "width": 4, "dim": 8, "image_size": 16}, seed=0)
    expected = encoder.embed(files, vectors="embedding").numpy()
    assert np.array_equal(encoder.embed(FORMS[form](files), vectors="embedding").numpy(), expected)
    folders = [str(tmp_path / "p" / name) for name in ("red", "green", "blue")]
    assert len(open_source(FORMS[form](folders))) == COUNT


def test_arrays_of_pixels_stay_arrays() -> None:
    made = made_pictures(4)
    assert len(open_source(made)) == 4 and open_source(made).identifier(0) == "array#0"
    with pytest.raises(InputError, match="no stack of pictures"):
        open_source(np.arange(4))


def test_train_and_the_estimator_take_arrays_of_paths_and_fit_again(tmp_path: Path) -> None:
    files = np.array([str(file) for file in sorted(picture_folder(tmp_path / "p", COUNT).glob("*/*.png"))])
    model = instdisc.InstanceDiscrimination(epochs=1, settings=SETTINGS, device="cpu", out=tmp_path / "run")
    vectors = model.fit(files).transform(files)
    assert vectors.shape[0] == COUNT and model.run_ == tmp_path / "run"
    np.testing.assert_allclose(model.transform(str(tmp_path / "p" / "red")), model.transform(files[-7:]), atol=1e-6)
    np.testing.assert_allclose(model.transform(list(files[[3, 3]])), vectors[[3, 3]], atol=1e-6)
    for form in FORMS.values():
        np.testing.assert_allclose(model.transform(form(files.tolist())), vectors, atol=1e-6)
    before = (tmp_path / "run" / "config.json").read_bytes()
    again = model.fit(files).transform(files)
    assert model.run_ == tmp_path / "run-2" and (tmp_path / "run" / "config.json").read_bytes() == before
    np.testing.assert_allclose(again, vectors, atol=1e-5)
    assert Collection(tmp_path / "run-2").has_pictures()  # an array of paths is found again
    (tmp_path / "run-3").mkdir()  # empty: nobody's
    (tmp_path / "taken").write_text("")
    with pytest.raises(InputError, match="is a file: choose a folder"):
        instdisc.InstanceDiscrimination(out=tmp_path / "taken").fit(files)


@pytest.mark.fault("two pictures have one id")
def test_ids_stay_unique_when_pictures_are_added(tmp_path: Path, said: Callable[..., str]) -> None:
    for camera in (1, 2):
        (tmp_path / f"camera{camera}" / "DCIM").mkdir(parents=True)
        for number, pixels in enumerate(made_pictures(COUNT, seed=camera)):
            Image.fromarray(pixels).save(tmp_path / f"camera{camera}" / "DCIM" / f"IMG_{number}.png")
    run = instdisc.train(tmp_path / "camera1", tmp_path / "run", say=None, **TINY).path
    lines: list[str] = []
    assert index.add(run, tmp_path / "camera2", say=lines.append) == COUNT
    assert "20 of them have the ids of others in the collection: their ids begin with camera2/." in lines
    ids = Collection(run).index.pictures["id"].to_pylist()
    assert len(set(ids)) == 2 * COUNT and "camera2/DCIM/IMG_3.png" in ids
    assert index.tag(run, "one", where="DCIM/IMG_3.png") == 1
    assert index.remove(run, where="camera2/DCIM/IMG_3.png", say=None) == 1
    assert index.recompute(run, say=None) == 2 * COUNT  # found again by the ids that they have in their source
    collection = Collection(run)
    for row in (COUNT + 1, 2 * COUNT - 1):
        assert np.array_equal(collection.picture(row), made_pictures(COUNT, seed=2)[int(ids[row].split("_")[1][:-4])])
    other = tmp_path / "else" / "camera2" / "DCIM"
    other.mkdir(parents=True)
    for name in ("IMG_1.png", "new.png"):
        Image.fromarray(made_pictures(1, seed=5)[0]).save(other / name)
    assert index.add(run, tmp_path / "else" / "camera2", say=None) == 2
    assert Collection(run).index.pictures["id"].to_pylist()[-2:] == ["camera2~2/DCIM/IMG_1.png", "DCIM/new.png"]


@pytest.mark.fault("a preset's width stops a backbone without a width")
@pytest.mark.parametrize("backbone", ["convnext_atto", "vit_tiny_patch16_224", "efficientnet_b0"])
def test_a_presets_width_falls_away_where_the_backbone_has_none(backbone: str) -> None:
    assert not has_width(backbone)
    assert preset("digits", DataFacts(1797, 8, "cpu")).with_overrides({"backbone": backbone}).width is None
    settings = preset("default", DataFacts(5000, 96, "cpu")).with_overrides({"backbone": backbone})
    assert settings.width is None and build_encoder(settings.encoder, seed=0).config.backbone == backbone
    wide = preset("default", DataFacts(5000, 32, "cpu")).with_overrides({"backbone": backbone, "width": 32})
    with pytest.raises(InputError, match=r"can't be changed, .* give --set width=none"):
        build_encoder(wide.encoder, seed=0)
    kept = preset("default", DataFacts(5000, 32, "cpu")).with_overrides({"backbone": "resnet18"})
    assert kept.width == 32 and has_width("resnet18") and has_width("conv8") and has_width("none_such")


def test_what_was_moved_is_told_with_the_remedy(tmp_path: Path, said: Callable[..., str]) -> None:
    pictures = picture_folder(tmp_path / "p", COUNT)
    run = instdisc.train(pictures, tmp_path / "run", say=None, **TINY).path
    pictures.rename(tmp_path / "moved")
    assert "p does not exist: check the path." in (told := said("evaluate", run, code=1))
    assert "name the new location with --train-source" in told
    said("duplicates", run, "--train-source", tmp_path / "moved")


def test_secrets_and_names_of_urls() -> None:
    """By hand: what a person, a log and an id may show of a URL."""
    for url, shown in {
        "https://h/x.tar?Signature=a/b%2Bc==&Expires=9": "https://h/x.tar",
        "https://h/x.tar?X-Amz-Credential=1&X-Amz-Signature=a/b": "https://h/x.tar",
        "https://h/x.tar?sv=1&sig=ab%2F": "https://h/x.tar",
        "https://h/x.tar?download=true": "https://h/x.tar?download=true",
        "https://me:secret@h:8080/x.tar": "https://me@h:8080/x.tar",
        "ftp://me:s3:c@h/a b": "ftp://me@h/a b",
        "zip://a.tar::https://h/x.zip?token=1": "zip://a.tar::https://h/x.zip",
        "s3://bucket/key=1/x.tar": "s3://bucket/key=1/x.tar",
        "/local/a?token=1": "/local/a?token=1",
        "http://127.0.0.1:80/x@y.tar": "http://127.0.0.1:80/x@y.tar",
    }.items():
        assert without_secrets(url) == shown
    assert names_below(["https://h/a/x.tar?Signature=a/b=="]) == ["x.tar"]
    assert names_below(["https://h/a/x.tar?s=a/b", "https://h/b/y.tar?s=c"]) == ["a/x.tar", "b/y.tar"]
    assert names_below(["https://h/get.tar?id=1", "https://h/get.tar?id=2"]) == ["get.tar?id=1", "get.tar?id=2"]
    assert names_below(["/a/x?1.tar", "/a/y.tar"]) == ["x?1.tar", "y.tar"]


class Signed(http.server.BaseHTTPRequestHandler):
    """Files for those who bring the signature of the day; 401 without, 404 for what is not there."""

    files: dict[str, bytes]
    signature = "a/b%2Bc=="

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        content = self.files.get(path)
        status = 404 if content is None else 200 if query == f"Signature={self.signature}" else 401
        self.send_response(status)
        body = content if status == 200 and content is not None else b""
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


@pytest.fixture
def site() -> Iterator[str]:
    shard, table = io.BytesIO(), io.BytesIO()
    contents = []
    with tarfile.open(fileobj=shard, mode="w") as archive:
        for number, pixels in enumerate(made_pictures(COUNT)):
            out = io.BytesIO()
            Image.fromarray(pixels).save(out, "PNG")
            contents.append(out.getvalue())
            member = tarfile.TarInfo(f"{number:04d}.png")
            member.size = len(contents[-1])
            archive.addfile(member, io.BytesIO(contents[-1]))
    pq.write_table(pa.table({"image": contents}), table)
    Signed.files = {"/x.tar": shard.getvalue(), "/y.parquet": table.getvalue()}
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Signed) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.mark.fault("a password or a signature in a URL is kept in the run")
@pytest.mark.parametrize("name", ["x.tar", "y.parquet"])
def test_signed_urls_have_ids_of_their_path_and_keep_their_secret(site: str, name: str, tmp_path: Path) -> None:
    url = f"{site}/{name}?Signature={Signed.signature}"
    source = open_source(url)
    first = source.identifier(0)
    assert first in (f"{name}#0000", f"{name}#0") and source.location(0) == f"{site}/{first}"
    if name == "y.parquet":
        return
    run = instdisc.train(url, tmp_path / "run", say=None, **TINY).path
    index.recompute(run, train_source=url, say=None)
    from instdisc.jobs.export import export

    export(run, tmp_path / "exported", only=["vectors"], train_source=url, say=None)
    kept = [
        file for top in (run, tmp_path / "exported", tmp_path / "cache") for file in top.rglob("*") if file.is_file()
    ]
    assert {"config.json", "instances.arrow", "index.json", "vectors.parquet"} <= {file.name for file in kept}
    assert not [file for file in kept if b"Signature" in file.read_bytes() or b"b%2Bc" in file.read_bytes()]
    with pytest.raises(InputError, match=r"it answers 401, Unauthorized.* a newly signed URL"):
        Collection(run).training_source()
    assert Collection(run, train_source=url).has_pictures()


@pytest.mark.parametrize("name", ["x.tar", "y.parquet"])
def test_a_server_that_refuses_is_told_apart(site: str, name: str) -> None:
    with pytest.raises(InputError, match=rf"{site}/{name} cannot be reached \(it answers 401, Unauthorized\)"):
        open_source(f"{site}/{name}?Signature=stale")
    ending = os.path.splitext(name)[1]
    with pytest.raises(InputError, match=r"\(it answers 404, Not Found\)"):
        open_source(f"{site}/none{ending}")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    with pytest.raises(InputError, match=r"\(the connection is refused\)"):
        open_source(f"http://127.0.0.1:{port}/{name}")
    with pytest.raises(InputError, match=r"\(no host of that name is found\)"):
        open_source(f"http://no-such-host.invalid/{name}")


def test_a_remote_folder_that_is_not_there_is_said_so(site: str) -> None:
    with pytest.raises(InputError, match=r"cannot be listed \(nothing is found there\)"):
        open_source(f"{site}/nothing/")
