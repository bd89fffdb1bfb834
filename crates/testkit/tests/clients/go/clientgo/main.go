// Command clientgo uses a cluster as Go programs do, through every kind of client that client-go has.
// The cluster has controllers and one node that pretends to run pods.
//
// Each part works in a namespace of its own and panics on what is not as it must be. Arguments name the
// parts to run; without any, all are run.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// Time for what a cluster does by itself.
const patience = 2 * time.Minute

const protobuf = "application/vnd.kubernetes.protobuf"

type part struct {
	name string
	run  func(context.Context, *user)
}

var parts = []part{
	{"typed", func(ctx context.Context, u *user) { typed(ctx, u) }},
	{"protobuf", func(ctx context.Context, u *user) { typed(ctx, u.speaking(protobuf)) }},
	{"dynamic", anything},
	{"metadata", metadataOnly},
	{"informers", sharedInformers},
	{"election", election},
	{"mapping", mapping},
	{"apply", apply},
	{"conflicts", conflicts},
	{"eviction", eviction},
	{"pager", pages},
	{"accounts", accounts},
	{"streams", execute},
}

// One who uses the cluster in a namespace of its own.
type user struct {
	config    *rest.Config
	client    kubernetes.Interface
	namespace string
}

func (u *user) speaking(contentType string) *user {
	config := rest.CopyConfig(u.config)
	config.ContentType = contentType
	config.AcceptContentTypes = contentType
	return &user{config, kubernetes.NewForConfigOrDie(config), u.namespace}
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}

func get[T any](value T, err error) T {
	must(err)
	return value
}

func check(holds bool, format string, values ...any) {
	if !holds {
		panic(fmt.Sprintf(format, values...))
	}
}

// Whether an error is as told.
func refused(is func(error) bool, err error) {
	check(err != nil && is(err), "refused otherwise: %v", err)
}

func until(ctx context.Context, what string, look func() bool) {
	err := wait.PollUntilContextTimeout(ctx, 20*time.Millisecond, patience, true,
		func(context.Context) (bool, error) { return look(), nil })
	check(err == nil, "waited in vain for %s", what)
}

func main() {
	ctx := context.Background()
	config := get(clientcmd.BuildConfigFromFlags("", os.Getenv("KUBECONFIG")))
	config.QPS = -1
	client := kubernetes.NewForConfigOrDie(config)
	wanted := os.Args[1:]
	for _, p := range parts {
		if len(wanted) > 0 && !slices.Contains(wanted, p.name) {
			continue
		}
		namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: p.name + "-"}}
		namespace = get(client.CoreV1().Namespaces().Create(ctx, namespace, metav1.CreateOptions{}))
		u := &user{config, client, namespace.Name}
		until(ctx, "the account of the namespace", func() bool {
			_, err := client.CoreV1().ServiceAccounts(u.namespace).Get(ctx, "default", metav1.GetOptions{})
			return err == nil
		})
		limited, cancel := context.WithTimeoutCause(ctx, 4*patience, errors.New(p.name+" takes too long"))
		p.run(limited, u)
		cancel()
		fmt.Println("go:", p.name, "works")
	}
}
