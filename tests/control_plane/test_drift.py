"""Children that are deleted or edited come back; keys that are lost are renewed everywhere. On a real API server."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from pipedec_operator import names
from pipedec_operator.cluster import ApiServer
from pipedec_operator.names import Kind, Object
from tests.control_plane.live import Counting, Lab
from tests.control_plane.samples import manifest

pytestmark = pytest.mark.e2e

Edit = Callable[[Object], None]


@pytest.fixture
def settled(lab: Lab) -> Lab:
    lab.write(manifest(pipeline={"stages": 2}, replicas=2))
    lab.settle()
    return lab


def test_every_deleted_child_comes_back(settled: Lab) -> None:
    before = settled.state()
    for kind in settled.kinds:
        for child in settled.list(kind):
            settled.api.delete(kind, child)
    settled.settle()
    assert settled.state() == before


def _label(child: Object) -> None:
    child["metadata"]["labels"][names.INSTANCE] = "edited"


def _owner(child: Object) -> None:
    child["metadata"]["ownerReferences"] = []


def _lost_label(child: Object) -> None:
    del child["metadata"]["labels"][names.DEPLOYMENT]


@pytest.mark.parametrize("edit", [_label, _owner, _lost_label])
def test_every_childs_metadata_is_repaired(settled: Lab, edit: Edit) -> None:
    before = settled.state()
    for kind in settled.kinds:
        for child in settled.list(kind):
            replace(settled.api, kind, child, edit)
    settled.settle()
    assert settled.state() == before


def _replicas(child: Object) -> None:
    child["spec"]["replicas"] = 3


def _image(child: Object) -> None:
    child["spec"]["template"]["spec"]["containers"][0]["image"] = "edited:1"


def _environment(child: Object) -> None:
    child["spec"]["template"]["spec"]["containers"][0]["env"] = []


def _strategy(child: Object) -> None:
    child["spec"]["strategy"] = {"type": "RollingUpdate"}


def _pause(child: Object) -> None:
    child["spec"]["paused"] = True


def _root(child: Object) -> None:
    child["spec"]["template"]["spec"]["securityContext"]["runAsNonRoot"] = False


def _selector(child: Object) -> None:
    child["spec"]["selector"] = {"app": "edited"}


def _port(child: Object) -> None:
    child["spec"]["ports"][0]["targetPort"] = 1


def _open(child: Object) -> None:
    child["spec"]["ingress"] = [{}]


def _token(child: Object) -> None:
    child["automountServiceAccountToken"] = True


def _budget(child: Object) -> None:
    child["spec"]["maxUnavailable"] = 5


@pytest.mark.parametrize(
    ("plural", "edit"),
    [
        ("deployments", _replicas),
        ("deployments", _image),
        ("deployments", _environment),
        ("deployments", _strategy),
        ("deployments", _pause),
        ("deployments", _root),
        ("services", _selector),
        ("services", _port),
        ("networkpolicies", _open),
        ("serviceaccounts", _token),
        ("poddisruptionbudgets", _budget),
    ],
    ids=lambda value: getattr(value, "__name__", value).strip("_"),
)
def test_an_edited_child_is_repaired(settled: Lab, plural: str, edit: Edit) -> None:
    before = settled.state()
    (kind,) = (each for each in settled.kinds if each.plural == plural)
    for child in settled.list(kind):
        replace(settled.api, kind, child, edit)
    assert settled.state() != before
    settled.settle()
    assert settled.state() == before


def test_what_others_add_stays(settled: Lab) -> None:
    def restart(child: Object) -> None:
        child["spec"]["template"]["metadata"]["annotations"]["kubectl.kubernetes.io/restartedAt"] = "now"

    for child in settled.list(names.WORKLOAD):
        replace(settled.api, names.WORKLOAD, child, restart)
    counting = Counting(settled.api)
    settled.reconciler(counting).reconcile(settled.namespace, "lion")
    assert counting.repairs == []


def keys_hashes(lab: Lab) -> set[str]:
    templates = [child["spec"]["template"] for child in lab.list(names.WORKLOAD)]
    return {template["metadata"]["annotations"][names.KEYS_HASH] for template in templates}


def test_keys_are_renewed_for_all_pods_when_they_are_lost(settled: Lab) -> None:
    before = keys_hashes(settled)
    (secret,) = settled.list(names.SECRET)
    settled.api.delete(names.SECRET, secret)
    settled.settle()
    assert len(keys_hashes(settled)) == 1
    assert keys_hashes(settled) != before


def test_a_secret_that_lacks_a_key_is_made_anew(settled: Lab) -> None:
    def lose(child: Object) -> None:
        del child["data"]["client.secret"]

    (secret,) = settled.list(names.SECRET)
    replace(settled.api, names.SECRET, secret, lose)
    settled.settle()
    (secret,) = settled.list(names.SECRET)
    assert len(secret["data"]) == 4


def test_keys_are_rotated_when_asked_for_and_only_then(settled: Lab) -> None:
    hashes = [keys_hashes(settled)]
    for asked in ("monday", "monday", "tuesday", None):
        settled.annotate(names.ROTATE_KEYS, asked)
        settled.settle()
        hashes.append(keys_hashes(settled))
    never, monday, again, tuesday, silent = map(tuple, hashes)
    assert len({never, monday, tuesday}) == 3
    assert (monday, tuesday) == (again, silent)


def test_keys_are_never_changed_by_a_pass(settled: Lab) -> None:
    (before,) = settled.list(names.SECRET)
    settled.write(manifest(pipeline={"stages": 1}))
    settled.settle()
    (after,) = settled.list(names.SECRET)
    assert after["data"] == before["data"]


def replace(api: ApiServer, kind: Kind, child: Object, edit: Edit) -> None:
    """Somebody edits an object, whatever its version is by now."""
    path = f"{kind.path}/namespaces/{child['metadata']['namespace']}/{kind.plural}/{child['metadata']['name']}"
    edited: dict[str, Any] = {
        **child,
        "metadata": {k: v for k, v in child["metadata"].items() if k != "resourceVersion"},
    }
    edit(edited)
    if kind.kind in ("Service", "PodDisruptionBudget"):  # these are not updated without a version
        edited["metadata"]["resourceVersion"] = child["metadata"]["resourceVersion"]
    api._call("PUT", path, edited, field_manager="somebody")
