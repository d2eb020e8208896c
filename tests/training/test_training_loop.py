"""The loop's one step against the same step written out, accumulation against the large batch, and how a run ends."""

from __future__ import annotations

import copy
import itertools
import json
import math
import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny_runs
import torch
from tiny_runs import made_pictures, outcome, picture_folder, saved_state, tiny, training_in

from instdisc import draws, ranks
from instdisc.checkpoint import latest, load_encoder
from instdisc.encoder import Encoder, build_encoder
from instdisc.errors import InputError
from instdisc.jobs import frozen
from instdisc.jobs.train import train
from instdisc.runs import RunFolder
from instdisc.training import Measurement, Training, loop, read_metrics


def test_steps_equal_the_same_steps_written_out(tmp_path: Path) -> None:
    """Features, eq 2 and 9 over all rows, SGD with momentum and weight decay by formula, the bank's rows by NumPy."""
    settings = tiny(epochs=3, proximal=2.0, momentum=0.9, weight_decay=0.01, drops="0.34,0.67", bank_momentum=0.3)
    training = training_in(tmp_path, settings)
    twin = copy.deepcopy(training.encoder)
    rows = training.bank.rows.double().numpy().copy()
    velocity: dict[str, torch.Tensor] = {}
    pictures = training.pictures
    losses = []
    training.fit()

    step, steps = 0, 3 * 5
    for epoch in range(3):
        order = draws.permutation(67, seed=3, step=epoch)
        for batch in np.split(order, [14, 28, 41, 54]):  # 67 pictures in 5 batches of at most 16: 14, 14, 13, 13, 13
            indices = torch.from_numpy(batch)
            (images,) = [part.images for part in pictures.batches([batch])]
            aspects = torch.ones(len(batch))
            features = twin(training.augment(images, indices, aspects, seed=3, step=step, view=0)).double()
            old = torch.from_numpy(rows)
            scores = features @ old.T / 0.1
            softmax = -(scores.gather(1, indices[:, None])[:, 0] - scores.exp().sum(1).log()).mean()
            proximal = 2.0 * ((features - old[indices]) ** 2).sum(1).mean()
            twin.zero_grad()
            (softmax + proximal).backward()
            rate = 0.1 * 0.1 ** ((step / steps >= 0.34) + (step / steps >= 0.67))
            with torch.no_grad():
                for name, weight in twin.named_parameters():
                    assert weight.grad is not None
                    change = weight.grad + 0.01 * weight
                    velocity[name] = change if step == 0 else 0.9 * velocity[name] + change
                    weight -= rate * velocity[name]
            for place, feature in zip(batch, features.detach().numpy(), strict=True):
                mixed = 0.3 * rows[place] + 0.7 * feature
                rows[place] = mixed / np.linalg.norm(mixed)
            losses.append((step + 1, softmax.item(), proximal.item()))
            step += 1

    assert training.step_number == step == 15
    found = outcome(training)
    torch.testing.assert_close(found["losses"], torch.tensor(losses, dtype=torch.float64), rtol=2e-4, atol=2e-5)
    torch.testing.assert_close(found["bank"].double(), torch.from_numpy(rows), rtol=0, atol=2e-4)
    for name, weight in training.encoder.named_parameters():
        torch.testing.assert_close(weight, dict(twin.named_parameters())[name], rtol=2e-3, atol=2e-4)


@pytest.mark.fault("gradient accumulation writes twice")
@pytest.mark.parametrize("objective", ["softmax", "nce", "sampled", "parametric"])
def test_accumulation_equals_the_large_batch(tmp_path: Path, objective: str) -> None:
    # The estimates of Z are made from a piece at a time (they say so); all else is the large batch's.
    more = {"objective": objective, "proximal": 1.0, "partition": "exact", "temperature": 0.3, "views": 2}
    found = {}
    for pieces in (1, 3):
        training = training_in(tmp_path / str(pieces), tiny(accumulate=pieces, **more))
        training.fit()
        assert training.bank.updates == training.step_number == 10
        found[pieces] = outcome(training)
    for name, values in found[1].items():
        torch.testing.assert_close(found[3][name], values, rtol=1e-3, atol=1e-4, msg=lambda text, of=name: of + text)
    start = training_in(tmp_path / "start", tiny(**more))
    assert not torch.allclose(start.bank.rows, found[1]["bank"], atol=0.1), "the bank was written at all"


