package main

import (
	"context"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/utils/ptr"
)

// What the typed clients do; JSON or protobuf is chosen by the user.
func typed(ctx context.Context, u *user) {
	settings(ctx, u)
	watched(ctx, u)
	deployment(ctx, u)
	patches(ctx, u)
}

func settings(ctx context.Context, u *user) {
	maps := u.client.CoreV1().ConfigMaps(u.namespace)
	settings := &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Name: "settings", Labels: map[string]string{"app": "go"}},
		Data:       map[string]string{"color": "blue"},
		BinaryData: map[string][]byte{"bytes": {0, 1, 254, 255}},
	}
	made := get(maps.Create(ctx, settings, metav1.CreateOptions{}))
	check(made.UID != "" && made.ResourceVersion != "" && !made.CreationTimestamp.IsZero(), "%v", made)
	_, err := maps.Create(ctx, settings, metav1.CreateOptions{})
	refused(apierrors.IsAlreadyExists, err)
	_, err = maps.Get(ctx, "none", metav1.GetOptions{})
	refused(apierrors.IsNotFound, err)
	_, err = maps.Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "Bad_Name"}}, metav1.CreateOptions{})
	refused(apierrors.IsInvalid, err)
	dry := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "dry"}}
	get(maps.Create(ctx, dry, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}}))
	_, err = maps.Get(ctx, "dry", metav1.GetOptions{})
	refused(apierrors.IsNotFound, err)

	old := made.DeepCopy()
	made.Data["size"] = "10"
	made = get(maps.Update(ctx, made, metav1.UpdateOptions{}))
	check(made.Data["size"] == "10" && made.BinaryData["bytes"][3] == 255, "%v", made)
	_, err = maps.Update(ctx, old, metav1.UpdateOptions{})
	refused(apierrors.IsConflict, err)
	list := get(maps.List(ctx, metav1.ListOptions{LabelSelector: labels.Set{"app": "go"}.String()}))
	check(len(list.Items) == 1 && list.Items[0].Name == "settings" && list.ResourceVersion != "", "%v", list)

	wrong := metav1.DeleteOptions{Preconditions: metav1.NewUIDPreconditions("other")}
	refused(apierrors.IsConflict, maps.Delete(ctx, "settings", wrong))
	must(maps.DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{LabelSelector: "app=go"}))
	_, err = maps.Get(ctx, "settings", metav1.GetOptions{})
	refused(apierrors.IsNotFound, err)

	secrets := u.client.CoreV1().Secrets(u.namespace)
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "s"}, StringData: map[string]string{"a": "b"}}
	kept := get(secrets.Create(ctx, secret, metav1.CreateOptions{}))
	check(string(kept.Data["a"]) == "b" && kept.Type == corev1.SecretTypeOpaque && len(kept.StringData) == 0, "%v", kept)
}

func watched(ctx context.Context, u *user) {
	services := u.client.CoreV1().Services(u.namespace)
	start := get(services.List(ctx, metav1.ListOptions{})).ResourceVersion
	changes := get(services.Watch(ctx, metav1.ListOptions{ResourceVersion: start, AllowWatchBookmarks: true}))
	defer changes.Stop()
	next := func(kind watch.EventType) *corev1.Service {
		for event := range changes.ResultChan() {
			if event.Type == watch.Bookmark {
				continue
			}
			check(event.Type == kind, "%s instead of %s: %v", event.Type, kind, event.Object)
			return event.Object.(*corev1.Service)
		}
		panic("the watch ended")
	}
	service := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: "web"},
		Spec: corev1.ServiceSpec{
			Selector: map[string]string{"app": "web"},
			Ports:    []corev1.ServicePort{{Name: "http", Port: 80, TargetPort: intstr.FromString("http")}, {Name: "m", Port: 90, TargetPort: intstr.FromInt32(9090)}},
		},
	}
	get(services.Create(ctx, service, metav1.CreateOptions{}))
	added := next(watch.Added)
	check(added.Spec.ClusterIP != "" && added.Spec.Ports[0].TargetPort.StrVal == "http" && added.Spec.Ports[1].TargetPort.IntVal == 9090, "%v", added)
	added.Spec.Type = corev1.ServiceTypeNodePort
	get(services.Update(ctx, added, metav1.UpdateOptions{}))
	check(next(watch.Modified).Spec.Ports[0].NodePort >= 30000, "no node port")
	must(services.Delete(ctx, "web", metav1.DeleteOptions{}))
	check(next(watch.Deleted).Name == "web", "another name")
	gone := get(services.Watch(ctx, metav1.ListOptions{ResourceVersion: "1"}))
	defer gone.Stop()
	for event := range gone.ResultChan() {
		if event.Type == watch.Error {
			err := apierrors.FromObject(event.Object)
			check(apierrors.IsResourceExpired(err) || apierrors.IsGone(err), "%v", err)
		}
		break
	}
}

