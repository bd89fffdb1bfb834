"""The Python client and its dynamic client against a cluster with controllers and one pretended node."""

import time

from kubernetes import client, config, dynamic, utils, watch
from kubernetes.client.rest import ApiException
from kubernetes.dynamic.exceptions import ConflictError, NotFoundError

config.load_kube_config()
core, apps = client.CoreV1Api(), client.AppsV1Api()
NS = "default"


def until(what, look):
    for _ in range(400):
        value = look()
        if value:
            return value
        time.sleep(0.05)
    raise AssertionError(f"waited in vain for {what}")


def refused(code, call):
    try:
        call()
    except ApiException as error:
        assert error.status == code, error
        return error
    raise AssertionError(f"not refused with {code}")


def typed():
    meta = client.V1ObjectMeta(name="settings", labels={"app": "py"})
    made = core.create_namespaced_config_map(NS, client.V1ConfigMap(metadata=meta, data={"color": "blue"}))
    assert made.metadata.uid and made.data == {"color": "blue"}
    refused(409, lambda: core.create_namespaced_config_map(NS, client.V1ConfigMap(metadata=meta)))
    refused(404, lambda: core.read_namespaced_config_map("none", NS))
    refused(422, lambda: core.create_namespaced_config_map(
        NS, client.V1ConfigMap(metadata=client.V1ObjectMeta(name="Bad_Name"))))
    core.patch_namespaced_config_map("settings", NS, {"data": {"size": "10"}})
    assert core.read_namespaced_config_map("settings", NS).data == {"color": "blue", "size": "10"}
    core.patch_namespaced_config_map("settings", NS, [{"op": "remove", "path": "/data/size"}])
    listed = core.list_namespaced_config_map(NS, label_selector="app=py", limit=1)
    assert [m.metadata.name for m in listed.items] == ["settings"]

    seen = []
    start = listed.metadata.resource_version
    core.delete_namespaced_config_map("settings", NS)
    for event in watch.Watch().stream(core.list_namespaced_config_map, NS, label_selector="app=py",
                                      resource_version=start, timeout_seconds=5):
        seen.append(event["type"])
        if event["type"] == "DELETED":
            break
    assert seen[-1] == "DELETED", seen
    codes = client.VersionApi().get_code()
    assert codes.git_version.startswith("v1."), codes


def deployment():
    labels = {"app": "web"}
    template = client.V1PodTemplateSpec(
        metadata=client.V1ObjectMeta(labels=labels),
        spec=client.V1PodSpec(containers=[client.V1Container(
            name="c", image="nginx", resources=client.V1ResourceRequirements(requests={"cpu": "100m"}))]))
    spec = client.V1DeploymentSpec(replicas=2, selector=client.V1LabelSelector(match_labels=labels), template=template)
    apps.create_namespaced_deployment(NS, client.V1Deployment(metadata=client.V1ObjectMeta(name="web"), spec=spec))
    until("the deployment", lambda: apps.read_namespaced_deployment_status("web", NS).status.ready_replicas == 2)
    apps.patch_namespaced_deployment_scale("web", NS, {"spec": {"replicas": 3}})
    until("three pods", lambda: len(core.list_namespaced_pod(NS, label_selector="app=web").items) == 3)
    rv = apps.read_namespaced_deployment("web", NS)
    rv.metadata.resource_version = "1"
    refused(409, lambda: apps.replace_namespaced_deployment("web", NS, rv))
    pod = core.list_namespaced_pod(NS, label_selector="app=web").items[0]
    body = client.V1Eviction(metadata=client.V1ObjectMeta(name=pod.metadata.name, namespace=NS))
    core.create_namespaced_pod_eviction(pod.metadata.name, NS, body)
    apps.delete_namespaced_deployment("web", NS, propagation_policy="Foreground")
    until("the pods to go", lambda: not core.list_namespaced_pod(NS, label_selector="app=web").items)


def accounts():
    core.create_namespaced_service_account(NS, client.V1ServiceAccount(metadata=client.V1ObjectMeta(name="bot")))
    request = client.AuthenticationV1TokenRequest(spec=client.V1TokenRequestSpec(audiences=[], expiration_seconds=600))
    token = core.create_namespaced_service_account_token("bot", NS, request).status.token
    review = client.AuthenticationV1Api().create_token_review(
        client.V1TokenReview(spec=client.V1TokenReviewSpec(token=token)))
    assert review.status.user.username == "system:serviceaccount:default:bot", review.status


def dynamics():
    schema = {"type": "object", "properties": {"spec": {"type": "object", "properties": {
        "size": {"type": "integer"}, "tags": {"type": "array", "items": {"type": "string"}}}},
        "status": {"type": "object", "properties": {"phase": {"type": "string"}}}}}
    definition = {"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
                  "metadata": {"name": "widgets.py.example.com"},
                  "spec": {"group": "py.example.com", "scope": "Namespaced",
                           "names": {"plural": "widgets", "singular": "widget", "kind": "Widget"},
                           "versions": [{"name": "v1", "served": True, "storage": True,
                                         "subresources": {"status": {}}, "schema": {"openAPIV3Schema": schema}}]}}
    utils.create_from_dict(client.ApiClient(), definition)
    extensions = client.ApiextensionsV1Api()
    until("the definition", lambda: any(
        c.type == "Established" and c.status == "True"
        for c in extensions.read_custom_resource_definition("widgets.py.example.com").status.conditions or []))
    anything = dynamic.DynamicClient(client.ApiClient())
    widgets = anything.resources.get(api_version="py.example.com/v1", kind="Widget")
    assert widgets.namespaced and widgets.name == "widgets"
    widget = {"apiVersion": "py.example.com/v1", "kind": "Widget", "metadata": {"name": "w"}, "spec": {"size": 1}}
    made = widgets.create(body=widget, namespace=NS)
    assert made.spec.size == 1
    try:
        widgets.create(body=widget, namespace=NS)
        raise AssertionError("created twice")
    except ConflictError:
        pass
    applied = widgets.server_side_apply(
        body={**widget, "spec": {"tags": ["a"]}}, namespace=NS, field_manager="py")
    assert applied.spec.size == 1 and applied.spec.tags == ["a"]
    try:
        widgets.server_side_apply(body={**widget, "spec": {"size": 2}}, namespace=NS, field_manager="py")
        raise AssertionError("no conflict")
    except ConflictError as error:
        assert "conflict" in str(error.body), error.body
    widgets.patch(body={"spec": {"size": 3}}, name="w", namespace=NS, content_type="application/merge-patch+json")
    widgets.status.patch(body={"status": {"phase": "Ready"}}, name="w", namespace=NS,
                         content_type="application/merge-patch+json")
    got = widgets.get(name="w", namespace=NS)
    assert (got.spec.size, got.status.phase) == (3, "Ready"), got
    kinds = [e["type"] for e in widgets.watch(namespace=NS, timeout=1)]
    assert kinds == ["ADDED"], kinds
    widgets.delete(name="w", namespace=NS)
    try:
        widgets.get(name="w", namespace=NS)
        raise AssertionError("still there")
    except NotFoundError:
        pass
    pods = anything.resources.get(api_version="v1", kind="Pod")
    assert pods.get(namespace="kube-system").kind == "PodList"


for part in (typed, deployment, accounts, dynamics):
    part()
    print("python:", part.__name__, "works")