@pytest.mark.fault("a partial last batch dropped")
@pytest.mark.fault("sampler position missing from a checkpoint")
def test_every_picture_once_an_epoch_in_batches_of_nearly_one_size(tmp_path: Path) -> None:
    training = training_in(tmp_path, tiny())
    sizes, seen = [], []
    for parts, planned in training._steps_of(epoch=1, first=0):
        (part,) = parts
        sizes.append(planned)
        seen.extend(part.indices.tolist())
        assert len(part.indices) == planned
    assert sizes == [14, 14, 13, 13, 13]
    assert sorted(seen) == list(range(67))
    assert seen != sorted(seen)
    later = [parts_of.indices.tolist() for parts, _ in training._steps_of(epoch=1, first=3) for parts_of in parts]
    assert list(itertools.chain(*later)) == seen[41:], "an epoch that is entered in its middle goes on as it would have"


def test_the_bank_is_written_once_a_step_and_not_by_measuring(tmp_path: Path) -> None:
    rows = []

    def monitor(training: Training) -> Measurement:
        rows.append(training.bank.rows.clone())
        assert training.encoder.training
        return Measurement({"effective_rank": 5.0})

    training = training_in(tmp_path, tiny(monitor_epochs=1, epochs=2))
    training.fit(monitor)
    assert len(rows) == 2
    assert torch.equal(rows[-1], training.bank.rows)
    measured = [line for line in read_metrics(training.run) if "measured" in line]
    assert [line["step"] for line in measured] == [5, 10]


@pytest.mark.fault("evaluation overwrites the training bank")
@pytest.mark.fault("evaluation writes the bank, or what an objective keeps beside it")
def test_measuring_changes_nothing_of_the_training(tmp_path: Path) -> None:
    """The real measurements, with labels and test pictures, after each epoch or at the end alone: the same bits."""
    pictures, tests = picture_folder(tmp_path / "pictures", 67), picture_folder(tmp_path / "tests", 20, seed=5)
    states = []
    for every in (1, 1000):
        settings = tiny(epochs=3, monitor_epochs=every, objective="nce", partition="moving_average", temperature=0.3)
        run = train(pictures, tmp_path / str(every), settings, test=str(tests), say=None)
        measured = [line["measured"] for line in run.metrics() if "measured" in line]
        assert len(measured) == (3 if every == 1 else 1) and {"knn", "knn_test"} <= set(measured[-1])
        states.append(saved_state(run.path))
        states[-1].pop("metrics")
    assert states[0] == states[1]


@pytest.mark.fault("NaN loss goes on for hours")
def test_a_loss_that_is_no_number_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = Training.step

    def poisoned(training: Training, *arguments: Any) -> Any:
        if training.step_number == 7:
            with torch.no_grad():
                next(training.encoder.parameters())[0] = math.nan
        return step(training, *arguments)

    monkeypatch.setattr(Training, "step", poisoned)
    run = RunFolder(tmp_path / "run")
    with pytest.raises(InputError, match=r"diverged at step 8: .*softmax nan.*lr below 0\.1") as error:
        train(made_pictures(67), run.path, tiny(checkpoint_minutes=0), say=None)
    assert "\n" not in str(error.value)
    diagnosis = json.loads((run.diagnosis / "nan.json").read_text())
    assert diagnosis["step"] == 8
    assert diagnosis["losses"] == {"softmax": "nan"}
    assert diagnosis["settings"]["lr"] == 0.1
    assert any(weight["not_finite"] for weight in diagnosis["weights"].values())
    saved = latest(run.checkpoints)
    assert saved is not None
    assert saved.step == 7
    assert torch.isfinite(saved.rows("bank", 0, 67)["rows"]).all()
    assert torch.isfinite(load_encoder(run.path).embed(made_pictures(67)[:3])).all()


@pytest.mark.parametrize("every_step", [True, False])
def test_weights_that_are_no_numbers_are_never_saved(tmp_path: Path, every_step: bool) -> None:
    """The loss of the step that spoils the weights is still finite; the next step may come after a save."""
    run = RunFolder(tmp_path / "run")
    settings = tiny(lr=1e38, warmup=1, epochs=4, checkpoint_minutes=0 if every_step else 60)
    with pytest.raises(InputError, match=r"diverged at step \d+"):
        train(made_pictures(67), run.path, settings, say=None)
    assert (run.diagnosis / "nan.json").is_file()
    saved = latest(run.checkpoints)
    assert (saved is not None) == every_step
    if saved is not None:
        assert all(torch.isfinite(weights).all() for weights in saved.tensors("encoder").values())


