"""A manifest from its file, and what its models' folders or repositories hold. No weights are fetched."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipedec.doctor.manifest import ManifestFacts, ModelFacts
from pipedec.errors import ManifestError, ModelError
from pipedec.model.shape import INDEX_FILE, SINGLE_FILE, read_config
from pipedec.models import resolve_config
from pipedec.models.index import weight_map
from pipedec.models.listing import files_of
from pipedec.sizing import Gpu
from pipedec.spec import Dtype, InvalidManifest, load_manifest

TOKENIZER = "tokenizer.json"  # of the target; a draft does without


def gather_manifest(file: Path, cache: Path, gpu: Gpu | None) -> ManifestFacts:
    """Reads the manifest, and looks at its models."""
    try:
        manifest = load_manifest(file)
    except InvalidManifest as error:
        return ManifestFacts(None, error.errors)
    except ManifestError as error:
        return ManifestFacts(None, (error,))
    spec = manifest.spec
    draft = None if spec.draft is None or spec.draft.uri is None else spec.draft.uri
    return ManifestFacts(
        manifest,
        target=gather_model(spec.model.uri, spec.model.dtype, cache, (TOKENIZER,)),
        draft=None if draft is None else gather_model(draft, spec.draft_dtype, cache),
        gpu=gpu,
    )


def gather_model(uri: str, dtype: Dtype, cache: Path, besides: Sequence[str] = ()) -> ModelFacts:
    """Looks at a model, which must have the files `besides` its weights."""
    if uri.startswith("pvc://"):
        return ModelFacts(uri, unseen="the volume is only seen by the cluster's pods")
    try:
        names = files_of(uri, cache)
        if names is None:
            return ModelFacts(uri, unseen="is fetched and prepared at the first start (`pipedec models prepare`)")
        folder = resolve_config(uri, cache)
        config = read_config(folder)
        missing = [name for name in (*besides, *_weights(folder, names)) if name not in names]
    except ModelError as error:
        return ModelFacts(uri, problem=str(error))
    return ModelFacts(uri, config, missing, unsupported=_unsupported(folder, dtype))


def _weights(folder: Path, names: frozenset[str]) -> list[str]:
    """The files of the weights: one, or those that the index names where it is at hand."""
    if INDEX_FILE not in names:
        return [SINGLE_FILE]
    return sorted(set(weight_map(folder).values()))


def _unsupported(folder: Path, dtype: Dtype) -> str:
    """Why the architecture cannot be split; empty if it can, or if there is no PyTorch here to try it with."""
    try:
        import torch

        from pipedec.model.architecture import build_on_meta
    except ImportError:
        return ""
    try:
        build_on_meta(folder, getattr(torch, dtype))
    except ModelError as error:
        return str(error)
    return ""
