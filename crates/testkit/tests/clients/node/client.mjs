// The JavaScript client against a cluster with controllers and one pretended node, which says back what it
// hears, and a history of few events.
import assert from "node:assert/strict";
import { PassThrough } from "node:stream";
import * as k8s from "@kubernetes/client-node";

const config = new k8s.KubeConfig();
config.loadFromDefault();
const namespace = "default";
const core = config.makeApiClient(k8s.CoreV1Api);
const apps = config.makeApiClient(k8s.AppsV1Api);

const pause = (ms) => new Promise((done) => setTimeout(done, ms));

async function until(what, look) {
  for (let n = 0; n < 400; n++) {
    const value = await look();
    if (value) return value;
    await pause(50);
  }
  assert.fail(`waited in vain for ${what}`);
}

async function refused(code, call) {
  await assert.rejects(call, (error) => (assert.equal(error.code, code), true));
}

async function typed() {
  const body = { metadata: { name: "settings", labels: { app: "js" } }, data: { color: "blue" } };
  const made = await core.createNamespacedConfigMap({ namespace, body });
  assert.ok(made.metadata.uid);
  assert.ok(made.metadata.creationTimestamp instanceof Date);
  await refused(409, () => core.createNamespacedConfigMap({ namespace, body }));
  await refused(404, () => core.readNamespacedConfigMap({ name: "none", namespace }));
  const patch = [{ op: "add", path: "/data/size", value: "10" }];
  await core.patchNamespacedConfigMap({ name: "settings", namespace, body: patch });
  const read = await core.readNamespacedConfigMap({ name: "settings", namespace });
  assert.deepEqual(read.data, { color: "blue", size: "10" });
  const list = await core.listNamespacedConfigMap({ namespace, labelSelector: "app=js" });
  assert.deepEqual(list.items.map((m) => m.metadata.name), ["settings"]);
}

async function informer() {
  const seen = [];
  const list = () => core.listNamespacedConfigMap({ namespace, labelSelector: "app=js" });
  const path = `/api/v1/namespaces/${namespace}/configmaps`;
  const maps = k8s.makeInformer(config, path, list, "app=js");
  for (const verb of ["add", "update", "delete"]) {
    maps.on(verb, (map) => seen.push(`${verb} ${map.metadata.name}`));
  }
  await maps.start();
  await until("the first", () => seen.includes("add settings"));
  const patch = [{ op: "replace", path: "/data/color", value: "red" }];
  await core.patchNamespacedConfigMap({ name: "settings", namespace, body: patch });
  await until("an update", () => seen.includes("update settings"));
  await core.deleteNamespacedConfigMap({ name: "settings", namespace });
  await until("the end", () => seen.includes("delete settings"));
  await maps.stop();
}

async function deployment() {
  const labels = { app: "web" };
  const template = { metadata: { labels }, spec: { containers: [{ name: "c", image: "nginx" }] } };
  const body = { metadata: { name: "web" }, spec: { replicas: 2, selector: { matchLabels: labels }, template } };
  await apps.createNamespacedDeployment({ namespace, body });
  const ready = async () => (await apps.readNamespacedDeployment({ name: "web", namespace })).status?.readyReplicas === 2;
  await until("two pods", ready);
  const scale = await apps.readNamespacedDeploymentScale({ name: "web", namespace });
  assert.equal(scale.spec.replicas, 2);
  scale.spec.replicas = 1;
  await apps.replaceNamespacedDeploymentScale({ name: "web", namespace, body: scale });
  const pods = async () => (await core.listNamespacedPod({ namespace, labelSelector: "app=web" })).items.length;
  await until("one pod", async () => (await pods()) === 1);
  await apps.deleteNamespacedDeployment({ name: "web", namespace, propagationPolicy: "Foreground" });
  await until("no pod", async () => (await pods()) === 0);
}

async function objects() {
  const any = k8s.KubernetesObjectApi.makeApiClient(config);
  const definition = {
    apiVersion: "apiextensions.k8s.io/v1", kind: "CustomResourceDefinition",
    metadata: { name: "gadgets.js.example.com" },
    spec: {
      group: "js.example.com", scope: "Namespaced",
      names: { plural: "gadgets", singular: "gadget", kind: "Gadget" },
      versions: [{ name: "v1", served: true, storage: true,
        schema: { openAPIV3Schema: { type: "object", properties: { size: { type: "integer" } } } } }],
    },
  };
  await any.create(definition);
  const custom = config.makeApiClient(k8s.CustomObjectsApi);
  const of = { group: "js.example.com", version: "v1", namespace, plural: "gadgets" };
  await until("the definition", async () => {
    try {
      return await custom.listNamespacedCustomObject(of);
    } catch {
      return null;
    }
  });
  const gadget = { apiVersion: "js.example.com/v1", kind: "Gadget", metadata: { name: "g" }, size: 1 };
  await custom.createNamespacedCustomObject({ ...of, body: gadget });
  const got = await custom.getNamespacedCustomObject({ ...of, name: "g" });
  assert.equal(got.size, 1);
  got.size = 2;
  const replaced = await custom.replaceNamespacedCustomObject({ ...of, name: "g", body: got });
  assert.equal(replaced.size, 2);
  await custom.deleteNamespacedCustomObject({ ...of, name: "g" });
  await refused(404, () => custom.getNamespacedCustomObject({ ...of, name: "g" }));
}