@pytest.mark.fault("collapse (all features equal) goes unnoticed")
def test_collapse_warns_once_in_plain_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def constant_encoder(*arguments: Any, **options: Any) -> Encoder:
        encoder = build_encoder(*arguments, **options)
        with torch.no_grad():
            encoder.head.weight.zero_()
        return encoder

    monkeypatch.setattr(frozen, "build_encoder", constant_encoder)
    run = train(made_pictures(67), tmp_path / "run", tiny(epochs=2, monitor_epochs=1, lr=1e-9))
    shown = capsys.readouterr().out
    assert shown.count("Warning: The vectors have collapsed: two different pictures have a mean cosine of 1.000") == 1
    measured = [line["measured"] for line in run.metrics() if "measured" in line]
    assert len(measured) == 2
    assert all(numbers["effective_rank"] == pytest.approx(1, abs=1e-3) for numbers in measured)


def test_minutes_end_in_time_and_the_schedule_has_fallen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock of its own, which a look at it moves on by a hundredth of a second."""
    clock = itertools.count()
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: next(clock) / 100))
    settings = tiny(minutes=0.05, schedule="cosine", epochs=200)
    training = training_in(tmp_path, settings)
    training.fit()
    assert training.finished and training.epoch < 200
    assert 3 <= training.seconds < 3.1
    lines = read_metrics(training.run)
    rates = [line["lr"] for line in lines]
    assert rates[0] > 0.09
    assert rates[-1] < 0.01
    assert rates == sorted(rates, reverse=True)
    assert latest(training.run.checkpoints).step == training.step_number  # type: ignore[union-attr]


def test_a_part_of_an_epoch(tmp_path: Path) -> None:
    run = train(made_pictures(67), tmp_path / "run", tiny(epochs=0.6), say=None)
    assert run.finished
    assert run.epochs == pytest.approx(0.6)
    assert [line["step"] for line in run.metrics() if "loss" in line] == [1, 2, 3]


@pytest.mark.fault("the bank is not saved: resume starts from noise")
@pytest.mark.fault("a counter beside the bank is not saved: resume starts from noise")
@pytest.mark.fault("optimizer missing from a checkpoint")
@pytest.mark.fault("sampler position missing from a checkpoint")
@pytest.mark.fault("bank missing from a checkpoint")
@pytest.mark.fault("resume repeats or skips an epoch")
@pytest.mark.parametrize("objective", ["softmax", "nce"])
def test_ctrl_c_ends_after_the_step_in_hand_and_is_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], objective: str
) -> None:
    """What goes on is what an uninterrupted run does, to the bit: with NCE its average of Z and the bank's count."""
    settings = tiny(objective=objective, partition="moving_average", temperature=0.3)
    training = training_in(tmp_path / "run", settings)
    step = training.step

    def pressed(*arguments: Any) -> dict[str, float]:
        if training.step_number == 6:
            os.kill(os.getpid(), signal.SIGINT)
        return step(*arguments)

    monkeypatch.setattr(training, "step", pressed)
    before = signal.getsignal(signal.SIGINT)
    training.fit()
    assert signal.getsignal(signal.SIGINT) is before
    assert (training.interrupted, training.finished, training.step_number) == (True, False, 7)
    assert latest(training.run.checkpoints).step == 7  # type: ignore[union-attr]
    assert "Press Ctrl-C again to stop at once" in capsys.readouterr().out

    again = training_in(tmp_path / "run", settings)
    assert again.resume()
    again.fit()
    through = training_in(tmp_path / "through", settings)
    through.fit()
    assert again.bank.updates == through.bank.updates == 10
    for name, values in outcome(through).items():
        assert torch.equal(outcome(again)[name], values), name
    assert tiny_runs.losses_of(tmp_path / "run") == tiny_runs.losses_of(tmp_path / "through")


GROWING = {"early_sizes": "0.5 0.75", "grow_at": "0.3 0.6", "lr": 0.01}  # views of 8, 12, then 16 px