func web(replicas int32) *appsv1.Deployment {
	labels := map[string]string{"app": "web"}
	container := corev1.Container{
		Name: "web", Image: "web:1",
		Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: 8080}},
		Resources: corev1.ResourceRequirements{Requests: corev1.ResourceList{
			corev1.ResourceCPU: resource.MustParse("10m"), corev1.ResourceMemory: resource.MustParse("1.5Mi")}},
	}
	return &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Name: "web"},
		Spec: appsv1.DeploymentSpec{
			Replicas: ptr.To(replicas),
			Selector: &metav1.LabelSelector{MatchLabels: labels},
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: labels},
				Spec:       corev1.PodSpec{Containers: []corev1.Container{container}},
			},
		},
	}
}

func deployment(ctx context.Context, u *user) {
	deployments := u.client.AppsV1().Deployments(u.namespace)
	made := get(deployments.Create(ctx, web(2), metav1.CreateOptions{}))
	check(made.Generation == 1 && made.Spec.Strategy.RollingUpdate.MaxSurge.StrVal == "25%", "%v", made)
	ready := func(count int32) func() bool {
		return func() bool {
			d := get(deployments.Get(ctx, "web", metav1.GetOptions{}))
			return d.Status.ReadyReplicas == count && d.Status.Replicas == count && d.Status.ObservedGeneration == d.Generation
		}
	}
	until(ctx, "two pods", ready(2))
	scale := get(deployments.GetScale(ctx, "web", metav1.GetOptions{}))
	check(scale.Spec.Replicas == 2 && scale.Status.Selector == "app=web", "%v", scale)
	scale.Spec.Replicas = 1
	get(deployments.UpdateScale(ctx, "web", scale, metav1.UpdateOptions{}))
	until(ctx, "one pod", ready(1))
	pods := get(u.client.CoreV1().Pods(u.namespace).List(ctx, metav1.ListOptions{FieldSelector: "status.phase=Running"}))
	check(len(pods.Items) >= 1, "no running pod")
	requests := pods.Items[0].Spec.Containers[0].Resources.Requests
	check(requests.Memory().Value() == 1572864 && requests.Cpu().MilliValue() == 10, "%v", requests)
	must(deployments.Delete(ctx, "web", metav1.DeleteOptions{PropagationPolicy: ptr.To(metav1.DeletePropagationForeground)}))
	until(ctx, "the end", func() bool {
		_, err := deployments.Get(ctx, "web", metav1.GetOptions{})
		return apierrors.IsNotFound(err)
	})
}

func patches(ctx context.Context, u *user) {
	deployments := u.client.AppsV1().Deployments(u.namespace)
	get(deployments.Create(ctx, web(0), metav1.CreateOptions{}))
	patch := func(kind types.PatchType, text string, subresources ...string) (*appsv1.Deployment, error) {
		return deployments.Patch(ctx, "web", kind, []byte(text), metav1.PatchOptions{FieldManager: "patches"}, subresources...)
	}
	d := get(patch(types.StrategicMergePatchType, `{"spec":{"template":{"spec":{"containers":[{"name":"side","image":"side:1"}]}}}}`))
	check(len(d.Spec.Template.Spec.Containers) == 2 && d.Generation == 2, "%v", d.Spec.Template.Spec.Containers)
	d = get(patch(types.JSONPatchType, `[{"op":"test","path":"/spec/replicas","value":0},{"op":"add","path":"/metadata/labels","value":{"a":"b"}}]`))
	check(d.Labels["a"] == "b" && d.Generation == 2, "%v", d.Labels)
	_, err := patch(types.JSONPatchType, `[{"op":"test","path":"/spec/replicas","value":1}]`)
	refused(apierrors.IsInvalid, err)
	d = get(patch(types.MergePatchType, `{"status":{"conditions":[{"type":"Known","status":"True"}]}}`, "status"))
	check(slicesHas(d.Status.Conditions, "Known"), "%v", d.Status)
	must(deployments.Delete(ctx, "web", metav1.DeleteOptions{}))
}

func slicesHas(conditions []appsv1.DeploymentCondition, kind appsv1.DeploymentConditionType) bool {
	for _, c := range conditions {
		if c.Type == kind {
			return true
		}
	}
	return false
}
