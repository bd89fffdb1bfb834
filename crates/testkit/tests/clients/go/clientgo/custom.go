package main

import (
	"context"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/metadata"
)

type object = map[string]any

var (
	definitions = schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"}
	widgets     = schema.GroupVersionResource{Group: "go.example.com", Version: "v1", Resource: "widgets"}
	configMaps  = schema.GroupVersionResource{Version: "v1", Resource: "configmaps"}
)

func definition() *unstructured.Unstructured {
	typed := func(kind string) object { return object{"type": kind} }
	tags := object{"type": "array", "items": typed("string"), "x-kubernetes-list-type": "set"}
	root := object{"type": "object", "properties": object{
		"spec":   object{"type": "object", "properties": object{"size": object{"type": "integer", "default": int64(1)}, "tags": tags}},
		"status": object{"type": "object", "properties": object{"phase": typed("string"), "size": typed("integer")}},
	}}
	version := object{"name": "v1", "served": true, "storage": true, "schema": object{"openAPIV3Schema": root},
		"subresources": object{"status": object{}, "scale": object{"specReplicasPath": ".spec.size", "statusReplicasPath": ".status.size"}}}
	return &unstructured.Unstructured{Object: object{
		"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
		"metadata": object{"name": "widgets.go.example.com"},
		"spec": object{"group": "go.example.com", "scope": "Namespaced", "versions": []any{version},
			"names": object{"plural": "widgets", "singular": "widget", "kind": "Widget", "shortNames": []any{"wi"}, "categories": []any{"all"}}},
	}}
}

func widget(name string, spec object) *unstructured.Unstructured {
	return &unstructured.Unstructured{Object: object{"apiVersion": "go.example.com/v1", "kind": "Widget",
		"metadata": object{"name": name}, "spec": spec}}
}

func number(of *unstructured.Unstructured, path ...string) int64 {
	value, _, err := unstructured.NestedInt64(of.Object, path...)
	must(err)
	return value
}

// The dynamic client, with a definition of its own.
func anything(ctx context.Context, u *user) {
	client := dynamic.NewForConfigOrDie(u.config)
	get(client.Resource(definitions).Create(ctx, definition(), metav1.CreateOptions{}))
	until(ctx, "the definition", func() bool {
		_, err := client.Resource(widgets).List(ctx, metav1.ListOptions{})
		return err == nil
	})
	own := client.Resource(widgets).Namespace(u.namespace)
	changes := get(own.Watch(ctx, metav1.ListOptions{}))
	defer changes.Stop()
	made := get(own.Create(ctx, widget("w", object{}), metav1.CreateOptions{}))
	check(number(made, "spec", "size") == 1, "no default: %v", made)
	check((<-changes.ResultChan()).Type == watch.Added, "no event")
	_, err := own.Create(ctx, widget("x", object{"extra": true}), metav1.CreateOptions{FieldValidation: metav1.FieldValidationStrict})
	refused(apierrors.IsBadRequest, err)
	_, err = own.Create(ctx, widget("x", object{"size": "big"}), metav1.CreateOptions{})
	refused(apierrors.IsInvalid, err)

	one := metav1.ApplyOptions{FieldManager: "one"}
	get(own.Apply(ctx, "w", widget("w", object{"tags": []any{"a"}}), one))
	two := metav1.ApplyOptions{FieldManager: "two"}
	both := get(own.Apply(ctx, "w", widget("w", object{"tags": []any{"b"}, "size": int64(1)}), two))
	tags, _, _ := unstructured.NestedStringSlice(both.Object, "spec", "tags")
	check(len(tags) == 2, "%v", tags)
	_, err = own.Apply(ctx, "w", widget("w", object{"size": int64(2)}), one)
	refused(apierrors.IsConflict, err)
	status := widget("w", nil)
	status.Object = object{"apiVersion": "go.example.com/v1", "kind": "Widget", "metadata": object{"name": "w"}, "status": object{"phase": "Ready"}}
	applied := get(own.ApplyStatus(ctx, "w", status, one))
	phase, _, _ := unstructured.NestedString(applied.Object, "status", "phase")
	check(phase == "Ready" && applied.GetGeneration() == both.GetGeneration(), "%v", applied)
	scaled := get(own.Patch(ctx, "w", types.MergePatchType, []byte(`{"spec":{"replicas":5}}`), metav1.PatchOptions{}, "scale"))
	check(scaled.GetKind() == "Scale" && number(scaled, "spec", "replicas") == 5, "%v", scaled)
	check(number(get(own.Get(ctx, "w", metav1.GetOptions{})), "spec", "size") == 5, "not scaled")
	must(own.DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{}))
	must(client.Resource(definitions).Delete(ctx, "widgets.go.example.com", metav1.DeleteOptions{}))
	until(ctx, "the definition to go", func() bool {
		_, err := client.Resource(definitions).Get(ctx, "widgets.go.example.com", metav1.GetOptions{})
		return apierrors.IsNotFound(err)
	})
}

// The client that sees nothing but metadata.
func metadataOnly(ctx context.Context, u *user) {
	client := get(metadata.NewForConfig(u.config))
	own := client.Resource(configMaps).Namespace(u.namespace)
	changes := get(own.Watch(ctx, metav1.ListOptions{LabelSelector: "app=meta"}))
	defer changes.Stop()
	body := &unstructured.Unstructured{Object: object{"apiVersion": "v1", "kind": "ConfigMap",
		"metadata": object{"name": "m", "labels": object{"app": "meta"}}, "data": object{"a": "b"}}}
	get(dynamic.NewForConfigOrDie(u.config).Resource(configMaps).Namespace(u.namespace).Create(ctx, body, metav1.CreateOptions{}))
	event := <-changes.ResultChan()
	seen, ok := event.Object.(*metav1.PartialObjectMetadata)
	check(ok && event.Type == watch.Added && seen.Name == "m", "%v", event)
	list := get(own.List(ctx, metav1.ListOptions{LabelSelector: "app=meta"}))
	check(len(list.Items) == 1 && list.Items[0].UID == seen.UID, "%v", list)
	one := get(own.Patch(ctx, "m", types.MergePatchType, []byte(`{"metadata":{"annotations":{"x":"y"}}}`), metav1.PatchOptions{}))
	check(one.Annotations["x"] == "y" && one.UID == seen.UID, "%v", one)
	must(own.Delete(ctx, "m", metav1.DeleteOptions{}))
	_, err := own.Get(ctx, "m", metav1.GetOptions{})
	refused(apierrors.IsNotFound, err)
}