def sides_seen(training: Training) -> list[int]:
    """The sides of the views that the encoder will be shown, a number a step."""
    sides: list[int] = []
    training.encoder.register_forward_pre_hook(lambda _, inputs: sides.append(inputs[0].shape[-1]))
    return sides


def test_views_grow_with_the_work_done(tmp_path: Path) -> None:
    training = training_in(tmp_path, tiny(views=2, epochs=6, **GROWING))
    sides = sides_seen(training)
    training.fit()
    assert sides == sorted(sides) and len(sides) == training.total_steps == 30
    pixels = {side: side**2 * sides.count(side) for side in (8, 12, 16)}
    for side, share in {8: 0.3, 12: 0.3, 16: 0.4}.items():  # of the pixels, to within two steps
        assert pixels[side] / sum(pixels.values()) == pytest.approx(share, abs=2 * 16**2 / sum(pixels.values()))
    lines = [line for line in read_metrics(training.run) if "loss" in line]
    assert [line["size"] for line in lines] == [sides[line["step"] - 1] for line in lines]
    assert training.done == (100, 100, "%")


def test_views_grow_by_the_clock_of_a_run_by_minutes(tmp_path: Path) -> None:
    training = training_in(tmp_path, tiny(minutes=60, **GROWING))
    sides = sides_seen(training)
    for minute in (0, 17, 19, 35, 37, 59):
        training.progress = minute / 60
        training.step(*next(training._steps_of(0, 0)))
    assert sides == [8, 8, 12, 12, 16, 16]
    training.seconds = 120.5
    assert training.done == (120, 3600, "s")


def test_growing_views_go_on_where_they_were(tmp_path: Path) -> None:
    settings = tiny(epochs=6, **GROWING)
    through = training_in(tmp_path / "through", settings)
    through.fit()
    for stop in (3, 16, 25):
        stopped = training_in(tmp_path / str(stop), settings)
        step = stopped.step

        def interrupted(*arguments: Any, training: Training = stopped, step: Any = step, stop: int = stop) -> Any:
            training._asked_to_stop = training.step_number == stop - 1
            return step(*arguments)

        stopped.step = interrupted  # type: ignore[method-assign]
        stopped.fit()
        again = training_in(tmp_path / str(stop), settings)
        assert again.resume() and again.step_number == stop
        again.fit()
        for name, values in outcome(through).items():
            assert torch.equal(outcome(again)[name], values), name


def test_a_run_says_which_views_it_takes(tmp_path: Path) -> None:
    said: list[str] = []
    for name, changes, words in (("one", {}, "1 view of 16 px,"), ("grow", GROWING, "1 view of 8, 12, then 16 px,")):
        run = train(made_pictures(32), tmp_path / name, tiny(epochs=1, **changes), say=said.append)
        assert words in " ".join(said)
        assert run.encoder().preprocessing.size == 16
        said.clear()


def test_a_backbone_that_takes_one_size_only_is_refused_before_the_pictures_are_read(tmp_path: Path) -> None:
    pictures = picture_folder(tmp_path / "pictures", 20)
    growing = {"early_sizes": "0.5", "grow_at": "0.5", "epochs": 1, "storage": "cache"}
    vit = tiny(backbone="vit_tiny_patch16_224", width=None, size=32, **growing)
    with pytest.raises(InputError, match=r"can't take pictures of 16 × 16 px .* --set early_sizes= --set grow_at="):
        train(pictures, tmp_path / "run", vit, say=None)
    assert not (tmp_path / "run" / "config.json").exists()
    train(pictures, tmp_path / "run", vit, early_sizes="", grow_at="", limit=16, batch=8, say=None)


