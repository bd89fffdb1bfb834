"""The Python client and its dynamic client against a cluster with controllers and one pretended node, which
says back what it hears, and a history of few events. The argument is a folder of manifests."""

import pathlib
import sys
import time

from kubernetes import client, config, dynamic, utils, watch
from kubernetes.client.rest import ApiException
from kubernetes.dynamic.exceptions import ConflictError, NotFoundError
from kubernetes.stream import portforward, stream

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


def patches():
    """Each content type of a patch means what it says."""
    labels = {"app": "patched"}
    pod = {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "a", "image": "a:1"}]}}
    body = {"metadata": {"name": "patched"}, "spec": {"replicas": 0, "selector": {"matchLabels": labels}, "template": pod}}
    apps.create_namespaced_deployment(NS, body)
    deployments = dynamic.DynamicClient(client.ApiClient()).resources.get(api_version="apps/v1", kind="Deployment")

    def patch(content_type, change, **more):
        return deployments.patch(change, "patched", NS, content_type=content_type, **more)

    def images(deployment):
        return {c.name: c.image for c in deployment.spec.template.spec.containers}

    added = {"spec": {"template": {"spec": {"containers": [{"name": "b", "image": "b:1"}]}}}}
    merged = patch("application/strategic-merge-patch+json", added)
    assert images(merged) == {"a": "a:1", "b": "b:1"}, merged
    replaced = patch("application/merge-patch+json", added)
    assert images(replaced) == {"b": "b:1"}, replaced
    image = "/spec/template/spec/containers/0/image"
    listed = patch("application/json-patch+json", [{"op": "test", "path": image, "value": "b:1"},
                                                   {"op": "replace", "path": image, "value": "b:2"}])
    assert images(listed) == {"b": "b:2"}, listed
    manifest = {"apiVersion": "apps/v1", "kind": "Deployment", "spec": {"template": {"spec": {
        "containers": [{"name": "b", "image": "b:3"}]}}}}
    conflict = refused(409, lambda: patch("application/apply-patch+yaml", manifest, field_manager="applier"))
    assert "conflict with" in str(conflict.body), conflict.body
    applied = patch("application/apply-patch+yaml", manifest, field_manager="applier", force_conflicts=True)
    assert images(applied) == {"b": "b:3"}, applied
    apps.delete_namespaced_deployment("patched", NS)


def watches():
    """Who comes too late is told so, and goes on from a list."""
    first = core.create_namespaced_config_map(NS, {"metadata": {"name": "watched"}}).metadata.resource_version
    for n in range(300):
        core.patch_namespaced_config_map("watched", NS, {"data": {"n": str(n)}})
    late = watch.Watch().stream(core.list_namespaced_config_map, NS, resource_version=first)
    error = refused(410, lambda: next(late))
    assert "too old resource version" in error.reason, error.reason
    version = core.list_namespaced_config_map(NS).metadata.resource_version
    core.patch_namespaced_config_map("watched", NS, {"data": {"n": "end"}})
    follows = watch.Watch()
    for event in follows.stream(core.list_namespaced_config_map, NS, resource_version=version):
        assert (event["type"], event["object"].data["n"]) == ("MODIFIED", "end"), event
        follows.stop()
    seen = []
    initial = watch.Watch()
    for event in initial.stream(core.list_namespaced_config_map, NS, field_selector="metadata.name=watched",
                                send_initial_events=True, allow_watch_bookmarks=True,
                                resource_version_match="NotOlderThan"):
        seen.append(event["type"])
        if event["type"] == "BOOKMARK":
            notes = event["raw_object"]["metadata"]["annotations"]
            assert notes["k8s.io/initial-events-end"] == "true", notes
            initial.stop()
    assert seen == ["ADDED", "BOOKMARK"], seen
    page = core.list_namespaced_config_map(NS, limit=1)
    for n in range(300):
        core.patch_namespaced_config_map("watched", NS, {"data": {"n": str(n)}})
    expired = refused(410, lambda: core.list_namespaced_config_map(NS, limit=1, _continue=page.metadata._continue))
    assert "Expired" in expired.body, expired.body


def pods():
    """Commands, ports and logs of a container."""
    body = {"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "c:1"}]}}
    core.create_namespaced_pod(NS, body)
    until("the pod", lambda: core.read_namespaced_pod("p", NS).status.phase == "Running")

    def run(command, **more):
        return stream(core.connect_get_namespaced_pod_exec, "p", NS, command=command, stdout=True, stderr=True, **more)

    assert run(["say", "hello"]) == "say hello\n"
    cat = run(["cat"], stdin=True, _preload_content=False)
    cat.write_stdin("hello\n")
    assert cat.readline_stdout(timeout=60) == "hello"
    cat.close()
    failing = run(["fail"], _preload_content=False)
    failing.run_forever(timeout=60)
    assert (failing.returncode, failing.read_stderr()) == (3, "failing\n")
    assert core.read_namespaced_pod_log("p", NS, tail_lines=2) == "two\nthree\n"
    assert list(watch.Watch().stream(core.read_namespaced_pod_log, "p", NS, follow=True)) == ["one", "two", "three"]
    forward = portforward(core.connect_get_namespaced_pod_portforward, "p", NS, ports="8080")
    socket = forward.socket(8080)
    socket.setblocking(True)
    socket.sendall(b"hello")
    assert socket.recv(5) == b"hello"
    socket.close()
    core.delete_namespaced_pod("p", NS, grace_period_seconds=0)


def manifests():
    """A folder of manifests, applied twice."""
    api = client.ApiClient()
    for path in sorted(pathlib.Path(sys.argv[1]).glob("*.yaml")):
        for _ in range(2):
            utils.create_from_yaml(api, str(path), namespace=NS, apply=True)
    found = core.list_namespaced_service(NS, field_selector="metadata.name=front").items
    assert found[0].spec.ports[0].node_port == 30123, found


for part in (typed, deployment, accounts, dynamics, patches, watches, pods, manifests):
    part()
    print("python:", part.__name__, "works")
