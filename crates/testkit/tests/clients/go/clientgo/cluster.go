package main

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/restmapper"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
	"k8s.io/client-go/tools/pager"
	"k8s.io/utils/ptr"
)

// Two candidates: the second leads when the first gives up.
func election(ctx context.Context, u *user) {
	var leads atomic.Value
	leads.Store("")
	run := func(ctx context.Context, name string) <-chan struct{} {
		ended := make(chan struct{})
		lock := get(resourcelock.New(resourcelock.LeasesResourceLock, u.namespace, "leader",
			u.client.CoreV1(), u.client.CoordinationV1(), resourcelock.ResourceLockConfig{Identity: name}))
		go func() {
			defer close(ended)
			leaderelection.RunOrDie(ctx, leaderelection.LeaderElectionConfig{
				Lock: lock, ReleaseOnCancel: true, LeaseDuration: 30 * time.Second, RenewDeadline: 20 * time.Second, RetryPeriod: 100 * time.Millisecond,
				Callbacks: leaderelection.LeaderCallbacks{
					OnStartedLeading: func(context.Context) { leads.Store(name) },
					OnStoppedLeading: func() {},
				},
			})
		}()
		return ended
	}
	first, resign := context.WithCancel(ctx)
	ended := run(first, "first")
	until(ctx, "the first leader", func() bool { return leads.Load() == "first" })
	second, cancel := context.WithCancel(ctx)
	over := run(second, "second")
	resign()
	<-ended
	until(ctx, "the second leader", func() bool { return leads.Load() == "second" })
	lease := get(u.client.CoordinationV1().Leases(u.namespace).Get(ctx, "leader", metav1.GetOptions{}))
	check(*lease.Spec.HolderIdentity == "second" && *lease.Spec.LeaseTransitions >= 1, "%v", lease.Spec)
	cancel()
	<-over
}

// Discovery, and kinds from what users call them.
func mapping(ctx context.Context, u *user) {
	client := discovery.NewDiscoveryClientForConfigOrDie(u.config)
	check(strings.HasPrefix(get(client.ServerVersion()).GitVersion, "v1."), "another version")
	_, lists, err := client.ServerGroupsAndResources()
	must(err)
	check(len(lists) > 20, "%d group versions", len(lists))
	client.UseLegacyDiscovery = true
	_, legacy, err := client.ServerGroupsAndResources()
	must(err)
	check(len(legacy) == len(lists), "%d group versions, %d the old way", len(lists), len(legacy))
	client.UseLegacyDiscovery = false
	preferred := get(discovery.ServerPreferredNamespacedResources(client))
	check(len(preferred) > 10, "%d lists", len(preferred))
	check(len(get(client.OpenAPIV3().Paths())) > 20, "few OpenAPI documents")
	document := get(client.OpenAPISchema())
	check(len(document.Definitions.AdditionalProperties) > 500, "few definitions")

	cached := memory.NewMemCacheClient(client)
	mapper := restmapper.NewShortcutExpander(restmapper.NewDeferredDiscoveryRESTMapper(cached), cached, nil)
	for short, kind := range map[string]string{"deploy": "Deployment", "po": "Pod", "svc": "Service", "cj": "CronJob", "hpa": "HorizontalPodAutoscaler"} {
		found := get(mapper.KindFor(schema.GroupVersionResource{Resource: short}))
		check(found.Kind == kind, "%s is %v", short, found)
	}
	of := get(mapper.RESTMapping(schema.GroupKind{Group: "rbac.authorization.k8s.io", Kind: "ClusterRole"}))
	check(of.Resource.Resource == "clusterroles" && of.Scope.Name() == meta.RESTScopeNameRoot, "%v", of)
	_, err = mapper.RESTMapping(schema.GroupKind{Group: "example.com", Kind: "None"})
	refused(meta.IsNoMatchError, err)
	body := get(client.RESTClient().Get().AbsPath("/readyz").DoRaw(ctx))
	check(string(body) == "ok", "%s", body)
}

func pod(name string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"app": "evicted"}},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "image:1"}}},
	}
}

func running(ctx context.Context, u *user, name string) {
	until(ctx, name, func() bool {
		return get(u.client.CoreV1().Pods(u.namespace).Get(ctx, name, metav1.GetOptions{})).Status.Phase == corev1.PodRunning
	})
}