@pytest.mark.fault("random states missing from a checkpoint")
def test_the_random_state_of_torch_goes_on(tmp_path: Path) -> None:
    """A backbone with dropout draws from it."""
    training = training_in(tmp_path, tiny())
    torch.rand(7)
    training.save()
    expected = torch.rand(3)
    torch.manual_seed(99)
    again = training_in(tmp_path, tiny())
    assert again.resume()
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.fault("schedule missing from a checkpoint")
def test_a_clock_and_its_schedule_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half an hour of an hour has passed: the rate of the next step is that of the middle, not of the start."""
    settings = tiny(minutes=60, schedule="cosine", warmup=0)
    training = training_in(tmp_path, settings)
    training.seconds = 1800.0
    parts, planned = next(training._steps_of(0, 0))
    training._agree(training.step(parts, planned), due=False)
    training.save()
    again = training_in(tmp_path, settings)
    assert again.resume()
    assert (again.step_number, again.seconds, again.progress) == (1, 1800.0, 0.5)
    step = again.step

    def pressed(*arguments: Any) -> dict[str, torch.Tensor]:
        os.kill(os.getpid(), signal.SIGINT)
        return step(*arguments)

    monkeypatch.setattr(again, "step", pressed)
    again.fit()
    assert again.optimizer.param_groups[0]["lr"] == pytest.approx(0.1 / 2)
    assert 1800 < again.seconds < 2400 and 0.5 < again.progress < 0.67


def test_a_second_ctrl_c_ends_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training = training_in(tmp_path, tiny())

    def pressed_twice(*_: Any) -> dict[str, float]:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("the step went on")

    monkeypatch.setattr(training, "step", pressed_twice)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        training.fit()
    assert signal.getsignal(signal.SIGINT) is before
    assert latest(training.run.checkpoints) is None


@pytest.mark.parametrize("moment", ["write", "save"])
def test_a_ctrl_c_between_two_steps_is_not_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    """The wish is heard whenever it comes; only the agreement of all ranks acts on it."""
    training = training_in(tmp_path, tiny(checkpoint_minutes=0))
    place = training.metrics if moment == "write" else training
    act = getattr(place, moment)

    def pressed(*arguments: Any) -> None:
        if training.step_number == 3:
            os.kill(os.getpid(), signal.SIGINT)
        act(*arguments)

    monkeypatch.setattr(place, moment, pressed)
    training.fit()
    assert (training.interrupted, training.step_number) == (True, 4)


def test_too_few_pictures_for_the_pieces(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="too few for 1 process"):
        training_in(tmp_path, tiny(accumulate=8, batch=16))
    assert ranks.world() == 1


def test_a_batch_that_cannot_be_read_ends_with_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """storage=workers meets unreadable pictures on the way: a batch without two good ones has no statistics."""
    training = training_in(tmp_path, tiny())
    batches = training.pictures.batches
    monkeypatch.setattr(training.pictures, "batches", lambda order: batches(order[:3]))
    with pytest.raises(InputError, match="a batch is empty .*quarantine.csv.*storage=cache"):
        training.fit()
    assert training.step_number == 3


def test_metrics_hold_what_was_promised(tmp_path: Path) -> None:
    settings = tiny(objective="nce", proximal=1.0, views=2, view_share=0.25, epochs=2)
    run = train(made_pictures(67), tmp_path / "run", settings, say=None)
    lines = [line for line in run.metrics() if "loss" in line]
    assert [line["step"] for line in lines] == list(range(1, 11))
    for line in lines:
        assert set(line["losses"]) == {"nce", "views", "proximal"}
        assert line["loss"] == pytest.approx(sum(line["losses"].values()))
        assert line["images_per_second"] > 0
        assert 0 <= line["waiting"] <= 1
        assert math.isfinite(line["log_partition"])
    assert (run.path / "tensorboard").is_dir()
    assert all(value["bank"]["updates"] == 10 for value in [latest(RunFolder(run.path).checkpoints).facts])  # type: ignore[union-attr]


def test_while_the_bank_fills_its_terms_wait(tmp_path: Path) -> None:
    """The first epoch teaches from the views alone: the weights are those of a run without the bank's term."""
    common = {"views": 2, "view_share": 0.5, "epochs": 1, "weight_decay": 0}
    filled = training_in(tmp_path / "filled", tiny(fill_epochs=1, **common))
    filled.fit()
    alone = training_in(tmp_path / "alone", tiny(fill_epochs=1, objective="parametric", **common))
    alone.fit()
    found = outcome(filled)
    assert (found["losses"][:, 1] == 0).all()
    assert (found["losses"][:, 2] > 0).all()
    assert torch.equal(found["bank"], outcome(alone)["bank"])
    assert filled.bank.updates == 5
    later = training_in(tmp_path / "later", tiny(fill_epochs=0.4, **common))
    later.fit()
    assert ((outcome(later)["losses"][:, 1] > 0) == torch.tensor([False, False, True, True, True])).all()
