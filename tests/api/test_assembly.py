"""The endpoint as a manifest asks for it, over a head without a model."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from prometheus_client import CollectorRegistry

from draft_service.assembly import LoadedModels, assemble_app, load_models
from draft_service.generation import EngineInfo
from draft_service.text import Tokenizer
from pipedec.config import DraftConfig
from pipedec.errors import ManifestError
from pipedec.sampling_params import SamplingParams
from pipedec.spec import PipeDecDeployment
from pipedec.wire.messages import NO_PARENT, Batch, Open, Prefill, Row, Rows
from tests.api.scripted import MODEL
from tests.faults.service import Service
from tests.tiny import tiny_model

COMPLETIONS = "/v1/completions"
SPLIT = ((0, 1), (1, 2))
MANIFEST: dict[str, Any] = {
    "apiVersion": "pipedec.dev/v1alpha1",
    "kind": "PipeDecDeployment",
    "metadata": {"name": MODEL},
    "spec": {"model": {"uri": "file:///none"}, "pipeline": {"stages": 2}},
}


@pytest.fixture
def service() -> Iterator[Service]:
    service = Service()
    yield service
    service.close()


def answers(service: Service, tokenizer: Tokenizer, context: int, *contents: bytes, **serving: Any) -> list[Any]:
    """What an endpoint with these settings says to each body."""
    resource = PipeDecDeployment.model_validate(MANIFEST | {"spec": MANIFEST["spec"] | {"serving": serving}})
    models = LoadedModels(resource, SPLIT, "r1", EngineInfo(MODEL, context, 512, SPLIT), tokenizer, None)
    config = DraftConfig.from_env({"PIPEDEC_MANIFEST": "none.yaml", "PIPEDEC_INSECURE": "1"})

    async def ask() -> list[Any]:
        app, _, live = assemble_app(config, models, service.head, CollectorRegistry())
        headers = {"content-type": "application/json"}
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x", timeout=60) as client:
            told = [await client.post(COMPLETIONS, content=content, headers=headers) for content in contents]
        live.close()
        return [(each.status_code, each.json().get("error", {}).get("message", "")) for each in told]

    return asyncio.run(ask())


@pytest.mark.parametrize(("context", "limit"), [(128, 1 << 20), (131072, 1 << 21)])
def test_a_prompt_of_the_whole_context_fits_into_a_body(
    service: Service, tokenizer: Tokenizer, context: int, limit: int
) -> None:
    def body(size: int) -> bytes:
        return b'{"model": "none", "prompt": "x", "user": ""}'.replace(b'""', b'"%s"' % (b"u" * (size - 44)))

    (fits, _), (too_large, message) = answers(service, tokenizer, context, body(limit), body(limit + 1))
    assert (fits, too_large) == (404, 413)
    assert f"larger than {limit} bytes" in message


def test_a_draft_with_a_shorter_context_predicts_beyond_it(tmp_path: Path) -> None:
    """A request that grows past it must not cost all others their predictions."""
    target = tiny_model(tmp_path / "target", context=96)
    manifest = tmp_path / "manifest.yaml"
    spec = {
        "model": {"uri": target.as_uri(), "dtype": "float32"},
        "draft": {"uri": tiny_model(tmp_path / "draft", context=32).as_uri()},
        "pipeline": {"stages": 2},
    }
    kind = {"apiVersion": "pipedec.dev/v1alpha1", "kind": "PipeDecDeployment"}
    manifest.write_text(yaml.safe_dump({**kind, "metadata": {"name": MODEL}, "spec": spec}))
    environment = {"PIPEDEC_MANIFEST": str(manifest), "PIPEDEC_INSECURE": "1", "PIPEDEC_DEVICE": "cpu"}
    draft = load_models(DraftConfig.from_env(environment)).draft
    assert draft is not None
    draft.reset(128)
    prompt = tuple(range(60))
    ops = (Open(1, SamplingParams(), 61), Prefill(1, 0, prompt, prompt))
    (children,) = draft.propose(Batch(1, 0, ops, Rows.of([Row(1, 0, NO_PARENT, 7, 60, 60, ())])))
    assert len(children) == 16


def test_a_key_that_cannot_be_sent_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("two\nlines")
    (tmp_path / "manifest.yaml").write_text(yaml.safe_dump(MANIFEST))
    names = {"PIPEDEC_MANIFEST": "manifest.yaml", "PIPEDEC_API_KEY_FILE": "key"}
    environment = {name: str(tmp_path / file) for name, file in names.items()}
    with pytest.raises(ManifestError, match="no client can send"):
        load_models(DraftConfig.from_env({**environment, "PIPEDEC_INSECURE": "1"}))


def test_a_pipeline_asks_for_the_key_that_its_file_has_now(
    service: Service, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    models = LoadedModels(
        PipeDecDeployment.model_validate(MANIFEST), SPLIT, "r1", EngineInfo(MODEL, 64, 512, SPLIT), tokenizer, None
    )
    environment = {"PIPEDEC_MANIFEST": "none.yaml", "PIPEDEC_INSECURE": "1", "PIPEDEC_API_KEY_FILE": f"{tmp_path}/key"}
    (tmp_path / "key").write_text("old")

    async def statuses() -> list[int]:
        app, _, live = assemble_app(DraftConfig.from_env(environment), models, service.head, CollectorRegistry())
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as client:

            async def ask(key: str) -> int:
                return (await client.get("/v1/models", headers={"authorization": f"Bearer {key}"})).status_code

            before = [await ask("old"), await ask("newer")]
            (tmp_path / "key").write_text("newer")
            after = [await ask("old"), await ask("newer")]
        live.close()
        return before + after

    assert asyncio.run(statuses()) == [200, 401, 401, 200]


def test_what_the_queue_never_holds_is_refused_for_good(service: Service, tokenizer: Tokenizer) -> None:
    bodies = [b'{"model": "tiny", "prompt": "x", "min_tokens": 20, "n": %d}' % n for n in (3, 4)]
    (_, looked_at), (refused, message) = answers(service, tokenizer, 64, *bodies, maxSequences=2, maxQueue=1)
    assert "min_tokens must not be above" in looked_at
    assert (refused, "more than 3 sequences" in message) == (400, True)
