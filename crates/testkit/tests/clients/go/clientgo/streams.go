package main

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/httpstream"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/transport/spdy"
	"k8s.io/client-go/util/exec"
	"k8s.io/utils/ptr"
)

// Commands, ports and logs of a container, over both protocols; the node says back what it hears.
func execute(ctx context.Context, u *user) {
	pods := u.client.CoreV1().Pods(u.namespace)
	get(pods.Create(ctx, pod("p"), metav1.CreateOptions{}))
	running(ctx, u, "p")
	for _, run := range []func(*url.URL) remotecommand.Executor{
		func(at *url.URL) remotecommand.Executor {
			return get(remotecommand.NewSPDYExecutor(u.config, "POST", at))
		},
		func(at *url.URL) remotecommand.Executor {
			return get(remotecommand.NewWebSocketExecutor(u.config, "GET", at.String()))
		},
	} {
		commands(ctx, u, run)
	}
	tunnelled := get(portforward.NewSPDYOverWebsocketDialer(u.subresource("portforward", nil), u.config))
	transport, upgrader, err := spdy.RoundTripperFor(u.config)
	must(err)
	plain := spdy.NewDialer(upgrader, &http.Client{Transport: transport}, "POST", u.subresource("portforward", nil))
	forwarded(plain)
	forwarded(portforward.NewFallbackDialer(tunnelled, plain, func(error) bool { return false }))

	log := get(pods.GetLogs("p", &corev1.PodLogOptions{TailLines: ptr.To(int64(2))}).Stream(ctx))
	defer log.Close()
	check(string(get(io.ReadAll(log))) == "two\nthree\n", "another log")
}

func (u *user) subresource(name string, options *corev1.PodExecOptions) *url.URL {
	request := u.client.CoreV1().RESTClient().Post().Resource("pods").Namespace(u.namespace).Name("p").SubResource(name)
	if options != nil {
		request = request.VersionedParams(options, scheme.ParameterCodec)
	}
	return request.URL()
}

func commands(ctx context.Context, u *user, executor func(*url.URL) remotecommand.Executor) {
	var out, errs bytes.Buffer
	options := &corev1.PodExecOptions{Container: "c", Command: []string{"cat"}, Stdin: true, Stdout: true, Stderr: true}
	streams := remotecommand.StreamOptions{Stdin: strings.NewReader(strings.Repeat("hello\n", 100_000)), Stdout: &out, Stderr: &errs}
	must(executor(u.subresource("exec", options)).StreamWithContext(ctx, streams))
	check(out.Len() == 600_000 && errs.Len() == 0, "%d bytes, %q", out.Len(), errs.String())

	options = &corev1.PodExecOptions{Container: "c", Command: []string{"fail"}, Stdout: true, Stderr: true}
	err := executor(u.subresource("exec", options)).StreamWithContext(ctx, remotecommand.StreamOptions{Stdout: &out, Stderr: &errs})
	code, ok := err.(exec.CodeExitError)
	check(ok && code.Code == 3 && errs.String() == "failing\n", "%v %q", err, errs.String())

	out.Reset()
	options = &corev1.PodExecOptions{Container: "c", Command: []string{"size"}, Stdout: true, TTY: true}
	sizes := &sized{remotecommand.TerminalSize{Width: 120, Height: 40}}
	terminal := remotecommand.StreamOptions{Stdout: &out, Tty: true, TerminalSizeQueue: sizes}
	must(executor(u.subresource("exec", options)).StreamWithContext(ctx, terminal))
	check(out.String() == "120x40\n", "%q", out.String())
}

// A terminal of one size.
type sized []remotecommand.TerminalSize

func (s *sized) Next() *remotecommand.TerminalSize {
	if len(*s) == 0 {
		return nil
	}
	first := (*s)[0]
	*s = (*s)[1:]
	return &first
}

func forwarded(dialer httpstream.Dialer) {
	ready, stop := make(chan struct{}), make(chan struct{})
	forwarder := get(portforward.NewOnAddresses(dialer, []string{"127.0.0.1"}, []string{"0:8080"}, stop, ready, io.Discard, io.Discard))
	ended := make(chan error)
	go func() { ended <- forwarder.ForwardPorts() }()
	<-ready
	port := get(forwarder.GetPorts())[0].Local
	for range 3 {
		connection := get(net.Dial("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(int(port)))))
		get(connection.Write([]byte("hello")))
		must(connection.(*net.TCPConn).CloseWrite())
		check(string(get(io.ReadAll(connection))) == "hello", "another echo")
		must(connection.Close())
	}
	close(stop)
	must(<-ended)
}
