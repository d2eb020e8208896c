"""What there is, and the job that makes what the views need."""

from __future__ import annotations

import numpy as np
from fastapi import APIRouter

from instdisc.errors import InputError
from instdisc.serve.models import Line, Overview, Picture, Preparation, Preparing
from instdisc.serve.routes import TheSession

router = APIRouter()
_SHOWN = 8
_SAID = {"made": "Made", "encoder": "Encoder", "objective": "Objective", "vectors": "Vectors", "checkpoint": "Trained"}
_MEASURED = {"evaluated": "Measured", "last measured": "Measured in training"}


@router.get("/api/overview")
def overview(session: TheSession) -> Overview:
    """How many pictures and labels there are, and how the encoder was trained."""
    from instdisc.jobs.info import about_run

    opened = session.opened
    index, hand = opened.index, opened.hand_labels()
    hidden, unreadable = int(index.removed.sum()), len(opened.unreadable())
    collection = [
        Line(title="Pictures", text=f"{len(index) - hidden:,}", view=""),
        Line(title="Classes", text=f"{len(opened.classes()):,}", view="label"),
        Line(title="Labels by you", text=f"{len(hand):,}", view="label"),
        Line(title="Unreadable files", text=f"{unreadable:,}", view="review/unreadable"),
        Line(title="Removed", text=f"{hidden:,}{', hidden from every view' if hidden else ''}", view="review"),
    ]
    try:
        known = about_run(opened.collection.run)
        date, by, what = known["made"].partition(" by ")
        known["made"] = f"{date[:16].replace('T', ' ')}{by}{what}"
    except InputError as error:
        known = {"made": str(error)}
    encoder = [
        Line(title=title, text=known[name].replace("_", " "))
        for name, title in (_SAID | _MEASURED).items()
        if name in known
    ]
    if not known.keys() & _MEASURED.keys():
        encoder.append(Line(title="Measured", text="not yet"))
    there = np.flatnonzero(~index.removed)
    few = there[np.unique(np.linspace(0, len(there) - 1, min(_SHOWN, len(there))).astype(int))]
    return Overview(pictures=[Picture(**one) for one in session.pictures(few)], collection=collection, encoder=encoder)


@router.get("/api/prepare")
def prepared(session: TheSession) -> Preparing:
    """What the views are made with, and how far the job is that makes it."""
    return session.preparation.state()


@router.post("/api/prepare")
def prepare(session: TheSession, wanted: Preparation | None = None) -> Preparing:
    """Make what is missing in the background, one after another. Where that was stopped, it goes on."""
    session.preparation.start(wanted.steps if wanted else None)
    return session.preparation.state()


@router.post("/api/prepare/stop")
def stop_preparing(session: TheSession) -> Preparing:
    """End the job at its next step; what it has made is kept."""
    session.preparation.stop()
    return session.preparation.state()
