"""Under which licences the packages stand that an installation brings, and which of them have known vulnerabilities.

    python runs/supply_chain.py

Licences are read from the metadata of what is installed in this environment. Vulnerabilities are asked of PyPI by
pip-audit (pipx install pip-audit), where it is on the path and PyPI answers: what it could not ask about counts as not
audited, never as sound. The result goes to results/supply_chain.json; the exit status is 1 where a licence is not
among those that are permitted below, or a vulnerability is known.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from record import record

# What a package's metadata may say, as a pattern -> the licence's name. All may be used by and beside MIT code; those
# that bind changes to themselves (MPL, LGPL) are used as they come.
PERMITTED = {
    r"0BSD": "0BSD",
    r"Apache": "Apache-2.0",
    r"BSD": "BSD",
    r"MIT-CMU|HPND": "MIT-CMU",
    r"MIT": "MIT",
    r"BSL-1\.0": "BSL-1.0",
    r"CC0": "CC0-1.0",
    r"ISC": "ISC",
    r"PSF|Python Software Foundation": "PSF-2.0",
    r"MPL|Mozilla": "MPL-2.0",
    r"Unlicense": "Unlicense",
    r"Zlib": "Zlib",
    r"LGPL|Lesser General Public": "LGPL",
    r"NVIDIA": "NVIDIA's own",  # of CUDA's libraries, which torch brings: free to use
}
READ_BY_HAND = {  # their metadata says nothing
    "atheris": "Apache-2.0",  # its LICENSE
    "cuda-toolkit": "NVIDIA's own",  # an empty package that requires the others
}


def licence_of(package: metadata.Distribution) -> str | None:
    """Its licences by their names, or None where the metadata has one that is not permitted, or none."""
    name = canonicalize_name(package.metadata["Name"])
    if name in READ_BY_HAND:
        return READ_BY_HAND[name]
    expression = package.metadata.get("License-Expression")
    if expression:
        found = [_named(part) for part in re.split(r"\b(?:AND|OR)\b", expression.replace("(", " ").replace(")", " "))]
        return None if None in found else " and ".join(sorted({one for one in found if one}))
    classified = [
        line.rpartition(":: ")[2] for line in package.metadata.get_all("Classifier") or [] if line.startswith("License")
    ]
    said = (package.metadata.get("License") or "").strip().split("\n")[0]
    return next(filter(None, map(_named, (*classified, *said.split(" AND ")))), None)


def _named(text: str) -> str | None:
    return next((name for pattern, name in PERMITTED.items() if re.search(pattern, text, re.IGNORECASE)), None)


def brought(name: str, extras: frozenset[str] = frozenset()) -> Iterator[metadata.Distribution]:
    """What is installed because of this package: itself, and what it requires here, each once."""
    seen: set[tuple[str, frozenset[str]]] = set()
    names: set[str] = set()
    wanted = [(name, extras)]
    while wanted:
        name, extras = wanted.pop()
        if (canonicalize_name(name), extras) in seen:
            continue
        seen.add((canonicalize_name(name), extras))
        try:
            package = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue  # an extra that is not installed
        if canonicalize_name(name) not in names:
            names.add(canonicalize_name(name))
            yield package
        for line in package.requires or []:
            needed = Requirement(line)
            if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in (*extras, "")):
                wanted.append((needed.name, frozenset(needed.extras)))


def vulnerabilities() -> dict[str, Any]:
    """What pip-audit found out. audited: packages that PyPI answered for; not_audited: how many it did not."""
    program = shutil.which("pip-audit")
    if program is None:
        return {"said": "pip-audit is not installed: pipx install pip-audit", "audited": 0}
    words = [program, "--format", "json", "--progress-spinner", "off", "--path", sysconfig.get_path("purelib")]
    done = subprocess.run(words, capture_output=True, text=True)
    try:
        packages = json.loads(done.stdout)["dependencies"]
    except ValueError:
        return {"said": done.stderr.strip()[-300:], "audited": 0}
    answered = [package for package in packages if "skip_reason" not in package]
    known = [f"{package['name']} {one['id']}" for package in answered for one in package["vulns"]]
    return {"audited": len(answered), "not_audited": len(packages) - len(answered), "known": known}


def main() -> None:
    """Look, and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path("results"))
    settings = parser.parse_args()
    packages = {package.metadata["Name"]: licence_of(package) for package in metadata.distributions()}
    needed = {package.metadata["Name"] for package in brought("instdisc")} - {"instdisc"}
    by_licence: dict[str, list[str]] = {}
    for name, licence in sorted(packages.items(), key=lambda one: one[0].lower()):
        by_licence.setdefault(licence or "none that is permitted", []).append(name)
    audit = vulnerabilities()
    record(
        settings.results / "supply_chain.json",
        name="supply_chain",
        command="python runs/supply_chain.py",
        unit="packages in an environment with every extra that the tests need; a plain installation has fewer",
        values=[float(len(packages))],
        seeds=[0],
        plain_installation=len(needed),
        licences={licence: len(names) for licence, names in by_licence.items()},
        packages=by_licence,
        read_by_hand=READ_BY_HAND,
        vulnerabilities=audit,
    )
    if None in packages.values() or audit.get("known"):
        sys.exit("A licence that is not permitted, or a known vulnerability: see above.")


if __name__ == "__main__":
    main()
