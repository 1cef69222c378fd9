"""SmolLM2 over sockets and processes says what `generate()` says, with any neighbours, and when a stage is killed."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated

import openai
import psutil
import pytest
import torch
from pydantic import BaseModel, Field
from transformers import AutoModelForCausalLM, AutoTokenizer

from pipedec.model.shape import model_shape, read_config
from pipedec.partition import split_layers
from pipedec.spec import load_manifest
from tests.processes.conftest import MANIFEST, STAGES, Pipeline

PROMPTS = (
    "Why is the sky blue?",
    "Write a haiku about a river.",
    "What is 12 + 30? Answer with a number.",
    "Translate to Spanish: the house is green.",
)
MAX_TOKENS = 16


@pytest.fixture(scope="module")
def client(pipeline: Pipeline) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{pipeline.url}/v1", api_key="none", timeout=300, max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def expected(pipeline: Pipeline) -> dict[str, str]:
    """What the target alone says, by transformers."""
    tokenizer = AutoTokenizer.from_pretrained(pipeline.model)
    model = AutoModelForCausalLM.from_pretrained(pipeline.model, dtype=torch.float32)
    texts = {}
    for prompt in PROMPTS:
        messages = [{"role": "user", "content": prompt}]
        inputs = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        output = model.generate(**inputs, max_new_tokens=MAX_TOKENS, do_sample=False)
        texts[prompt] = tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return texts


def ask(client: openai.OpenAI, prompt: str) -> str:
    reply = client.chat.completions.create(
        model="smollm2", messages=[{"role": "user", "content": prompt}], max_tokens=MAX_TOKENS, temperature=0
    )
    return reply.choices[0].message.content or ""


def test_one_request_equals_generate(client: openai.OpenAI, expected: dict[str, str]) -> None:
    assert ask(client, PROMPTS[0]) == expected[PROMPTS[0]]


def test_concurrent_requests_equal_generate(client: openai.OpenAI, expected: dict[str, str]) -> None:
    with ThreadPoolExecutor(len(PROMPTS)) as pool:
        assert dict(zip(PROMPTS, pool.map(lambda prompt: ask(client, prompt), PROMPTS), strict=True)) == expected


class Person(BaseModel):
    name: str
    age: Annotated[int, Field(ge=0, le=120)]
    hobbies: Annotated[list[str], Field(min_length=1, max_length=3)]


def test_an_answer_follows_a_schema(client: openai.OpenAI) -> None:
    """Sampled at a temperature at which the model alone hardly would; with one seed, the same text beside it."""

    def ask() -> str | None:
        reply = client.chat.completions.parse(
            model="smollm2",
            messages=[{"role": "user", "content": "Anna is 34 and likes skiing and chess. Tell me about her in JSON."}],
            response_format=Person,
            max_tokens=200,
            temperature=1.2,
            seed=5,
        )
        assert reply.choices[0].finish_reason == "stop"
        assert isinstance(reply.choices[0].message.parsed, Person)
        return reply.choices[0].message.content

    with ThreadPoolExecutor(2) as pool:
        one, other = (pool.submit(ask) for _ in range(2))
        assert one.result() == other.result()


def test_an_answer_is_one_of_the_choices(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(
        model="smollm2",
        messages=[{"role": "user", "content": "Which is a fruit?"}],
        extra_body={"structured_outputs": {"choice": ["a stone", "an apple"]}},
        temperature=0,
    )
    assert reply.choices[0].message.content in ("a stone", "an apple")


def test_a_killed_stage_costs_no_token_of_a_stream(
    pipeline: Pipeline, client: openai.OpenAI, expected: dict[str, str]
) -> None:
    """kill -9 in the middle of an answer: it is started again, the others keep their weights, the text is the same."""
    survivors = {index: pipeline.stage(index).pid for index in range(STAGES) if index != 1}
    stream = client.chat.completions.create(
        model="smollm2",
        messages=[{"role": "user", "content": PROMPTS[0]}],
        max_tokens=MAX_TOKENS,
        temperature=0,
        stream=True,
    )
    text = ""
    for chunk in stream:
        if not text and chunk.choices[0].delta.content:
            pipeline.stage(1).send_signal(signal.SIGKILL)
        text += chunk.choices[0].delta.content or ""
    assert text == expected[PROMPTS[0]]
    assert {index: pipeline.stage(index).pid for index in survivors} == survivors


def test_each_stage_loads_only_its_own_layers(pipeline: Pipeline) -> None:
    """The most memory a stage ever had is what python takes, its layers, its KV pool, and one large tensor twice."""
    spec, shape = load_manifest(MANIFEST).spec, model_shape(pipeline.model)
    whole = 4 * shape.parameters((0, shape.num_layers))
    bare = int(subprocess.check_output([sys.executable, "-c", IMPORTS_ONLY]))
    for index, span in enumerate(split_layers(spec, read_config(pipeline.model))):
        own = 4 * shape.parameters(span) + 4 * shape.embedding_parameters
        kv = 4 * shape.kv_elements(span[1] - span[0]) * spec.kv_slots(shape.max_context)
        assert own < 0.7 * whole
        assert peak_bytes(pipeline.stage(index)) < bare + own + kv + 32e6


IMPORTS_ONLY = """
import resource
from pipedec.garbage import importing
with importing():
    import stage_service.assembly
    from transformers.models.llama import modeling_llama
print(1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def peak_bytes(process: psutil.Process) -> int:
    """The most memory a process ever had resident."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found is not None
    return 1024 * int(found[1])
