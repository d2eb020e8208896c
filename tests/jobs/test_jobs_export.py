"""What is written for other software is read by that software alone, and says the same."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import timm
import torch
from sklearn.base import clone
from sklearn.pipeline import make_pipeline
from sklearn.svm import LinearSVC
from sklearn.utils.estimator_checks import check_estimator
from tiny_runs import made_pictures, picture_folder, tiny

import instdisc
from instdisc import cli
from instdisc.errors import InputError
from instdisc.jobs import index
from instdisc.jobs.collection import Collection
from instdisc.jobs.export import export
from instdisc.jobs.label import assign
from instdisc.jobs.train import train

COUNT = 40


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("export")
    pictures = picture_folder(folder / "pictures", COUNT)
    return pictures, train(pictures, folder / "run", tiny(epochs=1, head="mlp"), say=None).path


def test_onnx_says_what_torch_says_for_any_batch(trained: tuple[Path, Path], tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="the extra export is not installed")
    (path,) = export(trained[1], tmp_path, only=["onnx"], say=None)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    facts = session.get_modelmeta().custom_metadata_map
    encoder = instdisc.load(trained[1])
    assert (
        json.loads(facts["config"]) == json.loads(json.dumps(encoder.describe()))
        and "uint8, 16 x 16" in facts["pixels"]
    )
    for count in (1, 7):
        pictures = made_pictures(count, seed=4)
        found = session.run(["vectors", "embedding"], {"pixels": pictures.transpose(0, 3, 1, 2)})
        for values, kind in zip(found, ("search", "embedding"), strict=True):
            np.testing.assert_allclose(values, encoder.embed(pictures, vectors=kind).numpy(), atol=1e-4)
    assert facts["vectors"] == "search vectors"


@pytest.mark.parametrize(("backbone", "options"), [("mobilenetv3_small_050", {}), ("resnet18", {"width": 4})])
def test_timm_alone_loads_the_backbone(
    trained: tuple[Path, Path], tmp_path: Path, backbone: str, options: dict
) -> None:
    settings = tiny(epochs=1, backbone=backbone, size=32, **({"width": None} | options))
    run = train(trained[0], tmp_path / "run", settings, say=None).path
    weights, facts_file = export(run, tmp_path / "out", only=["timm"], say=None)
    facts = json.loads(facts_file.read_text())
    pictures = made_pictures(5, seed=2).repeat(2, axis=1).repeat(2, axis=2)
    expected = instdisc.load(run).features(pictures)["backbone"]
    assert facts["loads_into_timm_as_it_is"] is (backbone != "resnet18")
    if not facts["loads_into_timm_as_it_is"]:
        assert any("Conv2d" in line for line in facts["changed"]) and "width 4" in facts["changed"]
        return
    model = timm.create_model(facts["architecture"], num_classes=0, checkpoint_path=str(weights)).eval()
    mean, std = (torch.tensor(facts[name]).view(1, 3, 1, 1) for name in ("mean", "std"))
    pixels = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        torch.testing.assert_close(model((pixels - mean) / std), expected, atol=2e-3, rtol=1e-3)


@pytest.mark.fault("results cannot be exported")
def test_vectors_with_what_they_belong_to(trained: tuple[Path, Path], tmp_path: Path) -> None:
    run = trained[1]
    collection = Collection(run)
    assign(run, {collection.index.entries([0])[0].path: "by hand"}, say=None)
    index.remove(run, where="*0003.png", say=None)
    table_file, array_file = export(run, tmp_path, only=["vectors"], say=None)
    rows = np.flatnonzero(~Collection(run).index.removed)
    entries = Collection(run).index.entries(rows)
    table = pq.read_table(table_file)
    assert table["path"].to_pylist() == [entry.path for entry in entries] and len(entries) == COUNT - 1
    assert table["label"].to_pylist() == [entry.label for entry in entries] and "by hand" in table["label"].to_pylist()
    expected = Collection(run).index.vectors(rows).numpy()
    np.testing.assert_array_equal(np.load(array_file), expected)
    assert Collection(run).vectors == "search" and expected.shape[1] == instdisc.load(run).dimensions()
    np.testing.assert_array_equal(np.array(table["vector"].to_pylist(), np.float32), expected)


def test_the_command_and_what_a_person_can_get_wrong(
    trained: tuple[Path, Path], tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.setattr(
        sys, "argv", ["instdisc", "export", str(trained[1]), "-o", str(tmp_path / "out"), "--only", "timm,vectors"]
    )
    try:
        cli.main()
    except SystemExit as end:
        assert not end.code  # noqa: PT017
    out = capsys.readouterr().out
    assert (
        "conv6 is not one of timm's" in out and f"vectors of {instdisc.load(trained[1]).dimensions()} dimensions" in out
    )
    with pytest.raises(InputError, match='What can be exported is onnx, timm, vectors, not "tflite"'):
        export(trained[1], tmp_path, only=["tflite"])
    with pytest.raises(InputError, match="conv6 is not one of timm's: export onnx"):
        export(trained[1], tmp_path, only=["timm"])
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="can't be written"):
        export(trained[1], tmp_path / "file", only=["vectors"], say=None)


# ---------------------------------------------------------------------------------------------------------------------
# scikit-learn


def test_it_works_in_a_pipeline_with_a_linear_svm(tmp_path: Path) -> None:
    pictures, labels = made_pictures(60), np.arange(60) % 3
    settings = {
        name: value
        for name, value in vars(tiny()).items()
        if name in ("backbone", "width", "dim", "size", "batch", "precision")
    }
    model = instdisc.InstanceDiscrimination(epochs=2, settings=settings, device="cpu", out=tmp_path / "run")
    assert clone(model).get_params() == model.get_params()
    pipeline = make_pipeline(model, LinearSVC()).fit(pictures, labels)
    assert pipeline.score(pictures, labels) > 0.8  # the classes are colours
    vectors = model.transform(pictures[:5])
    np.testing.assert_allclose(vectors, instdisc.load(tmp_path / "run").embed(pictures[:5]).numpy(), atol=1e-6)
    assert vectors.dtype == np.float32 and np.linalg.norm(vectors, axis=1) == pytest.approx(1)
    assert list(model.get_feature_names_out()[:2]) == ["instancediscrimination0", "instancediscrimination1"]
    again = clone(model).set_params(out=None).fit(pictures)
    np.testing.assert_allclose(again.transform(pictures[:5]), vectors, atol=1e-5)
    assert model.transform([pictures[0]]).shape == (1, vectors.shape[1]) == (1, len(model.get_feature_names_out()))


def test_check_estimator_where_it_applies() -> None:
    """Its checks hand over tables of numbers, which are no pictures: those that fit no data must all pass."""
    without_data = {
        "check_no_attributes_set_in_init",
        "check_parameters_default_constructible",
        "check_get_params_invariance",
        "check_set_params",
        "check_estimator_repr",
        "check_estimator_cloneable",
        "check_estimator_tags_renamed",
        "check_valid_tag_types",
    }
    results = check_estimator(instdisc.InstanceDiscrimination(), on_fail=None, on_skip=None)
    tried = [one for one in results if one["check_name"] in without_data]
    assert {one["check_name"] for one in tried} == without_data
    assert not [one["check_name"] for one in tried if one["status"] == "failed"]
