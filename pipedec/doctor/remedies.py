"""What to do about a reason that the operator gives in a condition."""

from __future__ import annotations

REMEDIES = {
    "AuthFailed": "Accept the model's licence, and name a Secret with a token in spec.model.tokenSecretRef",
    "Blocked": "Something else owns an object of this name: rename it, or the resource",
    "ContainerConfigError": "A Secret or ConfigMap that the manifest names is missing, or lacks the key",
    "DraftNotReady": "Look at the draft pod: `kubectl describe pdd NAME` names it, `kubectl logs` tells the rest",
    "Evicted": "The node ran short of memory or disk: give the pods requests, or modelCache.size",
    "FailedCreate": "The API server refused a child: a quota, an admission policy, or the operator's rights",
    "ImagePullError": "Push the image to where the cluster pulls from, or set images and images.pullSecrets",
    "InvalidSpec": "Correct the field that the message names; what runs is left alone meanwhile",
    "ModelCacheUnusable": "Make room on the volume of spec.modelCache.claimName, and let group 10001 write to it",
    "ModelDownloadFailed": "The pods cannot reach the Hub: allow egress, or put the model on a volume (pvc://)",
    "ModelNotFound": "Check spec.model.uri and spec.draft.uri: the model lacks safetensors, or cannot be run exactly",
    "NoReplicas": "Set spec.replicas to 1 or more",
    "OutOfMemory": "Raise resources.limits.memory, use more stages, or fewer KV slots (`pipedec plan` reckons)",
    "ProgressDeadlineExceeded": "See the reason of the stages that are not ready; a slow download needs more time",
    "StageCrashed": "Read the log of the pod's last run: `kubectl logs --previous`",
    "StageCrashLoop": "Read the log of the pod's last run: `kubectl logs --previous`",
    "StagesNotReady": "Wait while layers are loaded; `kubectl describe pdd NAME` says of each stage what it does",
    "Suspended": "Set spec.suspend to false to have the pipeline back",
    "Unschedulable": "Add nodes with free devices, use fewer stages, or check nodeSelector, tolerations and quotas",
}

UNKNOWN = "`kubectl describe pdd NAME` says more"
