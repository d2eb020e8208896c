"""Counts rooms, arrows between them, and circles: what docs/house.md says of them.

    python docs/rooms.py                        # files and packages right below src/instdisc, and those of data/
    python docs/rooms.py --arrows               # each arrow too

A room is a package or a module; an arrow, that something in one imports something in another, at any depth and anywhere
in the code. A circle is a set of rooms each of which reaches all the others. Needs the extra `dev` (grimp).
"""

from __future__ import annotations

import argparse

import grimp


def arrows(within: str) -> set[tuple[str, str]]:
    """(who imports, what) of the rooms right below a package, without itself."""
    graph = grimp.build_graph("instdisc")
    rooms = {child.rpartition(".")[2] for child in graph.find_children(within)}
    found = set()
    for module in graph.modules:
        for imported in graph.find_modules_directly_imported_by(module):
            if module.startswith(within + ".") and imported.startswith(within + "."):
                pair = tuple(name.removeprefix(within + ".").partition(".")[0] for name in (module, imported))
                if pair[0] != pair[1] and rooms.issuperset(pair):
                    found.add((pair[0], pair[1]))
    return found


def circles(found: set[tuple[str, str]]) -> int:
    """How many sets of rooms reach each other."""
    reach = {room: {other for one, other in found if one == room} for pair in found for room in pair}
    for middle in reach:
        for others in reach.values():
            if middle in others:
                others |= reach[middle]
    return len(
        {
            frozenset(other for other in reach if other in mine and room in reach[other])
            for room, mine in reach.items()
            if room in mine
        }
    )


def main() -> None:
    """Print the counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arrows", action="store_true")
    asked = parser.parse_args()
    for within in ("instdisc", "instdisc.data"):
        found = arrows(within)
        rooms = {room for pair in found for room in pair}
        print(f"{within}: {len(rooms)} rooms, {len(found)} arrows, {circles(found)} circles")
        if asked.arrows:
            for one, other in sorted(found):
                print(f"  {one} -> {other}")


if __name__ == "__main__":
    main()
