package main

import (
	"context"
	"encoding/json"
	"strconv"
	"sync"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	appsapply "k8s.io/client-go/applyconfigurations/apps/v1"
	autoscalingapply "k8s.io/client-go/applyconfigurations/autoscaling/v1"
	coreapply "k8s.io/client-go/applyconfigurations/core/v1"
	metaapply "k8s.io/client-go/applyconfigurations/meta/v1"
	"k8s.io/client-go/util/retry"
)

func applied(u *user, image string) *appsapply.DeploymentApplyConfiguration {
	labels := map[string]string{"app": "applied"}
	container := coreapply.Container().WithName("c").WithImage(image).
		WithPorts(coreapply.ContainerPort().WithContainerPort(53).WithProtocol(corev1.ProtocolUDP),
			coreapply.ContainerPort().WithContainerPort(53))
	return appsapply.Deployment("applied", u.namespace).WithSpec(appsapply.DeploymentSpec().
		WithReplicas(1).
		WithSelector(metaapply.LabelSelector().WithMatchLabels(labels)).
		WithTemplate(coreapply.PodTemplateSpec().WithLabels(labels).
			WithSpec(coreapply.PodSpec().WithContainers(container))))
}

// Server-side apply through typed apply configurations.
func apply(ctx context.Context, u *user) {
	deployments := u.client.AppsV1().Deployments(u.namespace)
	one, two := metav1.ApplyOptions{FieldManager: "one"}, metav1.ApplyOptions{FieldManager: "two"}
	first := get(deployments.Apply(ctx, applied(u, "image:1"), one))
	check(len(first.Spec.Template.Spec.Containers[0].Ports) == 2, "%v", first.Spec.Template.Spec.Containers)
	again := get(deployments.Apply(ctx, applied(u, "image:1"), one))
	check(again.Generation == first.Generation, "applying again changes the generation")
	_, err := deployments.Apply(ctx, applied(u, "image:2"), two)
	refused(apierrors.IsConflict, err)
	causes := err.(apierrors.APIStatus).Status().Details.Causes
	check(len(causes) == 1 && causes[0].Type == metav1.CauseTypeFieldManagerConflict &&
		causes[0].Field == `.spec.template.spec.containers[name="c"].image`, "%v", causes)
	forced := get(deployments.Apply(ctx, applied(u, "image:2"), metav1.ApplyOptions{FieldManager: "two", Force: true}))
	check(forced.Spec.Template.Spec.Containers[0].Image == "image:2", "%v", forced)

	kept := get(appsapply.ExtractDeployment(forced, "one"))
	text := string(get(json.Marshal(kept)))
	container := kept.Spec.Template.Spec.Containers[0]
	check(container.Image == nil && *container.Name == "c" && *kept.Spec.Replicas == 1, "%s", text)
	// Who applies no more what nobody else owns takes it away.
	less := applied(u, "image:2")
	less.Spec.Template.Spec.Containers[0].Ports = nil
	get(deployments.Apply(ctx, less, two))
	still := get(deployments.Get(ctx, "applied", metav1.GetOptions{}))
	check(len(still.Spec.Template.Spec.Containers[0].Ports) == 2, "taken from another")
	none := get(appsapply.ExtractDeployment(still, "one"))
	none.Spec.Template.Spec.Containers[0].Ports = nil
	ported := get(deployments.Apply(ctx, none, one))
	check(len(ported.Spec.Template.Spec.Containers[0].Ports) == 0, "%v", ported.Spec.Template.Spec.Containers[0])

	scale := autoscalingapply.Scale().WithSpec(autoscalingapply.ScaleSpec().WithReplicas(3))
	_, err = deployments.ApplyScale(ctx, "applied", scale, metav1.ApplyOptions{FieldManager: "scaler"})
	refused(apierrors.IsConflict, err)
	scaled := get(deployments.ApplyScale(ctx, "applied", scale, metav1.ApplyOptions{FieldManager: "scaler", Force: true}))
	check(scaled.Spec.Replicas == 3, "%v", scaled)
	condition := appsapply.DeploymentCondition().WithType("Known").WithStatus(corev1.ConditionTrue)
	status := appsapply.Deployment("applied", u.namespace).WithStatus(appsapply.DeploymentStatus().WithConditions(condition))
	known := get(deployments.ApplyStatus(ctx, status, one))
	check(slicesHas(known.Status.Conditions, appsv1.DeploymentConditionType("Known")), "%v", known.Status)
	for _, entry := range known.ManagedFields {
		check(entry.Manager != "scaler" || entry.Subresource == "scale", "%v", entry)
	}
	must(deployments.Delete(ctx, "applied", metav1.DeleteOptions{}))
}

// Many writers of one object get through by trying again.
func conflicts(ctx context.Context, u *user) {
	const writers = 8
	maps := u.client.CoreV1().ConfigMaps(u.namespace)
	counter := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "counter"}, Data: map[string]string{"count": "0"}}
	get(maps.Create(ctx, counter, metav1.CreateOptions{}))
	backoff := retry.DefaultBackoff
	backoff.Steps = 30
	var done sync.WaitGroup
	for range writers {
		done.Go(func() {
			must(retry.RetryOnConflict(backoff, func() error {
				now := get(maps.Get(ctx, "counter", metav1.GetOptions{}))
				now.Data["count"] = strconv.Itoa(get(strconv.Atoi(now.Data["count"])) + 1)
				_, err := maps.Update(ctx, now, metav1.UpdateOptions{})
				return err
			}))
		})
	}
	done.Wait()
	end := get(maps.Get(ctx, "counter", metav1.GetOptions{}))
	check(end.Data["count"] == strconv.Itoa(writers), "%v", end.Data)
}
