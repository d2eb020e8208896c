"""`instdisc export`: the encoder and the vectors of a run for other software.

OUT/encoder.onnx           uint8 pixels (batch, 3, size, size), RGB -> search vectors and embedding, unit rows
OUT/backbone.safetensors   the backbone's weights under timm's names, with backbone.json: how timm makes the model
OUT/vectors.parquet        id, path, label, vector of every picture; vectors.npy: the vectors alone
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import nn

from instdisc.encoder import Encoder
from instdisc.encoder.small import SMALL_ENCODERS
from instdisc.errors import InputError
from instdisc.files import replacing, save_tensors, write_json
from instdisc.jobs.collection import Collection
from instdisc.jobs.index import searchable
from instdisc.runs import require_utf8
from instdisc.shapes import Tensor, UInt8

KINDS = ("onnx", "timm", "vectors")
_CLOSE = 1e-4  # between onnxruntime and torch, on unit vectors
_BLOCK = 65_536
Say = Callable[[str], None] | None


class _WithPixels(nn.Module):
    """The encoder with its normalisation: bytes in, search vectors (where there are any) and embedding out."""

    mean: Tensor
    std: Tensor

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder
        view = encoder.preprocessing
        self.register_buffer("mean", 255 * torch.tensor(view.mean).view(1, 3, 1, 1))
        self.register_buffer("std", 255 * torch.tensor(view.std).view(1, 3, 1, 1))

    def forward(self, pixels: UInt8[Tensor, "batch 3 size size"]) -> tuple[Tensor, ...]:
        """(batch, dim) each: search vectors first, where the encoder has a map to them, then the embedding."""
        whitening = self.encoder.whitening
        also = () if whitening is None else whitening.facts.stages
        levels = self.encoder.levels((pixels.float() - self.mean) / self.std, also)
        return (levels["embedding"],) if whitening is None else (whitening.of(levels), levels["embedding"])


def export(
    run: str | Path,
    out: str | Path,
    *,
    only: tuple[str, ...] | list[str] = KINDS,
    bank: bool = False,
    train_source: Any = None,
    say: Say = print,
) -> list[Path]:
    """Write what is asked for (onnx, timm, vectors) into the folder `out`; the files made.

    bank: take the vectors that are there, the rows of the bank perhaps, and compute none.
    Raises InputError for an unknown kind, a missing library, a backbone that is not timm's.
    """
    unknown = [kind for kind in only if kind not in KINDS]
    if unknown:
        raise InputError(f'What can be exported is {", ".join(KINDS)}, not "{unknown[0]}".')
    collection = searchable(run, bank=bank or "vectors" not in only, train_source=train_source, say=say)
    if collection.given and set(only) == set(KINDS):
        only = ["vectors"]  # there is no encoder
    encoder = None if list(only) == ["vectors"] else collection.encoder("cpu").eval()
    folder = Path(out)
    require_utf8(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        made = []
        if encoder is not None and "onnx" in only:
            made += [_onnx(encoder, folder / "encoder.onnx", say)]
        if encoder is not None and "timm" in only:
            if encoder.config.backbone in SMALL_ENCODERS and len(only) > 1:
                if say is not None:
                    say(f"The backbone {encoder.config.backbone} is not one of timm's: its weights are not written.")
            else:
                made += _timm(encoder, folder, say)
        if "vectors" in only:
            made += _vectors(collection, folder, say)
    except OSError as error:
        raise InputError(f"{folder} can't be written ({error.strerror or error}): choose another folder.") from None
    return made


def _onnx(encoder: Encoder, path: Path, say: Say) -> Path:
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401  (torch's exporter needs it)
    except ImportError as error:
        raise InputError(f"ONNX needs {error.name}: pip install 'instdisc[export]'.") from None
    module = _WithPixels(encoder).eval()
    size = encoder.preprocessing.size
    names = ["vectors"] if encoder.whitening is None else ["vectors", "embedding"]
    pixels = torch.randint(0, 256, (4, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        program = torch.onnx.export(
            module,
            (pixels,),
            dynamo=True,
            input_names=["pixels"],
            output_names=names,
            dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=2**20)},),
            verbose=False,
        )
        assert program is not None
        model = program.model_proto
        view = encoder.preprocessing
        onnx.helper.set_model_props(
            model,
            {
                "pixels": f"RGB, uint8, {size} x {size}: the central square of {view.crop_fraction:g} of the shorter "
                "side, resized by Pillow's bilinear filter",
                "config": json.dumps(encoder.describe()),
                "vectors": "embedding" if encoder.whitening is None else "search vectors",
            },
        )
        expected = [values.numpy() for values in module(pixels)]
    apart = 0.0
    with replacing(path) as temporary:
        onnx.save(model, temporary)
        session = onnxruntime.InferenceSession(temporary, providers=["CPUExecutionProvider"])
        for some in (pixels, pixels[:1]):
            for found, wanted in zip(session.run(None, {"pixels": some.numpy()}), expected, strict=True):
                apart = max(apart, float(np.abs(found - wanted[: len(some)]).max()))
        if not apart <= _CLOSE:
            raise InputError(f"onnxruntime and torch differ by {apart:.1e} on this encoder: nothing was written.")
    if say is not None:
        say(f"{path}: within {apart:.0e} of torch, in onnxruntime.")
    return path


def _timm(encoder: Encoder, folder: Path, say: Say) -> list[Path]:
    config = encoder.config
    if config.backbone in SMALL_ENCODERS:
        raise InputError(f"The backbone {config.backbone} is not one of timm's: export onnx in its place.")
    import timm

    weights, facts = folder / "backbone.safetensors", folder / "backbone.json"
    state = {name: value.contiguous() for name, value in encoder.backbone.state_dict().items()}
    plain = timm.create_model(config.backbone, num_classes=0).state_dict()
    fits = {name: value.shape for name, value in plain.items()} == {name: value.shape for name, value in state.items()}
    changed = type(getattr(encoder.backbone, "maxpool", None)) is nn.Identity
    with replacing(weights) as temporary:
        save_tensors(state, temporary)
    write_json(
        facts,
        {
            "architecture": config.backbone,
            "num_classes": 0,
            "loads_into_timm_as_it_is": fits and not changed,
            "changed": []
            if fits and not changed
            else [
                f"width {config.width}" if config.width else "",
                "conv1 is Conv2d(3, channels, 3, padding=1, bias=False); maxpool is Identity()" if changed else "",
            ],
            "input_size": [3, config.preprocessing.size, config.preprocessing.size],
            "mean": config.preprocessing.mean,
            "std": config.preprocessing.std,
            "crop_pct": config.preprocessing.crop_fraction,
            "interpolation": "bilinear",
        },
    )
    if say is not None:
        how = f'timm.create_model("{config.backbone}", num_classes=0, checkpoint_path="{weights}")'
        say(f"{weights}: {how if fits and not changed else f'{facts} tells how timm makes the model'}")
    return [weights, facts]


def _vectors(collection: Collection, folder: Path, say: Say) -> list[Path]:
    index = collection.index
    rows = np.flatnonzero(~index.removed)
    table, array = folder / "vectors.parquet", folder / "vectors.npy"
    names = np.array([*index.label_names, ""], dtype=object)
    kind = index.pictures["id"].type
    schema = pa.schema(
        [("id", kind), ("path", kind), ("label", pa.string()), ("vector", pa.list_(pa.float32(), index.dim))]
    )
    with (
        replacing(array) as vectors_file,
        replacing(table) as table_file,
        open(table_file, "wb") as file,
        pq.ParquetWriter(file, schema) as writer,
    ):
        whole = np.lib.format.open_memmap(vectors_file, mode="w+", dtype=np.float32, shape=(len(rows), index.dim))
        for start in range(0, len(rows), _BLOCK):
            some = rows[start : start + _BLOCK]
            vectors = index.vectors(some).numpy()
            whole[start : start + len(some)] = vectors
            pictures = index.pictures.take(pa.array(some))
            columns = [
                pictures["id"].combine_chunks(),
                pictures["location"].combine_chunks(),
                pa.array(names[index.labels[some]].tolist(), pa.string()),
                pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), index.dim),
            ]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema))
        whole.flush()
    if say is not None:
        megabytes = math.ceil((table.stat().st_size + array.stat().st_size) / 1e6)
        say(f"{table} and {array}: {len(rows):,} vectors of {index.dim} dimensions, {megabytes:,} MB.")
    return [table, array]
