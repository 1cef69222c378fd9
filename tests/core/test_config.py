"""Settings out of the environment and back."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipedec.config import DEFAULT_CACHE, DraftConfig, StageConfig, child_environment, model_cache
from pipedec.errors import ManifestError

STAGE = {
    "PIPEDEC_MANIFEST": "/etc/pipedec/manifest.yaml",
    "PIPEDEC_KEYS_DIR": "/keys",
    "PIPEDEC_STAGE_INDEX": "3",
    "PIPEDEC_HEAD_ADDRESS": "tcp://llama-draft:5555",
}
DRAFT = {"PIPEDEC_MANIFEST": "/etc/pipedec/manifest.yaml", "PIPEDEC_INSECURE": "1", "PIPEDEC_HTTP_PORT": "0"}


def test_a_stage_is_configured() -> None:
    config = StageConfig.from_env(STAGE | {"PIPEDEC_THREADS": "2", "UNRELATED": "x", "PIPEDEC_DEVICE": ""})
    assert (config.stage, config.head_address, config.threads) == (3, "tcp://llama-draft:5555", 2)
    assert (config.data_port, config.device, config.keys_dir) == (0, "auto", Path("/keys"))


def test_the_environment_survives_a_round_trip() -> None:
    assert StageConfig.from_env(STAGE).to_env() == STAGE
    assert DraftConfig.from_env(DRAFT).to_env() == DRAFT


@pytest.mark.parametrize(
    ("changes", "variable", "words"),
    [
        ({"PIPEDEC_MANIFEST": ""}, "PIPEDEC_MANIFEST", "is not set. File of the manifest"),
        ({"PIPEDEC_STAGE_INDEX": "-1"}, "PIPEDEC_STAGE_INDEX", "is '-1', but must be a number from 0 to 63"),
        ({"PIPEDEC_DATA_PORT": "70000"}, "PIPEDEC_DATA_PORT", "must be a number from 0 to 65535"),
        ({"PIPEDEC_DATA_PORT": "٣"}, "PIPEDEC_DATA_PORT", "must be a number"),
        ({"PIPEDEC_HEAD_ADDRESS": "draft:1"}, "PIPEDEC_HEAD_ADDRESS", "must be tcp://host:port"),
        ({"PIPEDEC_LOG_LEVEL": "LOUD"}, "PIPEDEC_LOG_LEVEL", "must be one of DEBUG, INFO, WARNING, ERROR"),
        ({"PIPEDEC_INSECURE": "yes"}, "PIPEDEC_INSECURE", "must be 0 or 1"),
        ({"PIPEDEC_INSECURE": "1"}, "PIPEDEC_KEYS_DIR", "is set together with PIPEDEC_INSECURE=1"),
        ({"PIPEDEC_KEYS_DIR": ""}, "PIPEDEC_KEYS_DIR", "is not set. Give the directory of CURVE keys"),
    ],
)
def test_a_bad_variable_is_named(changes: dict[str, str], variable: str, words: str) -> None:
    with pytest.raises(ManifestError) as caught:
        StageConfig.from_env(STAGE | changes)
    assert caught.value.field == variable
    assert words in str(caught.value)


def test_every_variable_is_our_own_and_explained() -> None:
    for config in (StageConfig, DraftConfig):
        for variable in config.variables().values():
            assert variable.name.startswith("PIPEDEC_")
            assert variable.doc.endswith(".")


def test_the_model_cache_has_a_default() -> None:
    assert model_cache({}) == DEFAULT_CACHE
    assert model_cache({"PIPEDEC_MODEL_CACHE": "/models"}) == Path("/models")


def test_children_inherit_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEEN_BY_CHILDREN", "1")
    assert child_environment({"B": "2"}).items() >= {"SEEN_BY_CHILDREN": "1", "B": "2"}.items()
