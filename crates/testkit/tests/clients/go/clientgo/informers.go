package main

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/dynamic/dynamicinformer"
	clientfeatures "k8s.io/client-go/features"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
)

// How an informer asked for the ConfigMaps that there are.
type asked struct {
	sync.Mutex
	lists, streams int
	next           http.RoundTripper
}

func (a *asked) RoundTrip(request *http.Request) (*http.Response, error) {
	if strings.HasSuffix(request.URL.Path, "/configmaps") && request.Method == http.MethodGet {
		query := request.URL.Query()
		a.Lock()
		switch {
		case query.Get("sendInitialEvents") == "true":
			a.streams++
		case query.Get("watch") != "true":
			a.lists++
		}
		a.Unlock()
	}
	return a.next.RoundTrip(request)
}

// What handlers saw, in order.
type seen struct {
	sync.Mutex
	events []string
}

func (s *seen) add(verb string, of any) {
	if tomb, ok := of.(cache.DeletedFinalStateUnknown); ok {
		of = tomb.Obj
	}
	s.Lock()
	defer s.Unlock()
	s.events = append(s.events, verb+" "+of.(metav1.Object).GetName())
}

func (s *seen) has(event string) func() bool {
	return func() bool {
		s.Lock()
		defer s.Unlock()
		for _, e := range s.events {
			if e == event {
				return true
			}
		}
		return false
	}
}

func (s *seen) handler() cache.ResourceEventHandler {
	return cache.ResourceEventHandlerFuncs{
		AddFunc:    func(of any) { s.add("add", of) },
		UpdateFunc: func(_, of any) { s.add("update", of) },
		DeleteFunc: func(of any) { s.add("delete", of) },
	}
}

// Shared informers of typed and dynamic clients; whether they stream their lists is told by the
// environment, and seen.
func sharedInformers(ctx context.Context, u *user) {
	streams := clientfeatures.FeatureGates().Enabled(clientfeatures.WatchListClient)
	for _, contentType := range []string{"application/json", protobuf} {
		a := &asked{}
		speaker := u.speaking(contentType)
		speaker.config.Wrap(func(next http.RoundTripper) http.RoundTripper { a.next = next; return a })
		informer(ctx, &user{speaker.config, kubernetes.NewForConfigOrDie(speaker.config), u.namespace})
		a.Lock()
		check(streams == (a.streams > 0) && streams == (a.lists == 0), "streaming %v, but %d lists and %d streams", streams, a.lists, a.streams)
		a.Unlock()
	}
	dynamicInformer(ctx, u)
}

func informer(ctx context.Context, u *user) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	maps := u.client.CoreV1().ConfigMaps(u.namespace)
	for n := range 20 {
		map_ := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("m%d", n), Labels: map[string]string{"app": "go"}}}
		get(maps.Create(ctx, map_, metav1.CreateOptions{}))
	}
	selects := informers.WithTweakListOptions(func(o *metav1.ListOptions) { o.LabelSelector = "app=go" })
	factory := informers.NewSharedInformerFactoryWithOptions(u.client, time.Hour, informers.WithNamespace(u.namespace), selects)
	shared := factory.Core().V1().ConfigMaps()
	s := &seen{}
	get(shared.Informer().AddEventHandler(s.handler()))
	factory.StartWithContext(ctx)
	for kind, synced := range factory.WaitForCacheSync(ctx.Done()) {
		check(synced, "%v is not in sync", kind)
	}
	all := get(shared.Lister().ConfigMaps(u.namespace).List(labels.Everything()))
	check(len(all) == 20, "%d in the cache", len(all))
	m0 := get(maps.Get(ctx, "m0", metav1.GetOptions{}))
	m0.Data = map[string]string{"a": "b"}
	get(maps.Update(ctx, m0, metav1.UpdateOptions{}))
	until(ctx, "an update", s.has("update m0"))
	// What no longer fits the selector is gone for this informer.
	m1 := get(maps.Get(ctx, "m1", metav1.GetOptions{}))
	m1.Labels = nil
	get(maps.Update(ctx, m1, metav1.UpdateOptions{}))
	until(ctx, "the relabelled to go", s.has("delete m1"))
	must(maps.DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{}))
	until(ctx, "the end", s.has("delete m19"))
	until(ctx, "an empty cache", func() bool { return len(get(shared.Lister().List(labels.Everything()))) == 0 })
	cancel()
	factory.Shutdown()
}

func dynamicInformer(ctx context.Context, u *user) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	client := dynamic.NewForConfigOrDie(rest.CopyConfig(u.config))
	factory := dynamicinformer.NewFilteredDynamicSharedInformerFactory(client, 0, u.namespace, nil)
	shared := factory.ForResource(configMaps)
	s := &seen{}
	get(shared.Informer().AddEventHandler(s.handler()))
	factory.Start(ctx.Done())
	factory.WaitForCacheSync(ctx.Done())
	map_ := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "later"}}
	get(u.client.CoreV1().ConfigMaps(u.namespace).Create(ctx, map_, metav1.CreateOptions{}))
	until(ctx, "a new one", s.has("add later"))
	cancel()
	factory.Shutdown()
}
