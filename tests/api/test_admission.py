"""What of a request reaches the pipeline."""

from __future__ import annotations

import asyncio

from draft_service.api.admission import Admitter
from draft_service.api.openai_types import CompletionBody
from draft_service.generation import EngineInfo
from draft_service.text import Tokenizer


def test_end_tokens_that_the_model_has_no_row_for_stay_behind(tokenizer: Tokenizer) -> None:
    """The last stage would take them for a batch that cannot be."""
    least = min(tokenizer.end_tokens)
    admitter = Admitter(tokenizer, EngineInfo("tiny", 64, least + 1, ((0, 1),)))
    (request,) = asyncio.run(
        admitter.completion(CompletionBody(model="tiny", prompt=[1], stop_token_ids=[2]))
    ).sequences
    assert request.end_tokens == {least, 2}
    small = Admitter(tokenizer, EngineInfo("tiny", 64, least, ((0, 1),)))
    (request,) = asyncio.run(small.completion(CompletionBody(model="tiny", prompt=[1]))).sequences
    assert request.end_tokens == frozenset()


def test_a_prompt_that_is_there_twice_is_answered_twice(tokenizer: Tokenizer) -> None:
    admitter = Admitter(tokenizer, EngineInfo("tiny", 64, 258, ((0, 1),)))

    def seeds(**fields: int) -> list[int]:
        body = CompletionBody(model="tiny", prompt=["x", "x"], n=2, **fields)
        return [each.sampling.seed for each in asyncio.run(admitter.completion(body)).sequences]

    assert len(set(seeds() + seeds())) == 8
    assert seeds(seed=2**63 - 1) == [2**63 - 1, 0] * 2
