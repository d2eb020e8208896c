"""The rules of the house, each as a test that can fail: layout, imports, who may do what, and the package's front door.

Which room may import which is not here: that is import-linter's contract in pyproject.toml (`make contract`).
"""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src" / "instdisc"
SOURCES = sorted(PACKAGE.rglob("*.py"))
ROOMS = sorted({path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in SOURCES} - {"__init__", "__main__"})
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))

LONGEST_FILE = 400  # lines
LARGEST_FILE = 1_000_000  # bytes; pictures and results belong elsewhere

# Where pickle is let in, and why. Everything a stranger could hand us is safetensors, Arrow or JSON instead.
PICKLE_ALLOWED = {
    "data/loading/workers.py": "2026-11-23: a source goes to decoding processes that we started, over a pipe",
}


def name_of(path: Path) -> str:
    """The name of a source file as a person would say it: `data/sources/open.py`."""
    return path.relative_to(PACKAGE).as_posix()


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def imports_of(path: Path) -> Iterator[str]:
    """Every absolute module that a file imports, at the top or inside a function."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            assert node.module is not None
            yield node.module


def dotted(node: ast.expr) -> str:
    """`torch.load` for the expression that says so, `` for anything that is not a plain dotted name."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (owner := dotted(node.value)):
        return f"{owner}.{node.attr}"
    return ""