// A budget holds an eviction up.
func eviction(ctx context.Context, u *user) {
	pods := u.client.CoreV1().Pods(u.namespace)
	get(pods.Create(ctx, pod("p"), metav1.CreateOptions{}))
	running(ctx, u, "p")
	budgets := u.client.PolicyV1().PodDisruptionBudgets(u.namespace)
	budget := &policyv1.PodDisruptionBudget{
		ObjectMeta: metav1.ObjectMeta{Name: "b"},
		Spec: policyv1.PodDisruptionBudgetSpec{MinAvailable: ptr.To(intstr.FromInt32(1)),
			Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "evicted"}}},
	}
	get(budgets.Create(ctx, budget, metav1.CreateOptions{}))
	until(ctx, "the budget", func() bool {
		b := get(budgets.Get(ctx, "b", metav1.GetOptions{}))
		return b.Status.ObservedGeneration > 0 && b.Status.CurrentHealthy == 1
	})
	out := &policyv1.Eviction{ObjectMeta: metav1.ObjectMeta{Name: "p", Namespace: u.namespace}}
	err := pods.EvictV1(ctx, out)
	refused(apierrors.IsTooManyRequests, err)
	check(apierrors.HasStatusCause(err, policyv1.DisruptionBudgetCause), "no cause: %v", err)
	must(budgets.Delete(ctx, "b", metav1.DeleteOptions{}))
	must(pods.EvictV1(ctx, out))
	until(ctx, "the pod to go", func() bool {
		_, err := pods.Get(ctx, "p", metav1.GetOptions{})
		return apierrors.IsNotFound(err)
	})
}

// Long lists come in pages of one moment.
func pages(ctx context.Context, u *user) {
	maps := u.client.CoreV1().ConfigMaps(u.namespace)
	for n := range 25 {
		get(maps.Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("m%02d", n), Labels: map[string]string{"app": "pager"}}}, metav1.CreateOptions{}))
	}
	calls, seen := 0, 0
	p := pager.New(func(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
		calls++
		list, err := maps.List(ctx, options)
		if calls == 1 {
			must(maps.Delete(ctx, "m24", metav1.DeleteOptions{}))
		}
		return list, err
	})
	p.PageSize = 10
	must(p.EachListItem(ctx, metav1.ListOptions{LabelSelector: "app=pager"}, func(runtime.Object) error { seen++; return nil }))
	check(calls == 3 && seen == 25, "%d calls, %d seen", calls, seen)
	first := get(maps.List(ctx, metav1.ListOptions{Limit: 10, LabelSelector: "app=pager"}))
	check(len(first.Items) == 10 && first.Continue != "", "%v", first.ListMeta)
	_, err := maps.List(ctx, metav1.ListOptions{Limit: 10, Continue: "not a token"})
	refused(apierrors.IsBadRequest, err)
}

// Tokens of accounts, what they may, and acting as others.
func accounts(ctx context.Context, u *user) {
	request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{ExpirationSeconds: ptr.To(int64(600))}}
	token := get(u.client.CoreV1().ServiceAccounts(u.namespace).CreateToken(ctx, "default", request, metav1.CreateOptions{})).Status.Token
	config := rest.AnonymousClientConfig(u.config)
	config.BearerToken = token
	bot := kubernetes.NewForConfigOrDie(config)
	name := fmt.Sprintf("system:serviceaccount:%s:default", u.namespace)
	self := get(bot.AuthenticationV1().SelfSubjectReviews().Create(ctx, &authenticationv1.SelfSubjectReview{}, metav1.CreateOptions{}))
	check(self.Status.UserInfo.Username == name, "%v", self.Status)
	_, err := bot.CoreV1().Secrets(u.namespace).List(ctx, metav1.ListOptions{})
	refused(apierrors.IsForbidden, err)
	other := rest.CopyConfig(u.config)
	other.Impersonate = rest.ImpersonationConfig{UserName: name}
	review := &authorizationv1.SelfSubjectAccessReview{Spec: authorizationv1.SelfSubjectAccessReviewSpec{
		ResourceAttributes: &authorizationv1.ResourceAttributes{Verb: "list", Resource: "secrets", Namespace: u.namespace}}}
	may := get(kubernetes.NewForConfigOrDie(other).AuthorizationV1().SelfSubjectAccessReviews().Create(ctx, review, metav1.CreateOptions{}))
	check(!may.Status.Allowed, "%v", may.Status)
	config.BearerToken = "none"
	_, err = kubernetes.NewForConfigOrDie(config).CoreV1().Pods(u.namespace).List(ctx, metav1.ListOptions{})
	refused(apierrors.IsUnauthorized, err)
}
