"""A running pipeline, as its endpoint shows it from outside."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pipedec.doctor.findings import Finding
from pipedec.words import counted

ENOUGH_TOKENS = 200  # decided tokens from which rates mean something
LOW_HIT_RATE = 0.6  # plain drafts of a family's small models have more
KV_PRESSURE = 0.9
IMBALANCE = 1.25  # of the slowest stage over the mean; all others wait for the difference
MANY_ERRORS = 0.01
ANOTHER_SERVICE = "Is this a PipeDec endpoint? Give the URL at which `pipedec up` or the Service serves"


class Sample(NamedTuple):
    """One series of `/metrics`."""

    name: str
    labels: Mapping[str, str]
    value: float


@dataclass(frozen=True, slots=True)
class Answer:
    """Of one HTTP request. `status` 0: nobody answered, and `message` says why."""

    status: int
    message: str = ""
    body: Any = None
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class EndpointFacts:
    """What was asked and answered. `completion` is None where it was not asked for, because nothing is served."""

    url: str
    health: Answer
    ready: Answer
    models: Answer
    completion: Answer | None
    samples: Sequence[Sample] = field(default=())

    def value(self, name: str, **labels: str) -> float | None:
        """The sum over the series of this name with these labels; None if there is none."""
        found = [
            each.value for each in self.samples if each.name == name and labels.items() <= dict(each.labels).items()
        ]
        return sum(found) if found else None

    def by_label(self, name: str, label: str) -> dict[str, float]:
        """The series of this name, by the value of a label."""
        return {each.labels[label]: each.value for each in self.samples if each.name == name}


def served_models(answer: Answer) -> dict[str, int]:
    """The names in an answer of `/v1/models`, with the most tokens of a request; none where they are not told."""
    listed = answer.body.get("data") if answer.status == 200 and isinstance(answer.body, dict) else None
    models = [each for each in listed if isinstance(each, dict)] if isinstance(listed, list) else []
    return {
        each["id"]: each["max_model_len"]
        for each in models
        if isinstance(each.get("id"), str) and isinstance(each.get("max_model_len"), int)
    }


def judge_endpoint(facts: EndpointFacts) -> list[Finding]:
    """Every finding about a running pipeline."""
    if facts.health.status == 0:
        remedy = "Start it with `pipedec up`, or forward its port with `kubectl port-forward svc/NAME 8000`"
        return [Finding("fail", "health", f"nothing answers at {facts.url}: {facts.health.message}", remedy)]
    log = "Look at the draft pod's log; its liveness probe will restart it"
    stages = "Stages that are missing say in their own log, and at their /readyz, what they wait for"
    found = [
        _probe("health", facts.health, "the head makes progress", log),
        _probe("ready", facts.ready, "the pipeline answers", stages),
        *_models(facts.models),
    ]
    if facts.completion is not None:
        found.append(_completion(facts.completion))
    if not facts.samples:
        return [*found, Finding("fail", "metrics", "/metrics has none", ANOTHER_SERVICE)]
    return [*found, *_formation(facts), *_speculation(facts), *_load(facts), *_balance(facts), *_security(facts)]


def _probe(name: str, answer: Answer, good: str, remedy: str) -> Finding:
    if answer.status != 200:
        return Finding("fail", name, answer.message, remedy)
    if not isinstance(answer.body, dict):
        return Finding("fail", name, "what answers there is not PipeDec", ANOTHER_SERVICE)
    return Finding("ok", name, good)


def _models(answer: Answer) -> Iterator[Finding]:
    if answer.status == 401:
        yield Finding("fail", "models", "an API key is asked for", "Give it with --api-key-file")
    elif answer.status != 200:
        yield Finding("fail", "models", f"/v1/models answered {answer.status}: {answer.message}", "See the log")
    elif not (served := served_models(answer)):
        yield Finding("fail", "models", "/v1/models names no model with its max_model_len", ANOTHER_SERVICE)
    else:
        yield Finding("ok", "models", ", ".join(f"{name} (up to {most} tokens)" for name, most in served.items()))


def _completion(answer: Answer) -> Finding:
    if answer.status == 200:
        return Finding("ok", "completion", f"one token in {1000 * answer.seconds:.0f} ms")
    remedy = {
        429: "The queue is full: raise serving.maxQueue, or spread the load over more replicas",
        503: "Wait until the pipeline is ready again, and see why it was not",
    }.get(answer.status, "See the log of the draft pod")
    return Finding("fail", "completion", f"status {answer.status}: {answer.message}", remedy)


def _formation(facts: EndpointFacts) -> Iterator[Finding]:
    missing = [stage for stage, there in facts.by_label("pipedec_head_stage_present", "stage").items() if not there]
    lost = facts.value("pipedec_head_epochs_lost_total") or 0
    if missing:
        yield Finding("fail", "stages", f"missing: {', '.join(sorted(missing, key=int))}", "See their logs and pods")
    elif not facts.value("pipedec_head_epoch_live"):
        yield Finding("fail", "stages", "there is no formation", "See the log of the draft pod for what it waits for")
    elif lost:
        remedy = "No request was lost. If it goes on: see `kubectl get pdd` for restarts, and the stages' logs"
        yield Finding("warn", "stages", f"{counted(lost, 'formation')} lost since the head began", remedy)
    else:
        stages = counted(facts.value("pipedec_head_stages") or 0, "stage")
        yield Finding("ok", "stages", f"{stages}, none was ever lost")


def _speculation(facts: EndpointFacts) -> Iterator[Finding]:
    if facts.value("pipedec_head_degraded"):
        remedy = "Answers stay exact, and slow. See the draft pod's log for why the draft model failed; restart the pod"
        yield Finding("warn", "draft", "decoding goes on without the draft model", remedy)
    if facts.value("pipedec_head_info", policy="none") is not None:
        yield Finding("skip", "hit rate", "policy none makes no predictions")
        return
    hits, misses = (facts.value(f"pipedec_head_{kind}_total") or 0.0 for kind in ("hits", "misses"))
    if hits + misses < ENOUGH_TOKENS:
        yield Finding("skip", "hit rate", f"only {counted(hits + misses, 'token')} decided so far")
        return
    rate = hits / (hits + misses)
    if facts.value("pipedec_head_draft_rows_total") == 0:
        yield Finding("skip", "hit rate", f"{rate:.0%} of tokens were predicted in time, without a draft model")
    elif rate < LOW_HIT_RATE:
        remedy = "Choose a better draft: a larger one, or of the target's own family and version"
        yield Finding("warn", "hit rate", f"{rate:.0%} of tokens were predicted in time", remedy)
    else:
        yield Finding("ok", "hit rate", f"{rate:.0%} of tokens were predicted in time")
    yield from _gain(facts)


def _gain(facts: EndpointFacts) -> Iterator[Finding]:
    plain = facts.value("pipedec_head_plain_token_seconds")
    total, count = (facts.value(f"pipedec_inter_token_latency_seconds_{part}") for part in ("sum", "count"))
    if not plain or not total or not count:
        return
    gain = plain * count / total
    message = f"a request decodes {gain:.1f} times as fast as by plain pipeline parallelism"
    if gain < 1:
        remedy = (
            "Speculation costs more than it brings: stages that share one machine's cores cannot gain by it; elsewhere "
            "lower speculation.width, choose a faster draft, or set speculation.policy to none"
        )
        yield Finding("warn", "speed-up", message, remedy)
    else:
        yield Finding("ok", "speed-up", message)


def _load(facts: EndpointFacts) -> Iterator[Finding]:
    waiting, running = (facts.value(f"pipedec_num_requests_{state}") or 0 for state in ("waiting", "running"))
    message = f"requests: {running:.0f} running, {waiting:.0f} waiting"
    if waiting:
        yield Finding("warn", "queue", message, "Raise serving.maxSequences if KV slots allow it, or add replicas")
    else:
        yield Finding("ok", "queue", message)
    usage = facts.value("pipedec_kv_cache_usage_perc") or 0.0
    if usage >= KV_PRESSURE:
        remedy = "Requests will wait for slots: raise serving.kvSlots, or lower serving.maxContext or maxSequences"
        yield Finding("warn", "KV slots", f"{usage:.0%} in use", remedy)
    else:
        yield Finding("ok", "KV slots", f"{usage:.0%} in use")
    finished = facts.by_label("pipedec_request_success_total", "finished_reason")
    failed, total = finished.get("error", 0.0), sum(finished.values())
    if total and failed / total > MANY_ERRORS:
        yield Finding("warn", "requests", f"{failed:.0f} of {total:.0f} failed", "See the draft pod's log")
    elif total:
        yield Finding("ok", "requests", f"{failed:.0f} of {total:.0f} failed")


def _balance(facts: EndpointFacts) -> Iterator[Finding]:
    times = facts.by_label("pipedec_head_stage_step_seconds", "stage")
    if len(times) < 2:
        return
    slowest = max(times, key=lambda stage: times[stage])
    excess = times[slowest] * len(times) / sum(times.values())
    message = f"stage {slowest} is the slowest: {1000 * times[slowest]:.1f} ms, {excess:.2f} times the mean"
    if excess > IMBALANCE:
        remedy = "Give it fewer layers with pipeline.layers, or a better device with pipeline.overrides"
        yield Finding("warn", "balance", message, remedy)
    else:
        yield Finding("ok", "balance", message)


def _security(facts: EndpointFacts) -> Iterator[Finding]:
    for kind, meaning in (("unauthenticated_connections", "came without the key"), ("malformed_messages", "malformed")):
        if count := facts.value(f"pipedec_head_{kind}_total"):
            remedy = (
                "Somebody else reaches the pipeline's ports: check the NetworkPolicy, and that your CNI enforces it"
            )
            yield Finding("warn", "security", f"{count:.0f} {kind.replace('_', ' ')} ({meaning})", remedy)