@cache
def project_files() -> tuple[Path, ...]:
    """The files of the project: those git tracks or would track."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout.decode()
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout: there is no list of the project's files")
    return tuple(path for name in listed.split("\0") if name and (path := ROOT / name).is_file())


# ------------------------------------------------------------ layout


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_file_opens_with_what_it_is_and_is_not_long(path: Path) -> None:
    assert (ast.get_docstring(tree_of(path)) or "").strip(), "the file has no docstring that says what it is"
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= LONGEST_FILE, f"{lines} lines: find the second thing this file knows and give it a file"


def test_no_room_is_a_drawer_for_everything() -> None:
    drawers = {"utils", "util", "common", "helpers", "helper", "tools", "misc", "core", "base"}
    named_so = [name_of(path) for path in SOURCES if drawers & {part.removesuffix(".py") for part in path.parts[-3:]}]
    assert not named_so, f"a helper lives with its only user, or in a room named for what it knows: {named_so}"


def test_every_room_has_its_tests() -> None:
    tested = {path.stem for path in (ROOT / "tests").rglob("test_*.py")}
    nothing_to_run = {"shapes"}  # names only
    rooms = [room for room in ROOMS if room not in nothing_to_run]
    untested = [room for room in rooms if not any(re.match(rf"test_{room}(_|$)", stem) for stem in tested)]
    assert not untested, f"no tests/test_<room>*.py for {untested}"


def test_every_objective_has_a_test_file_and_a_place_in_the_room() -> None:
    folder = PACKAGE / "objectives"
    front = (folder / "__init__.py").read_text(encoding="utf-8")
    tested = {path.stem for path in (ROOT / "tests").rglob("test_*.py")}
    found = 0
    for path in sorted(folder.glob("*.py")):
        methods = [
            (thing.name, {item.name for item in thing.body if isinstance(item, ast.FunctionDef)})
            for thing in tree_of(path).body
            if isinstance(thing, ast.ClassDef) and not thing.name.startswith("_")
        ]
        objectives = [name for name, defined in methods if "forward" in defined]
        for name in objectives:
            found += 1
            assert re.search(rf"\b{name}\b", front), f"objectives/__init__.py does not offer {name}"
            wanted = {f"test_{path.stem}", f"test_objectives_{path.stem}"}
            assert tested & wanted, f"{name}: no test file, one of {sorted(wanted)}"
    assert found >= 5, "the five objectives of the paper"


def test_the_file_map_agrees_with_the_files() -> None:
    """In the section of docs/house.md headed "file map": every `name/` and `name.py` there exists, and every room and
    every folder of the project stands there."""
    page = ROOT / "docs" / "house.md"
    sections = re.split(r"^#+ (.*)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    maps = [body for title, body in zip(sections[1::2], sections[2::2], strict=True) if "file map" in title.lower()]
    assert len(maps) == 1, "docs/house.md has one section headed 'file map'"
    mapped = {name.rstrip("/") for name in re.findall(r"[\w./-]+/(?![\w.])|[\w./-]+\.py\b", maps[0])}

    files = [path.relative_to(ROOT) for path in project_files()]
    known = {part.as_posix() for file in files for part in (file, *file.parents)} - {"."}
    unknown = sorted(name for name in mapped if not any(f"/{path}".endswith(f"/{name}") for path in known))
    assert not unknown, f"the file map names what is not there: {unknown}"

    rooms = {room if (PACKAGE / room).is_dir() else f"{room}.py" for room in ROOMS}
    folders = {file.parts[0] for file in files if len(file.parts) > 1 and not file.parts[0].startswith(".")}
    last = {name.rsplit("/", 1)[-1] for name in mapped} | {name.split("/")[0] for name in mapped}
    missing = sorted((rooms | folders) - last)
    assert not missing, f"the file map leaves out {missing}"


# ------------------------------------------------------------ what may be done where


def pickling(path: Path) -> set[str]:
    """What a file imports and calls that writes or reads pickles."""
    picklers = {"pickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
    used = {name for name in imports_of(path) if name.partition(".")[0] in picklers}
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Call):
            if dotted(node.func) in {"torch.load", "torch.save", "torch.package"}:
                used.add(dotted(node.func))
            used.update("allow_pickle" for word in node.keywords if word.arg == "allow_pickle" and not is_false(word))
    return used


def test_picklers_are_found(tmp_path: Path) -> None:
    file = tmp_path / "some.py"
    file.write_text(
        "import torch\ntorch.load('x')\nimport pickle\nload('x', allow_pickle=True)\nsee(allow_pickle=False)\n"
    )
    assert pickling(file) == {"torch.load", "pickle", "allow_pickle"}


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
@pytest.mark.fault("pickle: loading a stranger's checkpoint runs their code")
def test_no_pickle(path: Path) -> None:
    used = pickling(path)
    if name_of(path) in PICKLE_ALLOWED:
        assert used, f"{name_of(path)} no longer needs its exception: take it out of PICKLE_ALLOWED"
    else:
        assert not used, f"tensors go to safetensors, facts to JSON: {sorted(used)}"


def is_false(word: ast.keyword) -> bool:
    return isinstance(word.value, ast.Constant) and word.value.value is False


def test_ranks_is_the_only_user_of_torch_distributed() -> None:
    users = set()
    for path in SOURCES:
        named = {dotted(node) for node in ast.walk(tree_of(path)) if isinstance(node, ast.Attribute)}
        named |= set(imports_of(path))
        named |= {
            f"{node.module}.{alias.name}"
            for node in ast.walk(tree_of(path))
            if isinstance(node, ast.ImportFrom) and node.module
            for alias in node.names
        }
        if any(name == "torch.distributed" or name.startswith("torch.distributed.") for name in named):
            users.add(name_of(path))
    assert users == {"ranks.py"}


def test_only_run_opens_a_run_folder() -> None:
    """What a job needs of a run folder it is handed by jobs/run.py, which reads each file once."""
    openers = {"read_facts", "read_instances", "reopen", "latest", "load_encoder"}
    homes = {"jobs/run.py", "jobs/sources.py", "jobs/identity.py", "checkpoint.py"}
    allowed = {
        ("jobs/measures.py", "latest"): "the checkpoint before the last",
        ("jobs/train.py", "load_encoder"): "what `instdisc.train` gives back knows its folder alone",
        ("training/loop.py", "latest"): "the state that a resumed training goes on from",
    }
    found = {
        (name_of(path), name)
        for path in SOURCES
        if name_of(path) not in homes
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Call) and (name := dotted(node.func).rpartition(".")[2]) in openers
    }
    assert found == set(allowed)


@pytest.mark.fault("the loop does not show where the bank is written")
def test_only_the_training_loop_writes_the_bank() -> None:
    writers = {
        name_of(path)
        for path in SOURCES
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Call) and re.search(r"\bbank\.update$", dotted(node.func))
    }
    assert writers == {"training/loop.py"}, f"the bank is written in {sorted(writers)}"
    calls = [node for node in ast.walk(tree_of(PACKAGE / "training/loop.py")) if isinstance(node, ast.Call)]
    assert [dotted(node.func) for node in calls].count("self.bank.update") == 1, "once a step, where it can be seen"


@pytest.mark.fault("the loop does not show where the bank is written")
def test_nobody_reaches_into_the_rows_of_the_bank() -> None:
    """In place, by a method of torch or by assignment: a resumed run alone fills the rows with those it saved."""
    found = set()
    for path in SOURCES:
        if name_of(path).startswith("bank/"):
            continue
        for node in ast.walk(tree_of(path)):
            targets = node.targets if isinstance(node, ast.Assign) else []
            targets = [node.target] if isinstance(node, ast.AugAssign) else targets
            written = [target.value if isinstance(target, ast.Subscript) else target for target in targets]
            if isinstance(node, ast.Call) and re.search(r"\brows\.\w+[^_]_$", dotted(node.func)):
                written.append(node.func)
            found |= {
                f"{name_of(path)}: {dotted(one)}"
                for one in written
                if re.search(r"\bbank\.(rows|scales)\b", dotted(one))
            }
            if isinstance(node, ast.keyword) and isinstance(node.value, ast.Call) and node.arg == "into":
                found.add(f"{name_of(path)}: {dotted(node.value.func)}")
    assert found == {"training/loop.py: self.bank.tensors"}


@pytest.mark.fault("AMP scaler missing from a checkpoint")
def test_no_precision_needs_a_scaler_of_the_loss() -> None:
    """float16 alone needs one, whose state a checkpoint would have to hold: the precisions are without it."""
    from instdisc.training import Settings

    assert "float16" not in get_args(get_type_hints(Settings)["precision"])
    for path in SOURCES:
        named = {dotted(node) for node in ast.walk(tree_of(path)) if isinstance(node, ast.Attribute | ast.Name)}
        assert not {name for name in named if "GradScaler" in name}, name_of(path)
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.Call) and dotted(node.func).endswith("autocast"):
                assert "float16" not in re.findall(r"\w+", ast.unparse(node)), f"{name_of(path)}:{node.lineno}"


MACHINE_PATH = re.compile(
    r"(?<![\w.:/$~*}>-])/(?:home|root|Users|work|mnt|opt|srv|scratch|tmp|var|media)/[\w.]|[A-Z]:\\Users"
)


def test_no_path_of_one_machine() -> None:
    found = []
    for path in project_files():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # a picture
        for number, line in enumerate(text.splitlines(), 1):
            if MACHINE_PATH.search(line) and path != Path(__file__).resolve():
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()}")
    assert not found, "\n".join(found)


def test_machine_paths_are_recognised() -> None:
    assert MACHINE_PATH.search("open('/home/ada/pictures')")
    assert MACHINE_PATH.search(r"C:\Users\ada")
    assert not MACHINE_PATH.search("https://example.org/home/ada")
    assert not MACHINE_PATH.search("runs/tmp/first")


def test_the_code_of_the_page_stays_small() -> None:
    """In bytes, without indentation, empty lines and comment lines."""
    lines = [
        line.strip()
        for path in sorted((PACKAGE / "serve" / "page").iterdir())
        for line in path.read_text(encoding="utf-8").splitlines()
    ]
    code = sum(len(line.encode()) + 1 for line in lines if line and not line.startswith(("//", "/*")))
    assert 50_000 < code <= 120_000, code


def test_no_large_file() -> None:
    large = [str(path.relative_to(ROOT)) for path in project_files() if path.stat().st_size > LARGEST_FILE]
    assert not large


# Words and names that were replaced -> by what: in the package, docs/ and the README; then what the page alone said.
REPLACED = {
    r"aside": "temporary file",
    r"anew": "again, recomputed",
    r"can't be had": "unavailable",
    r"settings can't be": "Invalid settings",
    r"for what can't be(?=[.:;])": "for an invalid argument",
    r"desk": "session",
    r"could go": "marked for removal, to be removed",
    r"query picture is not kept": "This search picture has expired",
    r"intake": "limits",
    r"strangeness|stranger than|strangest": "outlier score",
    r"lonely": "isolated",
    r"of which": "3 of them",
    r"one_fate": "fail_together",
    r"halves_pay": "fp16_is_faster",
    r"_obituary": "_crash_report",
    r"patiently": "retried",
    r"together\(\)": "distributed()",
    r"the alike together": "similar pictures close together",
    r"lets? go": "clear, release, drop",
    r"(128|256|512) numbers": "dimensions",
}
ON_THE_PAGE = {
    r"most like it": "Similar pictures",
    r"“\+ more”|\"\+ more\"": "More like this",
    r"\"− less\"": "Less like this",
    r"take it out of the query": "Remove from search",
    r"take it away|was taken away": "Remove label, Label removed",
    r"there is no other picture": "No other pictures in this collection",
    r"select by drawing": "Lasso",
    r"\"(nearer|farther|the whole map)\"": "Zoom in, Zoom out, Fit",
    r"stands inside": "No pictures in the selection",
    r"that are alike will stand": "Similar pictures are placed close together",
    r"as alike as": "Minimum similarity",
    r"least alike:": "lowest",
    r"no duplicates": "Not duplicates",
    r"save the list": "Download list",
    r"compared by the rows of the bank": "Quick comparison from training",
    r"least like any other": "Outliers",
    r"says little": "(compute the better one)",
    r"propose:|doubtful ones": "Order: Mixed, Representative, Uncertain",
    r"so far\"": "Progress",
    r"the votes say": "Suggested",
    r"another label\"|save all labels|nothing is left\"": "Type a label, Export labels (CSV), All done",
    r"that did not work|in that way": "(name it)",
    r"what is like this picture|looking at your picture": "Drop to find similar pictures, Searching …",
    r"does not answer: is it": "Lost connection to instdisc",
}
STILL = {  # file: what stays there
    "jobs/outliers.py": {"strangeness"},  # the old name, for one release; old files have that column
}


def test_words_that_were_replaced_do_not_come_back() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    texts = [path for path in PACKAGE.rglob("*") if path.suffix in (".py", ".js", ".html", ".css")]
    found = []
    for path in sorted([*texts, *pages]):
        name = path.relative_to(PACKAGE if path.is_relative_to(PACKAGE) else ROOT).as_posix()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            for old, new in (REPLACED | (ON_THE_PAGE if name.startswith("serve/page/") else {})).items():
                hits = [hit[0] for hit in re.finditer(rf"(?<!\w)(?:{old})(?!\w)", line, re.IGNORECASE)]
                if set(hits) - STILL.get(name, set()):
                    found.append(f"{name}:{number}: say {new!r}: {line.strip()}")
    assert not found, "\n".join(found)


# ------------------------------------------------------------ dependencies and results


def declared() -> dict[str, list[Requirement]]:
    """What pyproject.toml asks for: the requirements of the package itself under "", of each extra under its name."""
    project = PROJECT["project"]
    groups = {"": project["dependencies"], **project["optional-dependencies"]}
    return {group: [Requirement(text) for text in texts] for group, texts in groups.items()}


def test_every_requirement_is_pinned_to_a_version_it_allows() -> None:
    pins = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            name, version = line.split("==")
            pins[canonicalize_name(name)] = Version(version)
    for requirement in (item for group in declared().values() for item in group):
        if requirement.name != "instdisc":
            pin = pins.get(canonicalize_name(requirement.name))
            assert pin is not None, f"{requirement.name} is not in constraints.txt"
            assert pin in requirement.specifier, f"{requirement} leaves out its pin, {pin}"


def test_every_import_is_a_declared_requirement() -> None:
    """At the top of a file: a requirement of the package. Inside a function: one of an extra will do, and so will a
    file of ours that is for those who have the extra."""
    module_names = {"pillow": "PIL", "scikit-learn": "sklearn", "opentsne": "openTSNE"}
    groups = {
        group: {module_names.get(item.name, item.name.replace("-", "_")) for item in items}
        for group, items in declared().items()
    }
    only_with = {"data/augment/fused.py": "fast"}
    ours = {"instdisc", *sys.stdlib_module_names}
    anywhere = set().union(ours, *groups.values())
    for path in SOURCES:
        unknown = {name.partition(".")[0] for name in imports_of(path)} - anywhere
        assert not unknown, f"{name_of(path)} imports {sorted(unknown)}, which pyproject.toml does not ask for"
        at_top = set()
        for node in tree_of(path).body:
            if isinstance(node, ast.Import):
                at_top |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                at_top.add(node.module.partition(".")[0])
                named = {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
                assert not named & {f"instdisc.{name[:-3].replace('/', '.')}" for name in only_with}, name_of(path)
        extra = at_top - ours - groups[""] - groups.get(only_with.get(name_of(path), ""), set())
        assert not extra, f"{name_of(path)} imports {sorted(extra)} at the top, which only an extra installs"


def test_the_readme_is_read_in_minutes() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= 900, "what is long has a page under docs/"


def test_results_say_how_they_were_made() -> None:
    wanted = {"name", "command", "device", "commit", "date", "unit", "seeds", "values", "mean", "std"}
    for path in sorted((ROOT / "results").glob("*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        assert wanted <= result.keys(), f"{path.name} lacks {sorted(wanted - result.keys())}"
        assert result["name"] == path.stem


# ------------------------------------------------------------ the front door


def python(code: str) -> str:
    """What a fresh interpreter prints for `code`, with warnings as errors."""
    ran = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=500)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.strip()


def test_importing_instdisc_is_quick_and_light() -> None:
    """Counted in modules, which take no longer on a busy machine; a few dozen come with Python's own importlib."""
    code = (
        "import sys; before = set(sys.modules); import instdisc; new = set(sys.modules) - before;"
        "heavy = {'torch', 'numpy', 'timm', 'pyarrow', 'typer'} & new; print(len(new), *sorted(heavy))"
    )
    count, *heavy = python(code).split()
    assert heavy == [], f"import instdisc also imports {heavy}"
    assert int(count) < 60


