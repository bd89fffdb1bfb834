// Command manager is an operator as people write them with controller-runtime: a kind of its own, reconciled
// into a Deployment, with a finalizer, a status, an index and events.
package main

import (
	"context"
	"fmt"
	"os"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	extensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/wait"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/events"
	"k8s.io/utils/ptr"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"
	"sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/log/zap"
	"sigs.k8s.io/controller-runtime/pkg/metrics/server"
)

const (
	finalizer = "sites.example.com/guard"
	namespace = "default"
	patience  = 2 * time.Minute
)

var groupVersion = schema.GroupVersion{Group: "sites.example.com", Version: "v1"}

// Site is served by a Deployment.
type Site struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`
	Spec              SiteSpec   `json:"spec"`
	Status            SiteStatus `json:"status,omitempty"`
}

// SiteSpec is what is wanted.
type SiteSpec struct {
	Image    string `json:"image"`
	Replicas int32  `json:"replicas,omitempty"`
}

// SiteStatus is what was seen.
type SiteStatus struct {
	Ready    int32 `json:"ready,omitempty"`
	Observed int64 `json:"observed,omitempty"`
}

// DeepCopyObject copies.
func (s *Site) DeepCopyObject() runtime.Object {
	out := *s
	s.ObjectMeta.DeepCopyInto(&out.ObjectMeta)
	return &out
}

// SiteList is a list of them.
type SiteList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []Site `json:"items"`
}

// DeepCopyObject copies.
func (l *SiteList) DeepCopyObject() runtime.Object {
	out := *l
	out.Items = make([]Site, len(l.Items))
	for n := range l.Items {
		out.Items[n] = *l.Items[n].DeepCopyObject().(*Site)
	}
	return &out
}

func definition() *extensionsv1.CustomResourceDefinition {
	typed := func(kind string) extensionsv1.JSONSchemaProps { return extensionsv1.JSONSchemaProps{Type: kind} }
	object := func(properties map[string]extensionsv1.JSONSchemaProps) extensionsv1.JSONSchemaProps {
		return extensionsv1.JSONSchemaProps{Type: "object", Properties: properties}
	}
	replicas := typed("integer")
	replicas.Default = &extensionsv1.JSON{Raw: []byte("2")}
	root := object(map[string]extensionsv1.JSONSchemaProps{
		"spec":   object(map[string]extensionsv1.JSONSchemaProps{"image": typed("string"), "replicas": replicas}),
		"status": object(map[string]extensionsv1.JSONSchemaProps{"ready": typed("integer"), "observed": typed("integer")}),
	})
	return &extensionsv1.CustomResourceDefinition{
		ObjectMeta: metav1.ObjectMeta{Name: "sites." + groupVersion.Group},
		Spec: extensionsv1.CustomResourceDefinitionSpec{
			Group: groupVersion.Group, Scope: extensionsv1.NamespaceScoped,
			Names: extensionsv1.CustomResourceDefinitionNames{Plural: "sites", Singular: "site", Kind: "Site", ListKind: "SiteList"},
			Versions: []extensionsv1.CustomResourceDefinitionVersion{{
				Name: groupVersion.Version, Served: true, Storage: true,
				Schema:       &extensionsv1.CustomResourceValidation{OpenAPIV3Schema: &root},
				Subresources: &extensionsv1.CustomResourceSubresources{Status: &extensionsv1.CustomResourceSubresourceStatus{}},
			}},
		},
	}
}

type reconciler struct {
	client.Client
	scheme *runtime.Scheme
	events events.EventRecorder
}

// Reconcile makes the Deployment as the Site wants it, and tells what became of it.
func (r *reconciler) Reconcile(ctx context.Context, request ctrl.Request) (ctrl.Result, error) {
	site := &Site{}
	if err := r.Get(ctx, request.NamespacedName, site); err != nil {
		return ctrl.Result{}, client.IgnoreNotFound(err)
	}
	if !site.DeletionTimestamp.IsZero() {
		if controllerutil.RemoveFinalizer(site, finalizer) {
			return ctrl.Result{}, r.Update(ctx, site)
		}
		return ctrl.Result{}, nil
	}
	if controllerutil.AddFinalizer(site, finalizer) {
		return ctrl.Result{}, r.Update(ctx, site)
	}
	deployment := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Name: site.Name, Namespace: site.Namespace}}
	done, err := controllerutil.CreateOrUpdate(ctx, r.Client, deployment, func() error {
		labels := map[string]string{"site": site.Name}
		deployment.Spec.Replicas = ptr.To(site.Spec.Replicas)
		deployment.Spec.Selector = &metav1.LabelSelector{MatchLabels: labels}
		deployment.Spec.Template.Labels = labels
		if len(deployment.Spec.Template.Spec.Containers) == 0 {
			deployment.Spec.Template.Spec.Containers = []corev1.Container{{Name: "site"}}
		}
		deployment.Spec.Template.Spec.Containers[0].Image = site.Spec.Image
		return controllerutil.SetControllerReference(site, deployment, r.scheme)
	})
	if err != nil {
		return ctrl.Result{}, err
	}
	if done != controllerutil.OperationResultNone {
		r.events.Eventf(site, deployment, corev1.EventTypeNormal, "Deployed", "Deploying", "the deployment is %s", done)
	}
	if site.Status.Ready == deployment.Status.ReadyReplicas && site.Status.Observed == site.Generation {
		return ctrl.Result{}, nil
	}
	before := client.MergeFrom(site.DeepCopyObject().(*Site))
	site.Status = SiteStatus{Ready: deployment.Status.ReadyReplicas, Observed: site.Generation}
	return ctrl.Result{}, r.Status().Patch(ctx, site, before)
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}

func until(ctx context.Context, what string, look func() (bool, error)) {
	err := wait.PollUntilContextTimeout(ctx, 50*time.Millisecond, patience, true, func(context.Context) (bool, error) { return look() })
	if err != nil {
		panic(fmt.Sprintf("waited in vain for %s: %v", what, err))
	}
}

func main() {
	log.SetLogger(zap.New())
	config, err := clientcmd.BuildConfigFromFlags("", os.Getenv("KUBECONFIG"))
	must(err)
	scheme := runtime.NewScheme()
	must(clientgoscheme.AddToScheme(scheme))
	must(extensionsv1.AddToScheme(scheme))
	scheme.AddKnownTypes(groupVersion, &Site{}, &SiteList{})
	metav1.AddToGroupVersion(scheme, groupVersion)
	ctx, cancel := context.WithCancel(context.Background())
	direct, err := client.New(config, client.Options{Scheme: scheme})
	must(err)
	must(direct.Create(ctx, definition()))
	until(ctx, "the definition", func() (bool, error) { return direct.List(ctx, &SiteList{}) == nil, nil })

	manager, err := ctrl.NewManager(config, ctrl.Options{
		Scheme: scheme, Metrics: server.Options{BindAddress: "0"}, HealthProbeBindAddress: "0",
		LeaderElection: true, LeaderElectionID: "sites", LeaderElectionNamespace: namespace, LeaderElectionReleaseOnCancel: true,
	})
	must(err)
	byImage := func(of client.Object) []string { return []string{of.(*Site).Spec.Image} }
	must(manager.GetFieldIndexer().IndexField(ctx, &Site{}, "spec.image", byImage))
	must(ctrl.NewControllerManagedBy(manager).For(&Site{}).Owns(&appsv1.Deployment{}).
		Complete(&reconciler{manager.GetClient(), scheme, manager.GetEventRecorder("sites")}))
	ended := make(chan error)
	go func() { ended <- manager.Start(ctx) }()
	use(ctx, direct, manager.GetClient())
	cancel()
	must(<-ended)
	fmt.Println("go: controller-runtime works")
}

// What a user of the operator does and sees.
func use(ctx context.Context, direct, cached client.Client) {
	site := &Site{ObjectMeta: metav1.ObjectMeta{Name: "home", Namespace: namespace}, Spec: SiteSpec{Image: "site:1"}}
	key := client.ObjectKeyFromObject(site)
	must(direct.Create(ctx, site))
	ready := func(count int32, image string) func() (bool, error) {
		return func() (bool, error) {
			deployment := &appsv1.Deployment{}
			if err := direct.Get(ctx, key, deployment); err != nil {
				return false, client.IgnoreNotFound(err)
			}
			if err := direct.Get(ctx, key, site); err != nil {
				return false, err
			}
			return site.Status.Ready == count && site.Status.Observed == site.Generation &&
				deployment.Spec.Template.Spec.Containers[0].Image == image, nil
		}
	}
	until(ctx, "the site", ready(2, "site:1"))
	before := client.MergeFromWithOptions(site.DeepCopyObject().(*Site), client.MergeFromWithOptimisticLock{})
	site.Spec = SiteSpec{Image: "site:2", Replicas: 1}
	must(direct.Patch(ctx, site, before))
	until(ctx, "the change", ready(1, "site:2"))
	until(ctx, "the index", func() (bool, error) {
		sites := &SiteList{}
		err := cached.List(ctx, sites, client.InNamespace(namespace), client.MatchingFields{"spec.image": "site:2"})
		return len(sites.Items) == 1, err
	})
	until(ctx, "an event", func() (bool, error) {
		list := &corev1.EventList{}
		err := direct.List(ctx, list, client.InNamespace(namespace), client.MatchingFields{"reason": "Deployed", "involvedObject.name": "home"})
		return len(list.Items) > 0, err
	})
	must(direct.Delete(ctx, site, client.PropagationPolicy(metav1.DeletePropagationForeground)))
	until(ctx, "the end", func() (bool, error) {
		err := direct.Get(ctx, key, &appsv1.Deployment{})
		gone := direct.Get(ctx, key, site)
		return apierrors.IsNotFound(err) && apierrors.IsNotFound(gone), nil
	})
}
