// The JavaScript client against a cluster with controllers and one pretended node.
import assert from "node:assert/strict";
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

for (const part of [typed, informer, deployment, objects]) {
  await part();
  console.log("javascript:", part.name, "works");
}
process.exit(0);
