"""Writes the API reference from the docstrings.

python docs/api.py               # build/api/index.html; needs pdoc: pip install 'instdisc[docs]'
python docs/api.py FOLDER
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import instdisc

# What a researcher uses; docs/api.md says what each is.
MODULES = (
    "instdisc",
    "instdisc.objectives",
    "instdisc.bank",
    "instdisc.encoder",
    "instdisc.data",
    "instdisc.training",
    "instdisc.evaluation.knn",
    "instdisc.evaluation.svm",
    "instdisc.evaluation.probe",
    "instdisc.evaluation.retrieval",
    "instdisc.evaluation.quality",
    "instdisc.embeddings",
    "instdisc.ranks",
)


def write(folder: Path) -> None:
    """One page a module of MODULES, and what their search needs."""
    import pdoc

    for name in MODULES:  # pdoc sees what a module holds, not what it imports when asked
        module = importlib.import_module(name)
        for public in getattr(module, "__all__", ()):
            vars(module).setdefault(public, getattr(module, public))
    pdoc.render.configure(docformat="google", footer_text=f"instdisc {instdisc.__version__}")
    # instdisc.objectives is a public name of instdisc, which brings its page.
    pdoc.pdoc(*(name for name in MODULES if name != "instdisc.objectives"), output_directory=folder)


def main() -> None:
    """Write it to the folder that is named, or to build/api."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1] / "build" / "api"
    try:
        write(folder)
    except ModuleNotFoundError as error:
        sys.exit(f"{error.name} is not installed: pip install 'instdisc[docs]'")
    print(f"The reference is in {folder / 'index.html'}.")


if __name__ == "__main__":
    main()
