"""Progress on a clock that the test turns: silence at first, a line now and then, a bar on a terminal."""

from __future__ import annotations

import io
import sys

import pytest

from instdisc import progress
from instdisc.progress import Bar, Pace, duration, track, watched


class Clock:
    """Stands in for time.monotonic."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress.time, "monotonic", clock)
    return clock


class Terminal(io.StringIO):
    """A standard error that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_short_work_is_silent(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Bar(total=10, description="Reading", unit="pictures") as bar:
        for _ in range(10):
            clock.now += 0.19
            bar.advance()
    assert capsys.readouterr() == ("", "")


def test_lines_come_every_ten_seconds_on_standard_error_with_the_time_left(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with Bar(total=2000, description="Reading pictures", unit="pictures") as bar:
        for _ in range(40):
            clock.now += 1
            bar.advance(10)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "Reading pictures: 100 of 2,000 pictures, 10/s, 3 min left",
        "Reading pictures: 200 of 2,000 pictures, 10/s, 3 min left",
        "Reading pictures: 300 of 2,000 pictures, 10/s, 3 min left",
        "Reading pictures: 400 of 2,000 pictures, 10/s, 3 min left",
    ]


def test_work_done_before_counts_for_what_is_left_but_not_for_the_speed(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with Bar(total=1000, description="Embedding") as bar:
        bar.start_from(900)
        clock.now += 10
        bar.advance(20, note="loss 3.1")
    assert capsys.readouterr().err == "Embedding: 920 of 1,000, 2.0/s, 40 s left, loss 3.1\n"


def test_without_a_total_there_is_no_time_left(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Bar(description="Scanning", unit="files") as bar:
        clock.now += 20
        bar.advance(5000)
    assert capsys.readouterr().err == "Scanning: 5,000 files, 250/s\n"


def test_seconds_have_no_speed(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Bar(total=60, description="Training", unit="s") as bar:
        clock.now += 15
        bar.advance(15)
    assert capsys.readouterr().err == "Training: 15 of 60 s, 45 s left\n"


def test_a_step_that_ends_after_the_time_leaves_none(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Bar(total=18, description="Training", unit="s") as bar:
        clock.now += 22
        bar.advance(22)
    assert capsys.readouterr().err == "Training: 22 of 18 s, 0 s left\n"


def test_other_ranks_say_nothing(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Bar(total=10, enabled=False) as bar:
        clock.now += 100
        bar.advance(5)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("seconds", [1.0, 3.0])
def test_a_terminal_gets_a_bar_after_two_seconds(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], seconds: float
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with Bar(total=100, description="Training", unit="steps") as bar:
        clock.now += seconds
        bar.advance(30, note="loss 2.0 [low]")
        print("epoch 1 [of 2]")
    assert capsys.readouterr().out == "epoch 1 [of 2]\n", "standard output is a file here, and gets its lines as always"
    assert ("Training" in terminal.getvalue()) == (seconds > progress.QUIET_SECONDS)
    if seconds > progress.QUIET_SECONDS:
        assert "30/100" in terminal.getvalue()
        assert "loss 2.0 [low]" in terminal.getvalue(), "square brackets are no markup"


def test_lines_stand_above_the_bar_where_both_go_to_one_terminal(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with Bar(total=100, description="Training") as bar:
        clock.now += 3
        bar.advance(30)
        print("epoch 1 [of 2]")
        bar.advance(30)
    assert "epoch 1 [of 2]\nTraining" in terminal.getvalue(), "the bar is drawn anew below the line"
    assert sys.stdout is terminal


def test_track_hands_on_the_items(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    seen = []
    for item in track(["a", "b", "c"], description="Letters"):
        clock.now += 11
        seen.append(item)
    assert seen == ["a", "b", "c"]
    assert capsys.readouterr().err.splitlines()[0].startswith("Letters: 1 of 3")
    assert list(track(iter(range(3)))) == [0, 1, 2]
    assert list(track(iter(range(3)), total=3, enabled=False)) == [0, 1, 2]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.4, "0 s"),
        (99, "99 s"),
        (99.4, "99 s"),
        (100, "2 min"),
        (720, "12 min"),
        (3 * 3600 + 300, "3 h 05 min"),
        (26 * 3600, "26 h 00 min"),
    ],
)
def test_duration_in_a_persons_words(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_the_time_left_goes_by_the_steps_and_not_by_what_came_before(clock: Clock) -> None:
    """A hundred even steps after half a minute of loading: right from the second step on."""
    pace = Pace()
    assert pace.left(0.02) is None
    clock.now += 30
    assert pace.left(0.03) is None, "the first step, which took the loading with it"
    for step in range(1, 90):
        clock.now += 2
        left = pace.left(0.03 + step / 100)
        assert left == pytest.approx(2 * (97 - step))


def test_whoever_watches_is_told_of_hidden_bars_too_and_may_end_the_work() -> None:
    told: list[tuple[str, int, int | None]] = []

    def tell(what: str, done: int, total: int | None) -> None:
        told.append((what, done, total))
        if done == 3:
            raise KeyError("enough")

    with watched(tell), pytest.raises(KeyError):
        for _ in track(range(9), description="Counting", enabled=False):
            pass
    assert told == [("Counting", done, 9) for done in range(4)]
    for _ in track(range(9), description="Unwatched"):
        pass
    assert len(told) == 4


def test_watchers_inside_each_other_are_both_told_and_parts_count_as_the_whole() -> None:
    """As the vectors of a large collection: parts with a bar each, inside a bar of all."""
    outer: list[tuple[str, int, int | None]] = []
    inner: list[tuple[str, int, int | None]] = []
    both = watched(lambda *told: outer.append(told)), watched(lambda *told: inner.append(told))
    with both[0], both[1], Bar(6, "Embedding", "pictures", enabled=False) as bar:
        for _ in range(2):
            with bar.parts(), Bar(3, "A part", "pictures", enabled=False) as part:
                part.advance(2)
                part.advance(1)
            bar.advance(3)
    assert outer == inner
    assert {what for what, _, _ in inner} == {"Embedding"} and {total for *_, total in inner} == {6}
    assert [done for _, done, _ in inner] == [0, 0, 2, 3, 3, 3, 5, 6, 6]
    with watched(lambda *told: outer.append(told)), Bar(1, "Alone", enabled=False):
        pass
    assert outer[-1] == ("Alone", 0, 1) and len(inner) == 9