def test_help_loads_little_more_than_typer_and_never_torch() -> None:
    """Counted in modules, as above: typer and rich are some three hundred."""
    code = (
        "import sys, typer.rich_utils\n"
        "before = set(sys.modules)\n"
        "sys.argv = ['instdisc', '--help']\n"
        "from instdisc.cli import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        "new = set(sys.modules) - before\n"
        "print('NEW', len(new), *sorted({'torch', 'torchvision', 'timm', 'sklearn', 'pyarrow', 'numpy'} & new))"
    )
    *told, last = python(code).splitlines()
    assert any("train" in line for line in told)
    _, count, *heavy = last.split()
    assert heavy == [] and int(count) < 100


def test_the_command_is_installed_and_says_its_version() -> None:
    command = Path(sys.executable).with_name("instdisc")
    if not command.exists():
        pytest.skip("instdisc is on the path but not installed: there is no command to try")
    ran = subprocess.run([command, "--version"], capture_output=True, text=True, timeout=500, env={**os.environ})
    assert ran.returncode == 0, ran.stderr
    import instdisc

    assert instdisc.__version__ in ran.stdout


def test_every_public_name_resolves_and_is_remembered() -> None:
    import instdisc

    assert dir(instdisc) == sorted(instdisc.__all__)
    for name in instdisc.__all__:
        value = getattr(instdisc, name)
        assert value is not None
        assert vars(instdisc)[name] is value, f"{name} is looked up anew each time"


