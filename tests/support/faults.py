"""The faults seen in other software of this kind, one sentence each; the tests that show each one absent name it.

    @pytest.mark.fault("k larger than the bank crashes")     # exactly a sentence of FAULTS

    python tests/support/faults.py                                   # writes docs/faults.md: fault by fault, the tests

The tests are read, not run. tests/house/test_faults.py fails where a fault has no test, a mark names no fault, or
the page is not what this file would write now.
"""

from __future__ import annotations

import ast
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
PAGE = TESTS.parent / "docs" / "faults.md"

FAULTS: dict[str, tuple[str, ...]] = {
    "Bank and objectives": (
        "the bank is not saved: resume starts from noise",
        "a counter beside the bank is not saved: resume starts from noise",
        "the whole bank is cloned every step (655 MB at ImageNet size)",
        "a (batch, instances) matrix in every step",
        "the bank is written inside `backward()` or `forward()`: two forwards then one backward raises",
        "gradient accumulation writes twice",
        "evaluation writes the bank, or what an objective keeps beside it",
        "the loop does not show where the bank is written",
        "the bank is normalised along the wrong axis",
        "the bank is drawn with a different seed on every rank and averaged without renormalising",
        "a view of the same image counted as a negative by accident",
        "the image's own row counted as a negative by accident",
        "the bank differs between ranks (updates not exchanged)",
        "the bank depends on the number of ranks",
        "`all_reduce` without a backward: gradient off by 1/world_size though the loss is right",
        "padded samples of the distributed sampler write a row twice, in no fixed order",
        "Z estimated from a collapsed first batch: NCE must say so, or not be hurt",
        "Z estimated from a tiny first batch (700 images gave 1.2e14): NCE must say so, or not be hurt",
        "normalise without an epsilon: NaN on a zero vector",
        "`exp(1/τ)` in half precision: inf",
        "a Python loop over n to build a sampler for uniform noise",
        "a partial last batch dropped",
        "a partial last batch written to wrong rows",
    ),
    "kNN and linear evaluation": (
        "fewer than 100 test images crashes",
        "k larger than the bank crashes",
        "fewer than five classes crashes top-5",
        "number of classes taken from the test labels",
        "labels that are not 0..C-1 crash or give wrong counts",
        "all features on one device: out of memory",
        "one-hot of (batch·k·classes) floats",
        "duplicates from sampler padding counted as neighbours",
        "the query itself counted as its own neighbour in leave-one-out",
        "evaluation overwrites the training bank",
        "evaluation runs with gradients",
        "evaluation leaves the encoder in eval mode",
        "best epoch picked on the test set and reported as the result",
        "recomputed rows misplaced unless n divides the batch size",
        "training reaches labels",
    ),
    "Data": (
        "a corrupt or truncated picture kills the run after hours",
        "a corrupt or truncated picture trains half-grey in silence",
        "a picture that can't be read is on no list with its reason, and not counted at the end",
        "a GIF named .jpg",
        "CMYK JPEG",
        "16-bit PNG",
        "palette with alpha",
        "EXIF rotation",
        "a whole picture is called damaged",
        "a TIFF is read inverted, wrapped round or with its bytes swapped",
        "a camera's raw file trains as its thumbnail",
        "1×1 pixel",
        "30,000 pixels wide",
        "zero bytes",
        "a folder without class folders",
        "a symlink loop",
        "names with spaces",
        "names with newlines",
        "names with non-UTF-8 bytes",
        "an empty folder",
        "files are lost without a word",
        "a folder of iPhone HEIC, videos or other formats is said to hold no pictures",
        "a NAS's thumbnails are pictures, and the class folders no labels any more",
        "what a program keeps beside the pictures is taken for pictures",
        "pictures are lost for a name that only looks like a system's",
        "evaluate writes a picture into a run folder within the source, and the collection has changed",
        "a folder that looks empty is no place for a run",
        "a picture counts as often as there are links to it",
        "of twenty pictures in a tar one is left, since their names have dots",
        "labels that stand apart from their pictures in a tar are lost without a word",
        "train and test are taken for two classes, and the accuracy is that of telling them apart",
        "one stray picture beside the class folders takes all labels, without a word",
        "an edited picture is trained from its old pixels",
        "pictures change under the same names, and nothing says so",
        "a column of pictures is not found for its exact Arrow type",
        "invalid labels stop what needs no labels",
        "Parquet files of one data set are taken for two, for their class names",
        "a table that a spreadsheet saved is not read",
        "labels are lost for the spelling of a path",
        "lines of a table count for nothing, without a word",
        "the map of equal pictures kills the process",
        "a library that dies takes the server with it",
        "an array of paths is taken for pixels",
        "two pictures have one id",
        "a preset's width stops a backbone without a width",
        "a password or a signature in a URL is kept in the run",
        "a folder of train and test files is trained on whole, without a word",
        "a name with two colons is taken for a URL",
        "a million paths held in Python lists",
        "a million paths copied to every worker",
        "hours before the first step, with no progress shown",
        "ids that change when the folder is scanned again, so that bank rows belong to other pictures",
        "normalisation at search time other than at training time",
        "image size at search time other than at training time",
        "a kill while pictures are decoded loses hours, or leaves a half-written cache that counts as whole",
        "a disk that fills up while pictures are decoded ends the run",
        "a worker that dies leaves the run hanging",
    ),
    "Checkpoints and runs": (
        'half-written checkpoint after a kill becomes "the last"',
        'half-written checkpoint after a full disk becomes "the last"',
        "temp file on another filesystem",
        "optimizer missing from a checkpoint",
        "schedule missing from a checkpoint",
        "sampler position missing from a checkpoint",
        "random states missing from a checkpoint",
        "AMP scaler missing from a checkpoint",
        "bank missing from a checkpoint",
        "resume repeats or skips an epoch",
        "pickle: loading a stranger's checkpoint runs their code",
        "resume with other settings silently mixes two runs",
        "NaN loss goes on for hours",
        "collapse (all features equal) goes unnoticed",
    ),
    "Search, page, service": (
        "approximate duplicate clusters chain to pairs far below the threshold",
        "a group of duplicates does not show its worst pair",
        "a list of copies holds pictures that were never proven to be any",
        "a picture of one line ends the search for copies with a traceback",
        "the saved list of copies holds only the groups on the screen",
        "decisions on copies die with the tab",
        "a removed picture is still searched, counted or drawn by the open page",
        "a label for many pictures overwrites others and can't be taken back",
        "labels given to many at once raise the accuracy that is told",
        "no way to pick several pictures, and nothing can be got out",
        "a key of the page leads out of it",
        "keys of a single letter that can't be switched off",
        "a command to type in the middle of a page for a photographer",
        "the time left is wrong by a factor of ten at the start",
        "clusters that are strewn over the map, and say nothing of what is in them",
        "a comparison of minutes without a bar, a time left, or a way to end it",
        "a page that stays dead when its server is back",
        "no score shown",
        "no search with an outside picture",
        "no adding of pictures later",
        "results cannot be exported",
        "server bound to all interfaces",
        "`*` in CORS",
        "no Host check",
        "no Origin check",
        "path traversal by file name",
        "fetching a URL on the user's behalf",
        "unpickling an upload",
        "decompression bomb",
        "an upload without a size limit",
        "SVG decoded",
        "EPS decoded",
        "index files from strangers parsed by C++ code",
        "30 MB of JavaScript from a foreign host",
    ),
}

