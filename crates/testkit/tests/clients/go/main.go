// client-go against a cluster with controllers and one pretended node: typed clients in protobuf,
// the dynamic client, informers, discovery, leader election's leases.
package main

import (
	"context"
	"fmt"
	"os"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	applycorev1 "k8s.io/client-go/applyconfigurations/core/v1"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
)

const namespace = "default"

var ctx = context.Background()

func must(err error) {
	if err != nil {
		panic(err)
	}
}

func check(ok bool, what string, with ...any) {
	if !ok {
		panic(fmt.Sprintf(what, with...))
	}
}

func until(what string, look func() bool) {
	err := wait.PollUntilContextTimeout(ctx, 50*time.Millisecond, 20*time.Second, true,
		func(context.Context) (bool, error) { return look(), nil })
	check(err == nil, "waited in vain for %s", what)
}

func typed(clients kubernetes.Interface) {
	maps := clients.CoreV1().ConfigMaps(namespace)
	made, err := maps.Create(ctx, &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Name: "settings", Labels: map[string]string{"app": "go"}},
		Data:       map[string]string{"color": "blue"},
		BinaryData: map[string][]byte{"bytes": {0, 1, 2, 255}},
	}, metav1.CreateOptions{})
	must(err)
	check(made.UID != "" && len(made.BinaryData["bytes"]) == 4, "made: %v", made)
	_, err = maps.Create(ctx, made.DeepCopy(), metav1.CreateOptions{})
	check(err != nil, "created with a resource version")
	_, err = maps.Get(ctx, "none", metav1.GetOptions{})
	check(apierrors.IsNotFound(err), "not found: %v", err)
	_, err = maps.Patch(ctx, "settings", types.StrategicMergePatchType, []byte(`{"data":{"size":"10"}}`), metav1.PatchOptions{})
	must(err)
	made.Data["color"] = "red"
	_, err = maps.Update(ctx, made, metav1.UpdateOptions{})
	check(apierrors.IsConflict(err), "conflict: %v", err)
	apply := applycorev1.ConfigMap("settings", namespace).WithData(map[string]string{"color": "green"})
	_, err = maps.Apply(ctx, apply, metav1.ApplyOptions{FieldManager: "go"})
	check(apierrors.IsConflict(err), "apply conflict: %v", err)
	applied, err := maps.Apply(ctx, apply, metav1.ApplyOptions{FieldManager: "go", Force: true})
	must(err)
	check(applied.Data["color"] == "green" && applied.Data["size"] == "10", "applied: %v", applied.Data)
	list, err := maps.List(ctx, metav1.ListOptions{LabelSelector: "app=go"})
	must(err)
	check(len(list.Items) == 1 && list.ResourceVersion != "", "list: %v", list)
	watcher, err := maps.Watch(ctx, metav1.ListOptions{ResourceVersion: list.ResourceVersion, LabelSelector: "app=go"})
	must(err)
	must(maps.Delete(ctx, "settings", metav1.DeleteOptions{}))
	event := <-watcher.ResultChan()
	check(event.Type == "DELETED", "event: %v", event)
	watcher.Stop()
}

func workloads(clients kubernetes.Interface) {
	factory := informers.NewSharedInformerFactoryWithOptions(clients, 0, informers.WithNamespace(namespace))
	pods := factory.Core().V1().Pods()
	deleted := make(chan string, 100)
	_, err := pods.Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
		DeleteFunc: func(any) { deleted <- "" },
	})
	must(err)
	stop := make(chan struct{})
	defer close(stop)
	factory.Start(stop)
	for kind, synced := range factory.WaitForCacheSync(stop) {
		check(synced, "%v has not synced", kind)
	}
	labels := map[string]string{"app": "web"}
	two := int32(2)
	deployments := clients.AppsV1().Deployments(namespace)
	_, err = deployments.Create(ctx, &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Name: "web"},
		Spec: appsv1.DeploymentSpec{
			Replicas: &two, Selector: &metav1.LabelSelector{MatchLabels: labels},
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: labels},
				Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "nginx"}}},
			},
		},
	}, metav1.CreateOptions{})
	must(err)
	until("two ready pods", func() bool {
		web, err := deployments.Get(ctx, "web", metav1.GetOptions{})
		return err == nil && web.Status.ReadyReplicas == 2
	})
	until("the informer", func() bool { return len(pods.Informer().GetStore().List()) == 2 })
	scale, err := deployments.GetScale(ctx, "web", metav1.GetOptions{})
	must(err)
	scale.Spec.Replicas = 1
	_, err = deployments.UpdateScale(ctx, "web", scale, metav1.UpdateOptions{})
	must(err)
	<-deleted
	policy := metav1.DeletePropagationForeground
	must(deployments.Delete(ctx, "web", metav1.DeleteOptions{PropagationPolicy: &policy}))
	until("the pods to go", func() bool { return len(pods.Informer().GetStore().List()) == 0 })
}

func dynamics(client dynamic.Interface) {
	definitions := client.Resource(schema.GroupVersionResource{
		Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"})
	_, err := definitions.Create(ctx, &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
		"metadata": map[string]any{"name": "gophers.go.example.com"},
		"spec": map[string]any{
			"group": "go.example.com", "scope": "Namespaced",
			"names": map[string]any{"plural": "gophers", "singular": "gopher", "kind": "Gopher"},
			"versions": []any{map[string]any{"name": "v1", "served": true, "storage": true,
				"schema": map[string]any{"openAPIV3Schema": map[string]any{
					"type": "object", "x-kubernetes-preserve-unknown-fields": true}}}},
		},
	}}, metav1.CreateOptions{})
	must(err)
	gophers := client.Resource(schema.GroupVersionResource{Group: "go.example.com", Version: "v1", Resource: "gophers"}).Namespace(namespace)
	until("the definition", func() bool {
		_, err := gophers.List(ctx, metav1.ListOptions{})
		return err == nil
	})
	gopher := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "go.example.com/v1", "kind": "Gopher", "metadata": map[string]any{"name": "g"}, "size": int64(1)}}
	made, err := gophers.Create(ctx, gopher, metav1.CreateOptions{})
	must(err)
	made.Object["size"] = int64(2)
	_, err = gophers.Update(ctx, made, metav1.UpdateOptions{})
	must(err)
	got, err := gophers.Get(ctx, "g", metav1.GetOptions{})
	must(err)
	check(got.Object["size"] == int64(2), "got: %v", got)
	must(gophers.Delete(ctx, "g", metav1.DeleteOptions{}))
}

func main() {
	config, err := clientcmd.BuildConfigFromFlags("", os.Getenv("KUBECONFIG"))
	must(err)
	config.QPS, config.Burst = 1000, 1000
	for _, format := range []string{"application/json", "application/vnd.kubernetes.protobuf,application/json"} {
		own := *config
		own.AcceptContentTypes = format
		if format != "application/json" {
			own.ContentType = "application/vnd.kubernetes.protobuf"
		}
		clients := kubernetes.NewForConfigOrDie(&own)
		typed(clients)
		workloads(clients)
		fmt.Println("go: typed clients and informers work in", format)
	}
	dynamics(dynamic.NewForConfigOrDie(config))
	groups, resources, err := kubernetes.NewForConfigOrDie(config).Discovery().ServerGroupsAndResources()
	must(err)
	check(len(groups) > 15 && len(resources) > 15, "discovery: %d groups", len(groups))
	fmt.Println("go: the dynamic client and discovery work")
}