def test_a_name_that_is_not_public_is_an_attribute_error() -> None:
    import instdisc

    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        _ = instdisc.nonsense


def test_type_checkers_see_the_names_that_users_get() -> None:
    """The lazy table, `__all__` and the imports that only type checkers read are one list, written three times."""
    import instdisc

    checked = {}
    for node in tree_of(PACKAGE / "__init__.py").body:
        if isinstance(node, ast.If) and dotted(node.test) == "TYPE_CHECKING":
            for line in node.body:
                assert isinstance(line, ast.ImportFrom)
                for alias in line.names:
                    module = f"{line.module}.{alias.name}" if line.module == "instdisc" else line.module
                    checked[alias.asname] = (module, None if line.module == "instdisc" else alias.name)
    assert checked == instdisc._HOMES
    assert set(checked) | {"__version__"} == set(instdisc.__all__)


def test_signatures_are_checked_here() -> None:
    """The shapes in signatures bind only while jaxtyping's plugin is at work; an int is still welcome as a float."""
    import torch

    from instdisc.data.augment import Augmentation
    from instdisc.neighbours import top_k

    with pytest.raises(TypeError, match="Type-check error"):
        top_k(torch.zeros(3), torch.zeros(4, 2), 1)
    with pytest.raises(TypeError, match="Type-check error"):
        Augmentation(size="32")
    assert Augmentation(size=32, jitter=1).jitter == 1.0