_HEAD = """\
# Faults that other software has, and the tests that show them absent

Read in the code and the issue trackers of other software of this kind. Each line is one fault; the tests below it fail
where it comes in here. This page is made from the tests' own marks by `python tests/support/faults.py`.
"""


def marks_of(path: Path) -> list[tuple[str, str]]:
    """(fault, test) for each mark in a file, in its order. ValueError, with the line, for a mark on no test."""
    tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and _is_mark(node.func)]
    marks = {id(call): _sentence(call, path) for call in calls}
    called = {id(call.func) for call in calls}
    for node in ast.walk(tree):
        if _is_mark(node) and id(node) not in called:
            raise ValueError(f"{path.name}:{node.lineno}: a fault without its sentence")
    named = {
        target.id: node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and id(node.value) in marks
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    found, used = [], set()
    for test in tree.body:
        if isinstance(test, ast.FunctionDef) and test.name.startswith("test_"):
            for given in test.decorator_list:
                mark = named.get(given.id, given) if isinstance(given, ast.Name) else given
                if id(mark) in marks:
                    used.add(id(mark))
                    found.append((marks[id(mark)], test.name))
    for call in calls:
        if id(call) not in used:
            raise ValueError(f"{path.name}:{call.lineno}: the fault {marks[id(call)]!r} stands on no test")
    return found


def _is_mark(node: ast.AST) -> bool:
    return isinstance(node, ast.Attribute) and ast.unparse(node) == "pytest.mark.fault"


def _sentence(call: ast.Call, path: Path) -> str:
    match call.args:
        case [ast.Constant(value=str(sentence))] if not call.keywords:
            return sentence
    raise ValueError(f"{path.name}:{call.lineno}: a fault is one sentence, written out")


def shown(tests: Path = TESTS) -> dict[str, list[tuple[str, str]]]:
    """Fault -> (file, test) for every test that is marked with it, by file and in the file's order."""
    found: dict[str, list[tuple[str, str]]] = {}
    for path in sorted(tests.rglob("test_*.py")):
        for fault, test in marks_of(path):
            found.setdefault(fault, []).append((path.relative_to(tests).as_posix(), test))
    return found


def page() -> str:
    """docs/faults.md."""
    tests = shown()
    lines = [_HEAD]
    for section, faults in FAULTS.items():
        lines.append(f"## {section}\n")
        for fault in faults:
            lines.append(f"- {fault}")
            lines += [f"  - [`{file}::{test}`](../tests/{file})" for file, test in tests.get(fault, [])]
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