async function patches() {
  const labels = { app: "patched" };
  const template = { metadata: { labels }, spec: { containers: [{ name: "a", image: "a:1" }] } };
  const body = { metadata: { name: "patched" }, spec: { replicas: 0, selector: { matchLabels: labels }, template } };
  await apps.createNamespacedDeployment({ namespace, body });
  const patch = async (kind, change, more = {}) => {
    const request = { name: "patched", namespace, body: change, ...more };
    const patched = await apps.patchNamespacedDeployment(request, k8s.setHeaderOptions("Content-Type", kind));
    return patched.spec.template.spec.containers.map((c) => c.image);
  };
  const { JsonPatch, MergePatch, StrategicMergePatch, ServerSideApply } = k8s.PatchStrategy;
  const containers = (name, image) => ({ spec: { template: { spec: { containers: [{ name, image }] } } } });
  const both = await patch(StrategicMergePatch, containers("b", "b:1"));
  assert.deepEqual(both.toSorted(), ["a:1", "b:1"]);
  assert.deepEqual(await patch(MergePatch, containers("b", "b:1")), ["b:1"]);
  const path = "/spec/template/spec/containers/0/image";
  assert.deepEqual(await patch(JsonPatch, [{ op: "replace", path, value: "b:2" }]), ["b:2"]);
  const manifest = { apiVersion: "apps/v1", kind: "Deployment", ...containers("b", "b:3") };
  await refused(409, () => patch(ServerSideApply, manifest, { fieldManager: "applier" }));
  assert.deepEqual(await patch(ServerSideApply, manifest, { fieldManager: "applier", force: true }), ["b:3"]);
  const any = k8s.KubernetesObjectApi.makeApiClient(config);
  const map = { apiVersion: "v1", kind: "ConfigMap", metadata: { name: "applied", namespace }, data: { a: "b" } };
  const made = await any.patch(map, undefined, undefined, "applier", true, ServerSideApply);
  assert.equal(made.metadata.managedFields[0].operation, "Apply");
  await apps.deleteNamespacedDeployment({ name: "patched", namespace });
}

async function expiry() {
  const first = await core.createNamespacedConfigMap({ namespace, body: { metadata: { name: "watched" } } });
  for (let n = 0; n < 300; n++) {
    const body = [{ op: "add", path: "/data", value: { n: `${n}` } }];
    await core.patchNamespacedConfigMap({ name: "watched", namespace, body });
  }
  const path = `/api/v1/namespaces/${namespace}/configmaps`;
  const seen = [];
  await new Promise((done) => {
    const event = (type, object) => seen.push([type, object.code, object.reason]);
    new k8s.Watch(config).watch(path, { resourceVersion: first.metadata.resourceVersion }, event, done);
  });
  assert.deepEqual(seen, [["ERROR", 410, "Expired"]]);
}

async function heard(stream, wanted) {
  let text = "";
  stream.on("data", (bytes) => (text += bytes));
  await until(wanted, () => text === wanted);
}

async function streams() {
  const body = { metadata: { name: "p" }, spec: { containers: [{ name: "c", image: "c:1" }] } };
  await core.createNamespacedPod({ namespace, body });
  await until("the pod", async () => (await core.readNamespacedPod({ name: "p", namespace })).status?.phase === "Running");
  const run = (command, out, err, input) => new Promise((done) =>
    new k8s.Exec(config).exec(namespace, "p", "c", command, out, err, input, false, done));
  const [said, failed] = [new PassThrough(), new PassThrough()];
  assert.equal((await run(["say", "hello"], said, null, null)).status, "Success");
  await heard(said, "say hello\n");
  const ended = await run(["fail"], null, failed, null);
  assert.deepEqual([ended.reason, ended.details.causes[0].message], ["NonZeroExitCode", "3"]);
  await heard(failed, "failing\n");
  const [input, echo] = [new PassThrough(), new PassThrough()];
  const attached = await new k8s.Attach(config).attach(namespace, "p", "c", echo, null, input, false);
  input.write("hello");
  await heard(echo, "hello");
  attached.close();
  const log = new PassThrough();
  await new k8s.Log(config).log(namespace, "p", "c", log, { tailLines: 2 });
  await heard(log, "two\nthree\n");
  const [there, back] = [new PassThrough(), new PassThrough()];
  const forwarded = await new k8s.PortForward(config).portForward(namespace, "p", [8080], back, null, there);
  there.write("hello");
  await heard(back, "hello");
  forwarded.close();
}

for (const part of [typed, informer, deployment, objects, patches, expiry, streams]) {
  await part();
  console.log("javascript:", part.name, "works");
}
process.exit(0);
