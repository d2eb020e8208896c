"""What is read from files is read with suspicion: whatever their bytes are, a right answer or one sentence, no crash.

Run folders are broken in a child process, since a wrong offset in an Arrow file would end this one. Checkpoints are
sealed again after they were broken: a stranger can compute a hash too.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from serving import Client, served
from tiny_runs import picture_folder, tiny

from instdisc import checkpoint, files
from instdisc.data.sources.labels import labels_of_lines, read_label_lines
from instdisc.data.sources.open import open_source
from instdisc.data.storage.scan import read_index, write_index
from instdisc.encoder.weights import start_from_file
from instdisc.errors import InputError
from instdisc.jobs.catalogue import Listed
from instdisc.jobs.collection import Collection
from instdisc.jobs.info import info
from instdisc.jobs.label import read_table
from instdisc.jobs.run import Run
from instdisc.jobs.train import train

ODD: list[Any] = [None, True, -1, 0, 2**70, 1e308, "", "x" * 2_000, [], {}, [1, 2], {"a": 1}, "../../etc"]
quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("parsers")
    pictures = picture_folder(folder / "pictures", 40)
    return pictures, train(pictures, folder / "run", tiny(epochs=1), say=None).path


# ---------------------------------------------------------------------------------------------------------------------
# Run folders


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to each value inside a JSON value."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in inside:
        yield (*at, key)
        yield from places(one, (*at, key))


def broken_json(file: Path, draw: random.Random) -> None:
    """One value is another, or gone."""
    facts = json.loads(file.read_text())
    *way, last = draw.choice(list(places(facts)))
    held = facts
    for key in way:
        held = held[key]
    if isinstance(held, dict) and draw.random() < 0.3:
        del held[last]
    else:
        held[last] = draw.choice(ODD)
    file.write_text(json.dumps(facts))


def broken_bytes(file: Path, draw: random.Random) -> None:
    """Some bytes are others, mostly in the header; now and then the end is missing."""
    data = bytearray(file.read_bytes())
    for _ in range(draw.randint(1, 8)):
        data[draw.randrange(len(data) if draw.random() < 0.5 else min(len(data), 600))] = draw.randrange(256)
    file.write_bytes(data[: draw.randrange(len(data))] if draw.random() < 0.2 else data)


def seal(step: Path) -> None:
    """Lengths and hashes as the files are now."""
    with contextlib.suppress(ValueError, AttributeError, TypeError):
        state = json.loads((step / "state.json").read_text())
        state.pop("sha256", None)
        state["files"] = {
            name: files.file_digest(step / name) for name in state.get("files", {}) if (step / name).is_file()
        }
        (step / "state.json").write_text(json.dumps(state | {"sha256": checkpoint._digest(state)}))


def broken(run: Path, what: str, seed: int) -> None:
    draw = random.Random(seed)
    (step,) = (run / "checkpoints").glob("step-*")
    if what == "config":
        broken_json(run / "config.json", draw)
    elif what == "instances":
        broken_bytes(run / "instances.arrow", draw)
    elif what == "state":
        broken_json(step / "state.json", draw)
        seal(step)
    else:
        broken_bytes(draw.choice(sorted(step.glob("*.safetensors"))), draw)
        seal(step)


def opened(run: Path, pictures: Path, resume: bool) -> None:
    """All that reads a run folder."""
    checkpoint.load_encoder(run)
    Collection(run).index.vectors(np.array([0, 1]))
    with contextlib.suppress(Exception):  # the page waits for the whole, which says what is wrong
        Listed(Run(run))
    info(run)
    if resume:
        resumed(run, pictures)


def resumed(run: Path, pictures: Path) -> None:
    train(pictures, run, tiny(epochs=1), resume=True, say=None)


def try_all(run: str, pictures: str, what: str, count: str) -> None:
    """In the child: a line before each case, so that the last one is known if this process crashes."""
    case = Path(run).parent / "case"
    for seed in range(int(count)):
        print(seed, flush=True)
        shutil.copytree(run, case)
        broken(case, what, seed)
        said = ""
        try:
            opened(case, Path(pictures), seed % 4 == 0)
        except InputError as error:
            said = str(error)
        assert "\n" not in said, said
        shutil.rmtree(case)
    print("done")


def try_every(run: str, pictures: str) -> None:
    """In the child: each fact of config.json in turn is gone or of another kind."""
    config = Path(run) / "config.json"
    whole = json.loads(config.read_text())
    refused = 0
    for *way, last in list(places(whole)):
        for value in (KeyError, None, {"a": 1}):
            facts = json.loads(json.dumps(whole))
            held = facts
            for key in way:
                held = held[key]
            if value is not KeyError:
                held[last] = value
            elif isinstance(held, dict):
                del held[last]
            config.write_text(json.dumps(facts))
            for opening in (info, checkpoint.load_encoder, resumed):
                said = ""
                try:
                    opening(Path(run), Path(pictures)) if opening is resumed else opening(Path(run))
                except InputError as error:
                    refused += 1
                    said = str(error)
                except Exception as error:
                    raise AssertionError((way, last, value, opening)) from error
                assert "\n" not in said, said
    assert refused > 100
    print("done")


def in_child(call: str, *words: object) -> None:
    program = f"import sys; sys.path[:] = {sys.path!r}; import test_hostile_parsers as this; "
    command = [sys.executable, "-c", f"{program}this.{call}(*sys.argv[1:])", *map(str, words)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=500, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0 and done.stdout.endswith("done\n"), (done.returncode, done.stdout[-40:], done.stderr)


@pytest.mark.parametrize("what", ["config", "instances", "state", "tensors"])
def test_a_broken_run_folder_is_one_sentence(what: str, trained: tuple[Path, Path], tmp_path: Path) -> None:
    pictures, run = trained
    in_child("try_all", shutil.copytree(run, tmp_path / "run"), pictures, what, 60)


@pytest.mark.slow
def test_every_fact_of_a_config_is_checked(trained: tuple[Path, Path], tmp_path: Path) -> None:
    pictures, run = trained
    in_child("try_every", shutil.copytree(run, tmp_path / "run"), pictures)


def test_offsets_of_an_arrow_file_are_checked(trained: tuple[Path, Path], tmp_path: Path) -> None:
    """Every name begins far outside of the file."""
    run = Path(shutil.copytree(trained[1], tmp_path / "run"))
    with pa.memory_map(str(run / "instances.arrow")) as file:
        names = pa.ipc.open_file(file).read_all()["id"].to_pylist()
    offsets = np.cumsum([0, *(len(name.encode()) for name in names)])
    content = (run / "instances.arrow").read_bytes()
    far = content.replace(offsets.astype("<i8").tobytes(), (offsets * 10**12).astype("<i8").tobytes())
    assert far != content
    (run / "instances.arrow").write_bytes(far)
    with pytest.raises(InputError, match=r"instances\.arrow can't be read .*: the run folder is damaged"):
        Collection(run).index  # noqa: B018 - it is read


@pytest.mark.fault("pickle: loading a stranger's checkpoint runs their code")
@pytest.mark.parametrize("group", ["encoder", "bank-00000-of-00001", "random-00000-of-00001"])
@pytest.mark.parametrize("content", [b"", b"\x80\x04.", b"\xff" * 64, b"\2\0\0\0\0\0\0\0{}", None])
def test_a_sealed_file_that_is_no_safetensors(
    group: str, content: bytes | None, trained: tuple[Path, Path], tmp_path: Path
) -> None:
    """`None`: a whole file, with tensors of other names, types and shapes."""
    pictures, original = trained
    run = Path(shutil.copytree(original, tmp_path / "run"))
    (step,) = (run / "checkpoints").glob("step-*")
    if content is None:
        odd = {"rows": torch.zeros(2, 3, 4), "cpu": torch.zeros(3)}
        save_file(odd, step / f"{group}.safetensors", metadata={"start": "much", "stop": "-1"})
    else:
        (step / f"{group}.safetensors").write_bytes(content)
    seal(step)
    assert checkpoint.latest(run / "checkpoints") is not None, "it is taken for whole"
    with pytest.raises(InputError) as raised:
        train(pictures, run, tiny(epochs=1), resume=True, say=None)
    assert "\n" not in str(raised.value)


# ---------------------------------------------------------------------------------------------------------------------
# Single files


@quick
@given(
    content=st.binary(max_size=300) | st.binary(max_size=60).map(lambda header: bytes([len(header)] + [0] * 7) + header)
)
def test_weights_from_elsewhere(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    file.write_bytes(content)
    with pytest.raises(InputError):
        start_from_file(torch.nn.Linear(2, 2), file)


cells = st.text(st.sampled_from('ab,"\n\r\0é\ufeff1.-'), max_size=12)
tables = st.binary(max_size=200) | st.builds(
    lambda head, lines: ("\n".join([head, *(",".join(line) for line in lines)])).encode(),
    st.sampled_from(["path,label", "id,label", "label", '"path","label"', "path,label,by", ""]),
    st.lists(st.lists(cells, max_size=4), max_size=6),
)


@quick
@given(content=tables)
def test_labels_in_a_table(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "labels.csv"
    file.write_bytes(content)
    names = [b"a", b"b", b"ab"]
    with contextlib.suppress(InputError):
        lines = read_label_lines(file)
        (codes, classes), sentences = labels_of_lines(lines, 3, lambda a, b: names[a:b], lambda a, b: names[a:b])
        assert codes.shape == (3,) and codes.min() >= -1 and codes.max() < max(len(classes), 1)
        assert all(isinstance(sentence, str) for sentence in sentences)
    with contextlib.suppress(InputError):
        table = read_table(file)
        assert len(table.names) == len(table.labels) and all(table.labels)


@quick
@given(seed=st.integers(0, 2**32 - 1))
def test_a_tar_shard(seed: int, tmp_path: Path) -> None:
    """What is found in a broken shard are rows that can be asked for, and nothing from outside of it."""
    shard = io.BytesIO()
    with tarfile.TarFile(fileobj=shard, mode="w") as tar:
        for name in ("a.jpg", "a.cls", "../../b.png", "/etc/passwd.jpg", "a.jpg"):
            member = tarfile.TarInfo(name)
            member.size = 700
            tar.addfile(member, io.BytesIO(b"\xff\xd8\xff" + bytes(697)))
    file = tmp_path / f"{seed}.tar"
    file.write_bytes(shard.getvalue())
    broken_bytes(file, random.Random(seed))
    with contextlib.suppress(InputError):
        source = open_source(str(file), index_folder=tmp_path / "index")
        whole = file.read_bytes()
        for row, content in source.iterate():
            assert source.identifier(row).startswith(file.name)
            assert not isinstance(content, bytes) or content in whole
    file.unlink()


@quick
@given(seed=st.integers(0, 2**32 - 1), facts=st.sampled_from([{}, {"fingerprint": "x"}, {"layout": 99}]))
def test_an_index_that_is_cut_short_is_made_anew(seed: int, facts: dict[str, Any], tmp_path: Path) -> None:
    """Header and footer, which a cut or a changed disk breaks: the file is then no index at all."""
    file = tmp_path / "index.arrow"
    write_index(file, pa.table({"name": ["a", "b"]}), facts)
    content = file.read_bytes()
    draw = random.Random(seed)
    file.write_bytes(content[: draw.randrange(len(content))])
    assert read_index(file) is None


@pytest.mark.parametrize("facts", [b"\x8b", b"{", b"[1]", b"null", b'{"layout": {}}'])
def test_an_index_whose_facts_are_damaged_is_made_anew(facts: bytes, tmp_path: Path) -> None:
    """Found by fuzzing: JSON beside the columns that is none."""
    file = tmp_path / "index.arrow"
    table = pa.table({"name": ["a"]}).replace_schema_metadata({b"instdisc": facts})
    with pa.OSFile(str(file), "wb") as out, pa.ipc.new_file(out, table.schema) as writer:
        writer.write_table(table)
    assert read_index(file) is None


@pytest.mark.parametrize("expected", [{}, {"sha256": "x"}, None, 3, [], "x"])
def test_a_sealed_state_that_does_not_say_the_size_of_a_file(
    expected: Any, trained: tuple[Path, Path], tmp_path: Path
) -> None:
    """Found by fuzzing: it is skipped as damaged."""
    run = Path(shutil.copytree(trained[1], tmp_path / "run"))
    (step,) = (run / "checkpoints").glob("step-*")
    state = json.loads((step / "state.json").read_text())
    state.pop("sha256")
    state["files"]["encoder.safetensors"] = expected
    (step / "state.json").write_text(json.dumps(state | {"sha256": checkpoint._digest(state)}))
    assert checkpoint.latest(run / "checkpoints", warn=lambda words: None) is None


# ---------------------------------------------------------------------------------------------------------------------
# Query parameters


@pytest.fixture(scope="module")
def client(trained: tuple[Path, Path]) -> Iterator[Client]:
    with served(trained[1]) as client:
        yield client


values = st.sampled_from(
    ["", "-1", "0", "39", "40", "1e3", "9" * 15, "9" * 30, "NaN", "inf", "0.5", "1,2", ",", "1,", "1,,2", "%00", "%ff",
     "..%2f..", "*" * 490, "%5B", "[a-", "true", "null", "%F0%9F%90%88", "1%0A", "%EF%BC%91", "red", "0x1", "1_0"]
)  # fmt: skip
paths = st.sampled_from(
    ["pictures", "pictures/0", "neighbours/0", "search", "duplicates", "look-alikes", "outliers", "map", "map/points",
     "map/colours", "labels", "labels.csv", "proposals", "uploads/x", "../pictures/0"]
)  # fmt: skip
names = st.sampled_from(
    ["start", "count", "label", "tag", "where", "rows", "like", "unlike", "upload", "threshold", "by", "size"]
)


@settings(max_examples=150, deadline=None)
@given(path=paths, query=st.lists(st.tuples(names, values), max_size=4))
def test_whatever_is_asked_is_answered_or_refused(client: Client, path: str, query: list[tuple[str, str]]) -> None:
    words = "&".join(f"{name}={value}" for name, value in query)
    status, _, content = client.send("GET", f"/api/{path}?{words}")
    assert status in (200, 400, 404, 422), (status, content[:300])
    assert b"Traceback" not in content and (status == 200 or len(content) < 5_000)
