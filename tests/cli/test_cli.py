"""The command line: what a person types, and what they are told; real commands where the process itself matters."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_runs import TINY, picture_folder

import instdisc
from instdisc import cli
from instdisc.errors import InputError
from instdisc.runs import RunFolder

COMMANDS = (
    "train",
    "open",
    "evaluate",
    "search",
    "index",
    "duplicates",
    "outliers",
    "compare",
    "report",
    "embed",
    "info",
    "cache",
    "reproduce",
    "demo",
)
SETTINGS = [
    word
    for name, value in (TINY | {"epochs": 1}).items()
    if name not in ("batch", "epochs", "size", "seed")
    for word in ("--set", f"{name}={value}")
]
FLAGS = ["--batch", "16", "--epochs", "1", "--size", "16", "--seed", "3", "--device", "cpu", *SETTINGS]

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def ctrl_c_is_heard() -> Iterator[None]:
    """Where a shell may have us ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def shell(*words: Any, **options: Any) -> subprocess.CompletedProcess[str]:
    """The installed command in a process of its own."""
    script = Path(sys.executable).with_name("instdisc")
    return subprocess.run([script, *map(str, words)], capture_output=True, text=True, timeout=500, **options)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Pictures and a run that the real command made of them."""
    folder = tmp_path_factory.mktemp("cli")
    pictures = picture_folder(folder / "my pictures", 61)
    done = shell("train", pictures, "--out", folder / "run", *FLAGS)
    assert done.returncode == 0, done.stderr
    assert "Pictures: 61 in " in done.stdout
    assert "16×16 px" in done.stdout
    assert "Labels were found: they serve for measuring only." in done.stdout
    assert "Recipe: preset default: " in done.stdout
    assert "Precision: float32, as asked for." in done.stdout
    assert "epoch 1: " in done.stdout and " images/s, waiting for data " in done.stdout
    assert f"Next: instdisc evaluate {folder / 'run'}" in done.stdout
    return pictures, folder / "run"


# ---------------------------------------------------------------------------------------------------------------------
# Help, and what starting costs


def test_importing_is_light() -> None:
    program = (
        "import sys, instdisc, instdisc.cli;"
        "heavy = {'torch', 'numpy', 'torchvision', 'timm', 'pyarrow', 'jaxtyping', 'sklearn', 'PIL', 'fsspec'};"
        "print(sorted(heavy & set(sys.modules)), 'rich' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split()[0] == "[]"
    program = "import sys, instdisc; print(*[name for name in sys.modules if name.startswith('instdisc')])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == {"instdisc", "instdisc.version"}
    assert set(instdisc.__all__) == set(dir(instdisc))


def test_help_does_not_pay_for_torch() -> None:
    program = (
        "import sys; sys.argv = ['instdisc', 'train', '--help']\nfrom instdisc.cli import main\ntry:\n    main()\n"
    )
    program += "except SystemExit:\n    print(sorted({'torch', 'numpy', 'pyarrow', 'jaxtyping'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("job", ["train", "search", "index", "embed", "evaluate"])
def test_a_command_pays_for_what_it_needs_alone(job: str) -> None:
    """timm takes two seconds, and tells people in a notebook to install ipywidgets."""
    heavy = {"timm", "torchvision", "sklearn", "matplotlib", "pandas", "datasets", "numba", "huggingface_hub"}
    program = f"import sys, instdisc.jobs.{job}; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_examples(command: Command, name: str) -> None:
    status, out, _ = command(name, "--help")
    assert status == 0
    assert f"Usage: instdisc {name} " in out
    assert "Example" in out
    assert f"instdisc {name}" in out.split("Example", 1)[1]


def test_first_words(command: Command) -> None:
    status, out, _ = command("--help")
    assert status == 0 and all(name in out for name in COMMANDS)
    status, out, err = command()
    assert status != 0 and "Usage: instdisc" in out + err
    assert command("--version") == (0, f"instdisc {instdisc.__version__}\n", "")
    status, _, err = command("trian")
    assert status == 2 and "trian" in err


# ---------------------------------------------------------------------------------------------------------------------
# From end to end


def test_evaluate_embed_and_info_as_commands(trained: tuple[Path, Path], tmp_path: Path, command: Command) -> None:
    pictures, run = trained
    tests = picture_folder(tmp_path / "tests", 30, seed=5)
    done = shell("evaluate", run, tests, "-k", "5", "--temperature", "run", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    kinds = ("search vectors", "embedding", "raw pixels, centred", "untrained encoder, whitened")
    for words in ("Weighted kNN, k = 5", *kinds, "Without labels:"):
        assert words in done.stdout
    report = json.loads(RunFolder(run).evaluation.read_text())
    assert f"{100 * report['knn']['top1']:.2f}" in done.stdout
    assert report["settings"]["temperature"] == 0.1

    status, out, _ = command("embed", run, pictures, "-o", tmp_path / "v.npy", "--device", "cpu")
    assert status == 0 and f"61 vectors of {(dim := instdisc.load(run).dimensions())} dimensions are in" in out
    assert np.load(tmp_path / "v.npy").shape == (61, dim)

    status, out, _ = command("info", run)
    assert status == 0 and "61 of" in out and "evaluated" in out
    status, out, _ = command("info", pictures)
    assert status == 0 and "3 classes" in out


@pytest.mark.fault("a corrupt or truncated picture kills the run after hours")
@pytest.mark.fault("a picture that can't be read is on no list with its reason, and not counted at the end")
def test_two_sources_labels_and_unreadable_pictures(tmp_path: Path, command: Command) -> None:
    one, two = picture_folder(tmp_path / "one", 31), picture_folder(tmp_path / "two", 30, seed=4)
    (one / "red" / "0003.png").write_bytes(b"")
    (two / "blue" / "0002.png").write_bytes(b"\x89PNG\r\n\x1a\nshort")
    status, out, err = command("train", one, two, "--out", tmp_path / "run", *FLAGS)
    assert status == 0, err
    assert "2 pictures could not be read: see " in out
    lines = RunFolder(tmp_path / "run").quarantine.read_text().splitlines()
    assert lines[0] == "id,path,reason" and len(lines) == 3
    status, out, err = command("evaluate", tmp_path / "run", "--device", "cpu")
    assert status == 0, err
    assert "2 pictures could not be read and are left out" in out
    status, out, err = command("train", one, two, "--out", tmp_path / "strict", *FLAGS, "--strict")
    assert status == 1 and "leave out --strict to go on without it" in err


def test_torchrun(trained: tuple[Path, Path], tmp_path: Path) -> None:
    """The real launcher: one voice, one run folder, and files that one process reads."""
    pictures, _ = trained
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "instdisc"]
    words = [*launch, "train", str(pictures), "--out", str(tmp_path / "run"), *FLAGS]
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(words, capture_output=True, text=True, timeout=500, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Recipe:") == 1
    assert done.stdout.count("Next: instdisc evaluate") == 1
    assert "on each of 2 ranks" in done.stdout
    steps = [line["step"] for line in map(json.loads, RunFolder(tmp_path / "run").metrics.read_text().splitlines())]
    assert steps[:4] == [1, 2, 3, 4]
    assert instdisc.load(tmp_path / "run").embed(pictures).shape[0] == 61


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ("index", "RUN", "--recompute"),
        ("duplicates", "RUN", "--threshold", "0.9"),
        ("search", "RUN", "PICTURE"),
        ("index", "RUN", "--tag", "mine", "--where", "*1*"),
    ],
)
def test_torchrun_looks_through_a_collection_with_one_voice(
    words: tuple[str, ...], trained: tuple[Path, Path], tmp_path: Path
) -> None:
    pictures, run = trained
    picture = min(pictures.glob("*/*"))
    said = []
    for name, launch in {
        "one": [sys.executable],
        "two": [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"],
    }.items():
        copy = shutil.copytree(run, tmp_path / name / "run")
        given = [{"RUN": str(copy), "PICTURE": str(picture)}.get(word, word) for word in words]
        done = subprocess.run(
            [*launch, "-m", "instdisc", *given, *([] if "--tag" in words else ["--device", "cpu"])],
            capture_output=True,
            text=True,
            timeout=500,
            env=os.environ | {"GLOO_SOCKET_IFNAME": "lo", "COLUMNS": "500"},
        )
        assert done.returncode == 0, done.stderr
        # the title of a table is broken where its name is wider
        said.append("".join(done.stdout.split()).replace(str(tmp_path / name), ""))
    assert said[0] == said[1] != ""


# ---------------------------------------------------------------------------------------------------------------------
# One clear sentence each


def sentence(result: tuple[int, str, str]) -> str:
    status, _, err = result
    assert status == 1, result
    assert err.startswith("instdisc: ") and err.endswith((".\n", "?\n")) and err.count("\n") == 1, err
    assert "Traceback" not in err
    return err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("train NOWHERE --out OUT", "NOWHERE does not exist"),
        ("train EMPTY --out OUT", "holds no pictures"),
        ("train FEW --out OUT", "at least 16 are needed"),
        ("train TORN --out OUT", "TORN/00.jpg: the last part of the JPEG is missing"),
        ("train PICTURES --out OUT --preset paper_cifar11", 'There is no preset "paper_cifar11"'),
        ("train PICTURES --out OUT --set lr=fast", "lr is a number"),
        ("train PICTURES --out OUT --set lr", "--set takes NAME=VALUE"),
        ("train PICTURES --out OUT --set temprature=1", "Did you mean temperature"),
        ("train PICTURES --out OUT --set resume=true", '"resume" is no setting of a run: it is an option'),
        ("train PICTURES --out OUT --set source=x", '"source" is no setting of a run: it is an option'),
        ("train PICTURES --out OUT --epochs 1 --minutes 1", "not both"),
        ("train PICTURES --out OUT --epochs 0", "epochs must be positive"),
        ("train PICTURES --out OUT --set backbone=resnot18", "resnot18"),
        ("train PICTURES --out OUT --batch 1", "two pictures a step"),
        ("train PICTURES --out OUT --device tpu9", 'The device "tpu9" can\'t be used here'),
        ("train PICTURES --out OUT --resume", "There is no run in OUT to resume"),
        ("train PICTURES --out RUN", "add --resume"),
        ("train PICTURES --out PICTURES", "is not empty and holds no run"),
        ("train PICTURES --out OUT --labels NOWHERE", "NOWHERE"),
        ("train PICTURES --out OUT --split val", "val"),
        ("train digits --out OUT --split val", "digits has no split val"),
        ("train PICTURES --out OUT --limit 0", "limit is 0"),
        ("evaluate NOWHERE", "There is no run folder at NOWHERE"),
        ("evaluate PICTURES", "is not a run folder"),
        ("evaluate RUN NOWHERE", "NOWHERE does not exist"),
        ("evaluate RUN -k 61", "60 labelled others"),
        ("evaluate RUN -k 0", "neighbours is 0"),
        ("evaluate RUN --temperature hot", 'The temperature is a number or "run"'),
        ("evaluate RUN --labels NOWHERE", "NOWHERE"),
        ("evaluate RUN --train-source FEW", "has other pictures now"),
        ("embed NOWHERE PICTURES -o v.npy", "There is no run folder at NOWHERE"),
        ("embed RUN NOWHERE -o v.npy", "NOWHERE does not exist"),
        ("embed RUN PICTURES -o v.csv", ".parquet or .npy"),
        ("embed RUN PICTURES -o v.npy --batch 0", "at least 1"),
        ("info NOWHERE", "NOWHERE does not exist"),
    ],
)
def test_what_can_not_be(
    trained: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Command, words: str, says: str
) -> None:
    pictures, run = trained
    monkeypatch.chdir(tmp_path)
    (tmp_path / "EMPTY").mkdir()
    picture_folder(tmp_path / "FEW", 5)
    (tmp_path / "TORN").mkdir()
    for number in range(20):
        (tmp_path / f"TORN/{number:02}.jpg").write_bytes(b"\xff\xd8\xff\xe0" + bytes(99))
    places = {"PICTURES": str(pictures), "RUN": str(run)}
    assert says in sentence(command(*(places.get(word, word) for word in words.split())))
    assert not RunFolder("OUT").exists()


@pytest.mark.parametrize("name", ["evaluate", "embed", "info"])
@pytest.mark.parametrize(
    ("damage", "says"),
    [
        ("truncated config", "config.json can't be read"),
        ("config of something else", "config.json"),
        ("no checkpoint", "no whole checkpoint yet"),
        ("cut checkpoint", "no whole checkpoint yet"),
        ("newer", "made by a newer version of instdisc"),
        ("other encoder", "do not fit the encoder"),
    ],
)
def test_a_damaged_run(
    trained: tuple[Path, Path], tmp_path: Path, command: Command, name: str, damage: str, says: str
) -> None:
    pictures, run = trained
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    folder = RunFolder(copy)
    config = json.loads(folder.config.read_text())
    if damage == "truncated config":
        folder.config.write_text(folder.config.read_text()[:200])
    elif damage == "config of something else":
        folder.config.write_text('{"format": 1, "model": "gpt"}')
    elif damage == "no checkpoint":
        shutil.rmtree(folder.checkpoints)
    elif damage == "cut checkpoint":
        for file in folder.checkpoints.glob("*/encoder.safetensors"):
            file.write_bytes(file.read_bytes()[:100])
    elif damage == "newer":
        folder.config.write_text(json.dumps(config | {"format": 2}))
    else:
        config["encoder"]["width"] = 5
        folder.config.write_text(json.dumps(config))
    words = {"embed": [copy, pictures, "-o", tmp_path / "v.npy"]}.get(name, [copy])
    if name == "info" and damage in ("no checkpoint", "cut checkpoint", "other encoder"):
        status, out, _ = command("info", copy)  # it says what there is
        assert status == 0 and ("none yet" in out) == (damage != "other encoder")
        return
    assert says in sentence(command(name, *words))


@pytest.mark.usefixtures("ctrl_c_is_heard")
def test_ctrl_c_that_a_library_takes_for_an_error_is_a_ctrl_c(
    monkeypatch: pytest.MonkeyPatch, command: Command, tmp_path: Path, trained: tuple[Path, Path]
) -> None:
    """Met by safetensors or torch in C, it came back as an error of theirs: the run folder was called damaged."""
    from instdisc.jobs import embed as jobs_embed

    def pressed(*_: Any, **__: Any) -> None:
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)
        except KeyboardInterrupt:
            raise InputError("The checkpoint is damaged.") from None

    monkeypatch.setattr(jobs_embed, "open_source", pressed)
    status, _, err = command("embed", trained[1], trained[0], "-o", tmp_path / "vectors.npy")
    assert (status, err) == (130, "instdisc: stopped.\n")


class Unlucky:
    def __del__(self) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)


@pytest.mark.usefixtures("ctrl_c_is_heard")
def test_ctrl_c_where_no_exception_may_leave(
    monkeypatch: pytest.MonkeyPatch, command: Command, tmp_path: Path, trained: tuple[Path, Path]
) -> None:
    """Python printed a traceback of an exception that it ignored, and the command went on."""
    from instdisc.jobs import embed as jobs_embed

    slept: list[bool] = []

    def pressed(*_: Any, **__: Any) -> None:
        Unlucky()
        time.sleep(300)
        slept.append(True)

    monkeypatch.setattr(jobs_embed, "open_source", pressed)
    status, _, err = command("embed", trained[1], trained[0], "-o", tmp_path / "vectors.npy")
    assert (status, err) == (130, "instdisc: stopped.\n")
    assert not slept, "it went on"


@pytest.mark.usefixtures("ctrl_c_is_heard")
def test_a_thread_that_memory_is_too_short_for_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, command: Command, tmp_path: Path, trained: tuple[Path, Path]
) -> None:
    """It dies before it has begun, and `Thread.start` waits for its beginning."""
    from instdisc.jobs import embed as jobs_embed

    def starved(*_: Any) -> None:
        raise MemoryError

    def started(*_: Any, **__: Any) -> None:
        monkeypatch.setattr(threading.Thread, "_bootstrap", starved)
        threading.Thread(target=print).start()

    monkeypatch.setattr(jobs_embed, "open_source", started)
    status, _, err = command("embed", trained[1], trained[0], "-o", tmp_path / "vectors.npy")
    assert status == 1 and err.startswith("instdisc: There is not enough memory (can't start new thread)")


def test_ctrl_c_before_training_and_a_reader_that_leaves(
    monkeypatch: pytest.MonkeyPatch, command: Command, tmp_path: Path, trained: tuple[Path, Path]
) -> None:
    from instdisc.jobs import train as jobs_train

    def pressed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(jobs_train, "open_source", pressed)
    status, _, err = command("train", trained[0], "--out", tmp_path / "run")
    assert status == 130
    assert "Traceback" not in err
    words = [Path(sys.executable).with_name("instdisc"), "info", trained[1]]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert b"Traceback" not in process.stderr.read()
    process.stderr.close()
    process.wait(300)


def test_demo_shows_what_it_did(monkeypatch: pytest.MonkeyPatch, command: Command, tmp_path: Path) -> None:
    from instdisc.jobs import train as jobs_train

    real = jobs_train.train

    def quick(source: Any, out: Any, preset: str, **options: Any) -> Any:
        assert (source, preset) == ("digits", "digits")
        return real(source, out, preset, limit=90, epochs=1, width=4, batch=16, precision="float32", **options)

    monkeypatch.setattr(jobs_train, "train", quick)
    monkeypatch.chdir(tmp_path)
    status, out, err = command("demo", "--device", "cpu")
    assert status == 0, err
    assert "Weighted kNN, k = 89" in out
    assert "instdisc train my-pictures/ --out runs/mine" in out
    assert RunFolder("runs/demo").evaluation.is_file()
    status, out, _ = command("demo", "--device", "cpu")
    assert status == 0
    assert len(list(Path("runs").iterdir())) == 2, "a second demo overwrites nothing"


@pytest.mark.parametrize("name", sorted({command.name for command in cli.app.registered_commands} - set(cli.SHARED)))
def test_what_is_one_process_s_work_does_nothing_under_torchrun(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.chdir(tmp_path)
    said, code = "", 2
    for words in (["digits"] * count for count in range(4)):  # as many as it takes
        monkeypatch.setattr(sys, "argv", ["instdisc", name, *words, *(["--out", "it"] if name == "export" else [])])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said, code = capsys.readouterr().err, ended.value.code
        if code != 2:
            break
    assert code == 1 and not list(tmp_path.iterdir())
    assert said.startswith(f"instdisc: {name} is one process's work")
